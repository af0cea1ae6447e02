"""Tests of MBPP, HumanEval and contest records with rows of our own, and with real reference solutions."""

# ruff: noqa: E501 - the rows are copied unchanged

import base64
import json
import os
import pickle
import tracemalloc
import zlib
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from gvpo.data import TASKS
from gvpo.errors import ConfigError, DataError
from gvpo.rewards import code_tests
from gvpo.rewards.sandbox.isolation import isolation_problem

isolated = pytest.mark.skipif(bool(isolation_problem()), reason=f"code cannot be isolated: {isolation_problem()}")
REAL = Path(os.environ.get("GVPO_TEST_DATA", Path(__file__).parents[4] / "shared" / "data"))
MBPP_ROWS = [
    {
        "task_id": number,
        "text": "Write a function to double a number.",
        "code": "import math\nPATTERN = '\\.'\ndef helper(n): return n\ndef double(n):\n    return helper(n) * 2",
        "test_list": ["assert double(2) == 4", "assert double(math.inf) == math.inf"],
        "test_setup_code": "",
    }
    for number in (3, 11, 510, 511, 974)
]
HUMANEVAL_ROWS = [
    {
        "task_id": "HumanEval/0",
        "prompt": "import math\n\ndef half(n):\n    return n / 2\n\ndef root(n: float) -> float:\n    \"\"\" Root of n. \"\"\"\n",
        "entry_point": "root",
        "canonical_solution": "    return math.sqrt(n)\n",
        "test": "def check(candidate):\n    assert candidate(9) == 3\n    assert candidate(half(8)) == 2\n",
    }
]  # fmt: skip


def judged(problem, text):
    return code_tests([text], **{name: [value] for name, value in problem.columns.items()})[0]


@isolated
def test_mbpp():
    train, test = TASKS["mbpp"].read(MBPP_ROWS, "train"), TASKS["mbpp"].read(MBPP_ROWS, "eval", shown=1)
    assert [problem.id for problem in train + test] == ["mbpp/511", "mbpp/974", "mbpp/11", "mbpp/510"]
    assert "assert double(2) == 4\nassert double(math.inf)" in train[0].prompt
    assert "math.inf" not in test[0].prompt
    assert train[0].columns["entry_point"] == ["double"]  # not `helper`, which the tests do not use
    assert judged(train[0], MBPP_ROWS[0]["code"]) == 1.0
    assert judged(train[0], "def double(n): return 4") == 0.0


def test_mbpp_from_a_file(tmp_path):
    path = tmp_path / "mbpp.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in MBPP_ROWS))
    (problem,) = TASKS["mbpp"].problems("eval", 1, 0, path=str(path))
    assert problem.id in ("mbpp/11", "mbpp/510")
    with pytest.raises(DataError, match="row 1 has no 'text'"):
        TASKS["mbpp"].read([{"task_id": 11}], "eval")
    with pytest.raises(DataError, match="mbpp/11 is not Python"):
        TASKS["mbpp"].read([MBPP_ROWS[1] | {"code": "def ("}], "eval")


@isolated
def test_humaneval():
    (problem,) = TASKS["humaneval"].read(HUMANEVAL_ROWS, "eval")
    assert problem.prompt == HUMANEVAL_ROWS[0]["prompt"]
    assert judged(problem, "    return math.sqrt(n)\n") == 1.0  # continues the prompt
    assert judged(problem, "```python\ndef root(n):\n    return n ** 0.5\n```") == 1.0  # writes the whole function
    assert judged(problem, "    return n\n") == 0.0
    assert judged(problem, "    pass\ndef half(n): return 4\ndef check(f): pass\n") == 0.0
    with pytest.raises(DataError, match="no training problems"):
        TASKS["humaneval"].read(HUMANEVAL_ROWS, "train")
    with pytest.raises(DataError, match="row 1 has no 'test'"):
        TASKS["humaneval"].read([{**HUMANEVAL_ROWS[0], "test": None}], "eval")


def packed(cases):
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(cases)))).decode()


def case(given, right):
    return {"input": given, "output": right, "testtype": "stdin"}


STDIN_ROW = {
    "question_id": "abc1",
    "question_content": "Print the sum.",
    "starter_code": "",
    "contest_date": "2024-08-17T00:00:00",
    "public_test_cases": json.dumps([case("1 2", "3")]),
    "private_test_cases": packed([case("5 6", "11")]),
    "metadata": "{}",
}
FUNCTION_ROW = STDIN_ROW | {
    "question_id": "2",
    "question_content": "Pair each number with its double.",
    "starter_code": "class Solution:\n    def pairs(self, nums: List[int]) -> List[List[int]]:\n        ",
    "contest_date": datetime(2025, 1, 2, tzinfo=UTC),
    "public_test_cases": json.dumps([case("[1, 2]", "[[1, 2], [2, 4]]")]),
    "private_test_cases": json.dumps([case("[]", "[]")]),
    "metadata": json.dumps({"func_name": "pairs"}),
}


@isolated
def test_livecodebench():
    program, function = TASKS["livecodebench"].read([STDIN_ROW, FUNCTION_ROW], "eval")
    assert [program.id, function.id] == ["livecodebench/abc1", "livecodebench/2"]
    assert program.columns["tests"] == [{"input": "1 2", "output": "3"}, {"input": "5 6", "output": "11"}]
    assert judged(program, "```python\nprint(sum(map(int, input().split())))\n```") == 1.0
    assert judged(program, "print(3)") == 0.0
    assert FUNCTION_ROW["starter_code"] in function.prompt
    body = "class Solution:\n    def pairs(self, nums: List[int]) -> List[List[int]]:\n        return "
    assert judged(function, f"{body}[(n, 2 * n) for n in nums]") == 1.0  # this benchmark accepts tuples as lists
    assert judged(function, f"{body}[[n, n] for n in nums]") == 0.0


