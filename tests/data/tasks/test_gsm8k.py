"""Tests of GSM8K with three rows of our own, and with all real rows if the data are available."""

import json
import os
from pathlib import Path

import pytest

from gvpo.data import TASKS
from gvpo.data.tasks.gsm8k import INSTRUCTION
from gvpo.errors import ConfigError, DataError
from gvpo.rewards import REWARDS
from gvpo.rewards.verifiers.gsm8k import gold_answer

GSM8K = TASKS["gsm8k"]
ROWS = [
    {"question": "Ada has 2 apples and buys 3. How many?", "answer": "She has 2+3=<<2+3=5>>5 apples.\n#### 5"},
    {"question": "A car costs $12,000 and a tyre $345. Together?", "answer": "<<12000+345=12345>>12345\n#### 12,345"},
    {"question": "It was 4 degrees and fell by 10. Now?", "answer": "4-10=<<4-10=-6>>-6\n#### -6"},
]
REAL = Path(os.environ.get("GVPO_TEST_DATA", Path(__file__).parents[4] / "shared" / "data")) / "gsm8k"


@pytest.fixture
def directory(tmp_path):
    """Create a directory in the layout of the dataset."""
    for name, rows in (("train.jsonl", ROWS), ("test.jsonl", ROWS[:1])):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path)


def test_rows_become_problems(directory):
    problems = {problem.id: problem for problem in GSM8K.problems("train", 10, 0, path=directory)}
    assert sorted(problems) == ["gsm8k/train/1", "gsm8k/train/2", "gsm8k/train/3"]
    second = problems["gsm8k/train/2"]
    assert second.prompt == ROWS[1]["question"] + INSTRUCTION
    assert second.columns == {"answer": "12345", "solution": ROWS[1]["answer"]}
    assert problems["gsm8k/train/3"].columns["answer"] == "-6"


def test_the_splits_are_the_two_files(directory):
    (only,) = GSM8K.problems("eval", 10, 0, path=directory, instruction="")
    assert (only.id, only.prompt) == ("gsm8k/eval/1", ROWS[0]["question"])


def test_rows_from_other_sources_keep_their_order_and_number():
    problems = GSM8K.read(ROWS, "eval", instruction="!")
    assert [problem.id for problem in problems] == ["gsm8k/eval/1", "gsm8k/eval/2", "gsm8k/eval/3"]
    assert [problem.prompt for problem in problems] == [row["question"] + "!" for row in ROWS]
    assert [problem.columns["answer"] for problem in problems] == ["5", "12345", "-6"]
    with pytest.raises(DataError, match="gsm8k/train/1 has no 'question'"):
        GSM8K.read([{"prompt": "?"}], "train")


def test_the_seed_fixes_the_choice(directory):
    def chosen(seed):
        return [problem.id for problem in GSM8K.problems("train", 2, seed, path=directory)]

    assert chosen(0) == chosen(0)
    assert len({tuple(chosen(seed)) for seed in range(10)}) > 1


def test_demonstrations_are_correct_and_without_annotations(directory):
    shown = GSM8K.demonstrations(5, 0, path=directory)
    assert len(shown) == 5
    assert shown[0] == shown[3]  # three rows, which repeat from the first
    for problem, text in shown:
        assert "<<" not in text
        assert REWARDS[GSM8K.reward](completions=[text], answer=[problem.columns["answer"]]) == [1.0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "?", "answer": "5"}, "gsm8k/train/1 has no #### in its answer"),
        ({"question": "?", "answer": "#### five"}, "gsm8k/train/1: the answer ' five' is not a number"),
        ({"problem": "?", "answer": "#### 5"}, "gsm8k/train/1 has no 'question'"),
        ({"question": "?"}, "gsm8k/train/1 has no 'answer'"),
    ],
)
def test_error_names_a_row_of_another_form(tmp_path, row, message):
    (tmp_path / "train.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataError, match=message):
        GSM8K.problems("train", 1, 0, path=str(tmp_path))


def test_a_path_without_the_two_files_raises(directory):
    with pytest.raises(DataError, match=r"needs a directory with train.jsonl and test.jsonl"):
        GSM8K.problems("train", 1, 0, path=f"{directory}/train.jsonl")
    with pytest.raises(ConfigError, match="no option 'pth'; did you mean 'path'"):
        GSM8K.problems("train", 1, 0, pth=directory)


@pytest.mark.skipif(not REAL.is_dir(), reason="the real GSM8K is not here; GVPO_TEST_DATA names the directory above it")
def test_every_real_reference_answer_is_parsed_and_accepted():
    problems = [problem for split in ("train", "eval") for problem in GSM8K.problems(split, 10_000, 0, path=str(REAL))]
    assert len(problems) == 7473 + 1319
    for problem in problems:
        gold, solution = problem.columns["answer"], problem.columns["solution"]
        assert gold_answer(solution) == gold_answer(gold)
        judged = REWARDS["gsm8k"](completions=[solution, f"It is {gold}.", f"#### {gold}1"], answer=[gold] * 3)
        assert judged == [1.0, 1.0, 0.0], problem.id
