"""Tests of MATH with a few rows of our own, and with the real levels 3 to 5 if the data are available."""

import json
import os
from pathlib import Path

import pytest

from gvpo.data import TASKS
from gvpo.data.normalize import words
from gvpo.data.tasks.generated import INSTRUCTION
from gvpo.data.tasks.math import answer_of
from gvpo.errors import ConfigError, DataError

MATH = TASKS["math"]
ROWS = [
    {"problem": "What is $1+1$?", "answer": "2", "level": 3, "subject": "Algebra", "split": "train"},
    {"problem": "What is $2+2$?", "answer": "4", "level": 5, "subject": "Geometry", "split": "train"},
    {"problem": "What is $3+3$?", "answer": "6", "level": 1, "subject": "Algebra", "split": "train"},
    {"problem": "What is  $1 + 1$ ?", "answer": "2", "level": 4, "subject": "Algebra", "split": "test"},
    {
        "problem": "What is $4+4$?",
        "solution": "So $\\boxed{8}$.",
        "level": "Level 4",
        "type": "Algebra",
        "split": "test",
    },
]
REAL = (
    Path(os.environ.get("GVPO_TEST_DATA", Path(__file__).parents[4] / "shared" / "data")) / "math_lvl3to5/train.jsonl"
)


@pytest.fixture
def file(tmp_path):
    (tmp_path / "math.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(tmp_path / "math.jsonl")


def ids(problems):
    return sorted(problem.id for problem in problems)


def test_rows_become_problems_of_the_split_that_they_name(file):
    problems = {problem.id: problem for problem in MATH.problems("train", 10, 0, path=file)}
    assert sorted(problems) == ["math/1", "math/2"]
    assert problems["math/2"].prompt == f"What is $2+2$?{INSTRUCTION}"
    assert problems["math/2"].columns == {"answer": "4", "level": 5, "subject": "Geometry"}


def test_a_problem_in_both_splits_is_only_for_training(file):
    (only,) = MATH.problems("eval", 10, 0, path=file, instruction="")
    assert (only.id, only.prompt) == ("math/5", "What is $4+4$?")
    assert only.columns == {"answer": "8", "level": 4, "subject": "Algebra"}


def test_levels_and_subjects_filter(file):
    assert ids(MATH.problems("train", 10, 0, path=file, levels=[1, 5])) == ["math/2", "math/3"]
    assert ids(MATH.problems("train", 10, 0, path=file, subjects=["Algebra"])) == ["math/1"]
    assert ids(MATH.read(ROWS, "train", levels=[1, 2, 3, 4, 5], subjects=["Algebra"])) == ["math/1", "math/3"]


def test_whole_uses_every_row_for_training(file):
    assert ids(MATH.problems("train", 10, 0, path=file, whole=True)) == ["math/1", "math/2", "math/5"]
    with pytest.raises(ConfigError, match=r"whole=true trains on every row; set data.eval, or data.eval_problems=0"):
        MATH.problems("eval", 10, 0, path=file, whole=True)


def test_rows_without_an_answer_are_skipped():
    rows = [*ROWS, {"problem": "Which?", "answer": "", "level": 3, "subject": "Algebra"}]
    assert ids(MATH.read(rows, "train")) == ["math/1", "math/2"]


def test_rows_without_a_split_belong_to_the_requested_split():
    bare = [{key: value for key, value in row.items() if key != "split"} for row in ROWS]
    assert ids(MATH.read(bare, "eval")) == ["math/1", "math/2", "math/5"]


def test_a_hub_id_is_read_by_its_splits(monkeypatch):
    asked = []

    def rows(path, split):
        asked.append((path, split))
        return [{"problem": f"{split}?", "answer": "1", "level": "Level 3", "type": "Algebra"}]

    monkeypatch.setattr("gvpo.data.tasks.math.load_records", rows)
    assert [problem.prompt for problem in MATH.problems("eval", 9, 0, path="some/math", instruction="")] == ["test?"]
    assert asked == [("some/math", "train"), ("some/math", "test")]


def test_the_seed_fixes_the_choice(file):
    def chosen(seed):
        return ids(MATH.problems("train", 1, seed, path=file))

    assert chosen(0) == chosen(0)
    assert len({tuple(chosen(seed)) for seed in range(10)}) > 1


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"answer": 7}, "7"),
        ({"answer": "", "solution": "\\boxed{1} or \\boxed{\\frac{1}{2}}"}, "\\frac{1}{2}"),
        ({"solution": "So $x = \\boxed 5$."}, "5"),
        ({"solution": "So \\fbox{12}."}, "12"),
        ({"solution": "So 12."}, None),
        ({}, None),
    ],
)
def test_answers(row, answer):
    assert answer_of(row) == answer


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: MATH.read([{"problem": " ", "answer": "1"}], "train"), DataError, "math/1 has no `problem`"),
        (lambda: MATH.read([*ROWS, {"answer": "1"}], "train"), DataError, "math/6 has no `problem`"),
        (lambda: MATH.read(ROWS, "train", levels=[0]), ConfigError, "no 0 among its levels"),
        (lambda: MATH.read(ROWS, "train", subjects=["algebra"]), ConfigError, "no 'algebra' among its subjects"),
        (lambda: MATH.read(ROWS, "test"), ConfigError, "splits train and eval, not 'test'"),
        (lambda: MATH.read(ROWS, "train", level=[3]), ConfigError, "no option 'level'; did you mean 'levels'"),
    ],
)
def test_error_explains_invalid_options_and_rows(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.skipif(not REAL.is_file(), reason="the real MATH is not here; GVPO_TEST_DATA names the directory above it")
def test_the_real_levels_3_to_5():
    """Of 8,887 rows, three occur twice among the training rows, two occur in both splits, and two have no answer."""
    train, held_out = (MATH.problems(split, 10_000, 0, path=str(REAL)) for split in ("train", "eval"))
    assert (len(train), len(held_out)) == (5586 - 3 - 2, 3301 - 2)
    assert len(MATH.problems("train", 10_000, 0, path=str(REAL), whole=True)) == 8887 - 5 - 2
    assert not {words(problem.prompt) for problem in train} & {words(problem.prompt) for problem in held_out}
    assert {problem.columns["level"] for problem in train} == {3, 4, 5}
    hardest = MATH.problems("train", 10_000, 0, path=str(REAL), levels=[5], subjects=["Geometry", "Algebra"])
    assert {(p.columns["level"], p.columns["subject"]) for p in hardest} == {(5, "Geometry"), (5, "Algebra")}