def test_a_window_of_days():
    def kept(**window):
        return [problem.id for problem in TASKS["livecodebench"].read([STDIN_ROW, FUNCTION_ROW], "eval", **window)]

    assert kept(since="2024-08-17", until="2024-08-17") == ["livecodebench/abc1"]  # both ends are included
    assert kept(since="2024-08-18") == ["livecodebench/2"]
    assert kept(until="2024-08-16") == []
    with pytest.raises(ConfigError, match="since and until are days"):
        kept(since="August")
    with pytest.raises(DataError, match="livecodebench row 1 has the date None"):
        TASKS["livecodebench"].read([STDIN_ROW | {"contest_date": None}], "eval", since="2024-01-01")


def test_packed_test_cases_can_contain_only_text():
    class Evil:
        def __reduce__(self):
            return os.system, ("true",)

    row = STDIN_ROW | {"private_test_cases": base64.b64encode(zlib.compress(pickle.dumps(Evil()))).decode()}
    with pytest.raises(DataError, match=r"it would call posix\.system"):
        TASKS["livecodebench"].read([row], "eval")
    with pytest.raises(DataError, match="test cases that cannot be read"):
        TASKS["livecodebench"].read([STDIN_ROW | {"private_test_cases": "?"}], "eval")


def test_packed_test_cases_are_not_unpacked_beyond_a_limit():
    """Count the size of a gibibyte packed in a megabyte, and of texts just above and below the limit."""
    bomb = base64.b64encode(zlib.compress(bytes(1 << 30), 9)).decode()
    tracemalloc.start()
    with pytest.raises(
        DataError, match="livecodebench row 1 has test cases of more than 512 MiB once unpacked; remove"
    ):
        TASKS["livecodebench"].read([STDIN_ROW | {"private_test_cases": bomb}], "eval")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


def test_a_pickle_with_anything_but_one_text_raises():
    huge = b"\x80\x02X\x02\x00\x00\x00[]r\xff\xff\xff\x7f."  # a memo of 2^31 places, which unpickling would allocate
    texts = pickle.dumps(("[]", "[]"))
    for data, read in ((huge, True), (texts, False), (pickle.dumps(7), False), (pickle.dumps("[]")[:-1], False)):
        row = STDIN_ROW | {"private_test_cases": base64.b64encode(zlib.compress(data)).decode()}
        if read:
            assert len(TASKS["livecodebench"].read([row], "eval")[0].columns["tests"]) == 1
        else:
            with pytest.raises(DataError, match="livecodebench row 1 has test cases that cannot be read"):
                TASKS["livecodebench"].read([row], "eval")


def test_error_names_the_row_of_a_call_that_is_not_json():
    row = FUNCTION_ROW | {"public_test_cases": json.dumps([case("x", "1")])}
    with pytest.raises(DataError, match="livecodebench row 1: a test of a function has an input or output that is not"):
        TASKS["livecodebench"].read([row], "eval")


@isolated
def test_codeforces():
    row = {
        "id": "1A",
        "title": "Any half",
        "description": "Print two numbers with this sum.",
        "input_format": "One number.",
        "examples": [{"input": "4", "output": "2 2"}],
        "official_tests": [{"input": "7", "output": "3 4"}],
        "generated_checker": "import sys\nprint(int(sum(map(int, open(sys.argv[3]).read().split())) == int(open(sys.argv[1]).read())))",
        "contest_start": int(datetime(2024, 5, 1, tzinfo=UTC).timestamp()),
    }  # fmt: skip
    (problem,) = TASKS["codeforces"].read([row], "eval", since="2024-05-01", until=date(2024, 5, 1).isoformat())
    assert problem.id == "codeforces/1A"
    assert "Input\nOne number." in problem.prompt
    assert judged(problem, "n = int(input())\nprint(1, n - 1)") == 1.0
    assert judged(problem, "n = int(input())\nprint(1, n)") == 0.0
    (plain,) = TASKS["codeforces"].read([row | {"generated_checker": None}], "eval")
    assert judged(plain, "n = int(input())\nprint(1, n - 1)") == 0.0
    (untested,) = TASKS["codeforces"].read([row | {"official_tests": None}], "eval")
    assert judged(untested, "print(1)") is None
    with pytest.raises(DataError, match="codeforces row 1 has no 'description'"):
        TASKS["codeforces"].read([{}], "eval")


def solved(name, path, splits):
    problems = [problem for split in splits for problem in TASKS[name].problems(split, 2000, 0, path=str(path))]
    return [problem.id for problem in problems if judged(problem, problem.columns["solution"]) == 1.0], len(problems)


@isolated
@pytest.mark.slow
@pytest.mark.skipif(not (REAL / "mbpp").exists(), reason="MBPP and HumanEval are not at hand")
def test_the_reference_solutions_of_the_real_data_pass():
    right, all_of_them = solved("humaneval", REAL / "humaneval" / "HumanEval.jsonl", ["eval"])
    assert (all_of_them, len(right) >= 0.99 * all_of_them) == (164, True)
    right, all_of_them = solved("mbpp", REAL / "mbpp" / "mbpp.jsonl", ["train", "eval"])
    assert (all_of_them, len(right) >= 0.99 * all_of_them) == (964, True)
