"""Tests of benchmarks: forms of rows, locations of data, and reference answers that the rewards accept."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from gvpo.errors import ConfigError, DataError
from gvpo.evaluation.benchmarks import (
    BENCHMARKS,
    check_places,
    find_benchmark,
    gold_response,
    load_problems,
    locate,
    read_math,
    wrong_response,
)
from gvpo.rewards import REWARDS
from gvpo.types import Problem

REAL = Path(os.environ.get("GVPO_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
real = pytest.mark.skipif(
    not (REAL / "aime24").is_dir(), reason="the real data are not here; GVPO_TEST_DATA names them"
)


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"id": 60, "problem": "?", "answer": "025"}, Problem("?", "b/60", {"answer": "025"})),
        ({"question": "?", "answer": 27.0, "level": 2}, Problem("?", "b/1", {"answer": 27.0})),
        ({"unique_id": "x", "problem": "?", "answer": "0"}, Problem("?", "b/x", {"answer": "0"})),
        (
            {"problem": "?", "final_answer": ["$69$,$84$"], "error": "1e-1"},
            Problem("?", "b/1", {"answer": ["$69$,$84$"], "error": "1e-1"}),
        ),
        ({"problem": "?", "final_answer": ["2"], "error": None}, Problem("?", "b/1", {"answer": ["2"]})),
        ({"ID": "2024-I-1", "Problem": "?", "Answer": 204}, Problem("?", "b/2024-I-1", {"answer": 204})),
    ],
)
def test_forms_of_mathematical_rows(row: dict[str, Any], problem: Problem):
    assert read_math("b", [row]) == [problem]


def test_duplicate_ids_are_replaced_by_row_numbers():
    rows = [{"id": 1, "problem": "?", "answer": "1"}, {"id": 1, "problem": "!", "answer": "2"}]
    assert [problem.id for problem in read_math("b", rows)] == ["b/1", "b/2"]


@pytest.mark.parametrize("row", [{"problem": "?"}, {"answer": "1"}, {"problem": "?", "answer": ""}, {"problem": 3}])
def test_error_names_the_row_without_question_or_answer(row: dict[str, Any]):
    with pytest.raises(DataError, match="row 2 has no question or no answer"):
        read_math("b", [{"problem": "?", "answer": "1"}, row])


def test_data_are_loaded_from_a_file_a_directory_or_the_hub(tmp_path: Path):
    amc = BENCHMARKS["amc"]
    assert locate(amc, []) == "AI-MO/aimo-validation-amc#train"
    assert locate(amc, ["aime24=x.jsonl"]) == amc.hub_id
    assert locate(amc, ["amc=owner/other#test"]) == "owner/other#test"
    assert locate(amc, [str(tmp_path)]) == amc.hub_id
    inside = write(tmp_path / "amc/amc83_test.jsonl", {"problem": "?", "answer": 1.0})
    write(tmp_path / "amc/amc23_40_test.jsonl")
    assert locate(amc, [str(tmp_path)]) == str(inside)
    plain = write(tmp_path / "amc.jsonl", {"problem": "?", "answer": 1.0})
    assert locate(amc, [str(tmp_path)]) == str(plain)
    with pytest.raises(ConfigError, match="there is no directory"):
        locate(amc, [str(tmp_path / "nowhere")])


def test_data_for_an_unknown_benchmark_raise(tmp_path: Path):
    check_places(["amc=x.jsonl", "gsm8k=y.jsonl", "mine=z.jsonl", str(tmp_path)], ["amc", "mine"])
    with pytest.raises(ConfigError, match=r"--data math50=... does not name a benchmark; did you mean 'math500'\?"):
        check_places(["math50=x.jsonl"], ["math500"])


def test_error_about_invalid_data_names_the_benchmark(tmp_path: Path):
    file = write(tmp_path / "x.jsonl", {"text": "?"})
    with pytest.raises(DataError, match=r"amc: row 1 has no question or no answer; .* --data NAME=FILE"):
        load_problems(BENCHMARKS["amc"], [f"amc={file}"])
    with pytest.raises(DataError, match=r"contains none of its problems"):
        load_problems(BENCHMARKS["amc"], [f"amc={write(tmp_path / 'empty.jsonl')}"])


def test_a_users_own_file_needs_a_reward(tmp_path: Path):
    own = find_benchmark(str(tmp_path / "mine.jsonl"), "exact_match")
    assert (own.name, own.reward, own.samples) == ("mine", "exact_match", 1)
    write(tmp_path / "mine.jsonl", {"prompt": "1", "answer": "1", "id": "one"})
    assert load_problems(own) == [Problem("1", "one", {"answer": "1"})]
    with pytest.raises(ConfigError, match=r"name its reward: rewards\.funcs=NAME"):
        find_benchmark("mine.jsonl")
    with pytest.raises(ConfigError, match="no benchmark 'aime'; did you mean 'aime24'"):
        find_benchmark("aime")
    for known in (gold_response, lambda benchmark, _: wrong_response(benchmark)):
        with pytest.raises(ConfigError, match="mine is your own benchmark"):
            known(own, Problem("1", "one"))


def test_every_benchmark_has_an_existing_reward_and_aime_averages_32_samples():
    assert set(BENCHMARKS) == {"aime24", "amc", "math500", "minerva", "olympiadbench", "gsm8k", "mbpp", "humaneval"}
    assert all(benchmark.reward in REWARDS for benchmark in BENCHMARKS.values())
    assert {name: b.samples for name, b in BENCHMARKS.items() if b.samples > 1} == {"aime24": 32}


@real
@pytest.mark.parametrize("name", BENCHMARKS)
def test_real_data_have_as_many_rows_as_in_the_papers_and_bare_questions(name: str):
    benchmark = BENCHMARKS[name]
    problems = load_problems(benchmark, [str(REAL)])
    assert len(problems) == benchmark.size
    assert len({problem.id for problem in problems}) == len(problems)
    for problem in problems[:50]:
        assert isinstance(problem.prompt, str)
        assert benchmark.instruction.strip() not in problem.prompt
        assert gold_response(benchmark, problem) != wrong_response(benchmark)
