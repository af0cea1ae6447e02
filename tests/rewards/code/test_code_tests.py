"""The formats of tests in datasets: the rewards of each, and the problems with which no completion can be scored."""

# ruff: noqa: E501 - one format per line

import json
import os
import re
from pathlib import Path

import pytest

from gvpo.rewards import RewardBatch, RewardPool, code_reward, code_tests
from gvpo.rewards.code.forms import Functions, Programs, read_tests
from gvpo.rewards.sandbox.isolation import isolation_problem
from gvpo.workers.reasons import hearing

isolated = pytest.mark.skipif(bool(isolation_problem()), reason=f"code cannot be isolated: {isolation_problem()}")
REAL = Path(os.environ.get("GVPO_TEST_DATA", Path(__file__).parents[4] / "shared" / "data"))
F = "def f(n):\n    return n + 1"
METHOD = "class Solution:\n    def f(self, n):\n        return n + 1"
PROGRAM = "print(int(input()) + 1)"
CHECK = "def check(candidate):\n    assert candidate(1) == 2"
UNITTEST = "import unittest\nclass TestCases(unittest.TestCase):\n    def setUp(self):\n        self.right = 2\n    def test_one(self):\n        self.assertEqual(f(1), self.right)\n"


def judge(tests, texts, **columns):
    """Return the values of some completions, and the reason of the first."""
    with hearing() as heard:
        values = code_tests(
            texts, tests=[tests] * len(texts), **{name: [v] * len(texts) for name, v in columns.items()}
        )
    return values, heard.get(0, "")


SHAPES = {
    # APPS and TACO: parallel columns, as an object, in a list, or as JSON text; numbers and lines as input
    "apps": ([{"inputs": ["1\n", "2\n"], "outputs": ["2\n", "3\n"]}], PROGRAM, {}),
    "apps, no list": ({"inputs": ["1\n"], "outputs": ["2\n"]}, PROGRAM, {}),
    "apps, json": (json.dumps({"inputs": ["1\n"], "outputs": ["2\n"]}), PROGRAM, {}),
    "apps, repr": (str({"inputs": ["1\n"], "outputs": ["2\n"]}), PROGRAM, {}),
    "apps, lines": ({"inputs": [["1", "2"]], "outputs": [["2"]]}, PROGRAM, {}),
    "apps, numbers": ({"inputs": [1], "outputs": [2]}, PROGRAM, {}),
    "apps, one text": ({"inputs": "1\n", "outputs": "2\n"}, PROGRAM, {}),
    "codecontests": ({"input": ["1", "2"], "output": ["2", "3"]}, PROGRAM, {}),
    # the same with a function: arguments in a list; the correct value may be wrapped in a list
    "apps, function": ({"fn_name": "f", "inputs": [[1], [4]], "outputs": [2, 5]}, F, {}),
    "apps, function, wrapped": (json.dumps({"fn_name": "f", "inputs": [[1]], "outputs": [[2]]}), F, {}),
    "apps, function, method": ({"fn_name": "f", "inputs": [[1]], "outputs": [2]}, METHOD, {}),
    "apps, function, tuple": ({"fn_name": "f", "inputs": [[1]], "outputs": [[1, 2]]}, "def f(n):\n    return n, n + 1", {}),
    # LiveCodeBench and later datasets: cases with a function's name, one argument per line in JSON
    "livecodebench": ([{"input": "1", "output": "2", "testtype": "stdin"}], PROGRAM, {}),
    "livecodebench, function": ([{"input": "1", "output": "2", "testtype": "functional", "metadata": {"func_name": "f"}}], METHOD, {}),
    "livecodebench, entry_point": ([{"input": "1", "output": "2", "testtype": "functional"}], METHOD, {"entry_point": "f"}),
    "apps, entry_point": ({"inputs": [[1], [2]], "outputs": [2, 3]}, METHOD, {"entry_point": "Solution.f"}),
    "function_call, entry_point": ([{"type": "function_call", "input": [1], "output": 2}], F, {"entry_point": "f"}),
    "program with entry_point": ([{"input": "1", "output": "2"}], PROGRAM, {"entry_point": "main"}),
    "stdin with entry_point": ({"type": "stdin_stdout", "inputs": [1], "outputs": [2]}, PROGRAM, {"entry_point": "main"}),
    "test_cases": (json.dumps({"language": "python", "test_cases": [{"type": "stdin_stdout", "input": "1", "output": "2"}]}), PROGRAM, {}),
    "test_cases, function": ({"test_cases": [{"type": "function_call", "fn_name": "f", "input": [1], "output": [2]}]}, F, {}),
    "cases in json": ([json.dumps({"input": "1", "output": "2"})], PROGRAM, {}),
    # MBPP: assertions, also as JSON text
    "mbpp": (["assert f(1) == 2", "assert f(2) == 3"], F, {}),
    "mbpp, json": (json.dumps(["assert f(1) == 2", "assert f(2) == 3"]), F, {}),
    # HumanEval: a function `check` that the tests do not call
    "humaneval": ([CHECK], F, {"entry_point": "f"}),
    "humaneval, called": ([f"{CHECK}\ncheck(f)"], F, {}),
    "humaneval, method": (CHECK, METHOD, {"entry_point": "Solution().f"}),
    # KodCode: test functions as pytest finds them, the code as the module `solution`
    "kodcode": (["def test_a():\n    assert f(1) == 2"], F, {}),
    "kodcode, import": ("from solution import f\ndef test_a():\n    assert f(1) == 2", F, {}),
    "kodcode, module": ("import solution\ndef test_a():\n    assert solution.f(1) == 2", F, {"entry_point": ["f"]}),
    "kodcode, helper": ("def test_all(n, right):\n    assert f(n) == right\ndef test_a():\n    test_all(1, 2)", F, {}),
    "kodcode, called": ("def test_a():\n    assert f(1) == 2\ntest_a()", F, {}),
    "kodcode, class": ("class TestF:\n    def setup_method(self):\n        self.n = 1\n    def test_a(self):\n        assert f(self.n) == 2", F, {}),
    "async": ("async def test_a():\n    assert f(1) == 2", F, {}),
    "asyncio": ("import asyncio\nasync def go():\n    await asyncio.sleep(0)\n    assert f(1) == 2\nasyncio.run(go())", F, {}),
    # BigCodeBench: test cases of unittest
    "bigcodebench": (UNITTEST, F, {}),
    "bigcodebench, main": (f"{UNITTEST}if __name__ == '__main__':\n    unittest.main()", F, {}),
    "main": ("if __name__ == '__main__':\n    assert f(1) == 2", F, {}),
    "exit": ("import sys\nassert f(1) == 2\nsys.exit(0)", F, {}),
}  # fmt: skip


@isolated
@pytest.mark.parametrize("shape", SHAPES)
def test_each_format_rewards_only_correct_code(shape):
    tests, right, columns = SHAPES[shape]
    wrong = right.replace("+ 1", "+ 2")
    assert wrong != right
    assert judge(tests, [right, wrong, "no idea", ""], **columns) == ([1.0, 0.0, 0.0, 0.0], "")


UNSCORABLE = {
    # tests without an assertion about the code
    "comment": (["# no tests"], "pass for an empty program", {}),
    "space": (["  \n"], "pass for an empty program", {}),
    "empty text": ([""], "pass for an empty program", {}),
    "true": ("assert True", "pass for an empty program", {}),
    "number": ("1", "pass for an empty program", {}),
    "helpers": ("def same(a, b):\n    return a == b", "pass for an empty program", {}),
    "never awaited": ("async def go():\n    assert f(1) == 2", "pass for an empty program", {}),
    "never called": ("def run():\n    assert f(1) == 2", "pass for an empty program", {}),
    "caught": ("try:\n    assert f(1) == 2\nexcept Exception:\n    pass", "pass for an empty program", {}),
    "caught, prefix": ("try:\n    assert f(1) == 2\nexcept Exception:\n    pass", "pass for an empty program", {"prefix": "def f(n):\n"}),
    "skipped": (UNITTEST.replace("    def test_one", "    @unittest.skip('later')\n    def test_one"), "pass for an empty program", {}),
    "own function": ("assert f(1) == 2", "name the functions that they call in `entry_point`", {"setup": F}),
    "exits first": ("raise SystemExit\nassert f(1) == 2", "pass for an empty program", {}),
    "prefix": ("assert f(1) is None", "pass for the column `prefix` without a completion", {"prefix": "def f(n):\n    '''Do it.'''\n"}),
    # tests that read no value: two answers that contradict each other pass
    "no assert": ("f(1) == 2", "whether functions return None or 'gvpo'", {}),
    "printed": (["print(f(1) == 2)"], "whether functions return None or 'gvpo'", {}),
    "or true": ("assert f(1) == 2 or True", "compare what is returned, with `assert`", {}),
    "assert of a pair": ("assert (f(1) == 2, 'two')", "whether functions return", {}),
    "no assert, class": ("f(1) == 2", "whether functions return", {"entry_point": "Solution.f"}),
    # tests that fail for every program because they call no function of the code
    "false": ("assert False", "call no function of the code and fail for every program", {}),
    "not written": ("raise NotImplementedError('later')", "every program .NotImplementedError: later.; write tests that", {}),
    "by a text": ("import solution\nassert getattr(solution, 'f')(1) == 2", "name these in `entry_point`", {}),
    "another process": ("import os\nassert os.system('f 1') == 0", "call no function of the code", {}),
    "ends its process": ("import os\nos._exit(0)\nassert f(1) == 2", "the tests end their process", {}),
    "exit": ("exit()\nassert f(1) == 2", "pass for an empty program", {}),
    "generator": ("def test_a():\n    yield f(1) == 2", "pass for an empty program", {}),
    "with itself": ("assert f(1) == f(1)", "whether functions return", {}),
    "not a number": ("assert f(1) != float('nan')", "whether functions return", {}),
    "their own function": (f"{F}\nassert f(1) == 2", "pass for an empty program", {}),
    "at exit": ("import atexit\n@atexit.register\ndef run():\n    assert f(1) == 2", "pass for an empty program", {}),
    "in a thread": ("import threading\ndef run():\n    assert f(1) == 2\nthreading.Thread(target=run).start()", "pass for an empty program", {}),
    # programs that need to print nothing
    "no output": ([{"input": "1", "output": ""}], "accept an empty output", {}),
    "white space": ({"inputs": ["1", "2"], "outputs": ["\n", " "]}, "accept an empty output", {}),
    "any output": ([{"input": "1", "output": "2"}], "accept an empty output", {"checker": "print(1)"}),
    "any word": ([{"input": "1", "output": "2"}], "accepts 'None' and 'gvpo' alike", {"checker": "import sys\nprint(int(bool(open(sys.argv[3]).read())))"}),
    "checker fails": ([{"input": "1", "output": "2"}], "the checker raises an error, or prints no number", {"checker": "raise ValueError"}),
    "prefix prints": ([{"input": "1", "output": "2"}], "pass for the column `prefix` without a completion", {"prefix": "print(2)\n"}),
    # unreadable tests
    "other keys": ([{"in": "", "out": ""}], r"have \['in', 'out'\]; write Python, or objects with `input`", {}),
    "lengths": ({"inputs": ["1", "2"], "outputs": ["2"]}, "2 inputs and 1 outputs", {}),
    "null": ([{"input": "1", "output": None}], "a test's `output` is null", {}),
    "pairs": ([["1\n", "2\n"]], r'lists of texts in a list; write each pair as an object, such as \{"input"', {}),
    "pairs that are not Python": ([["3 4", "7"], ["1 2", "3"]], "lists of texts in a list", {}),
    "pairs in json": ('[["one", "two"]]', "lists of texts in a list", {}),
    "unnamed": ([{"input": "1", "output": "2", "testtype": "functional"}], "name no function; name it in `entry_point`", {}),
    "no runs": ({"inputs": [], "outputs": []}, "there are no tests", {}),
    "kind": ([1, 2], "neither Python nor objects but int", {}),
    "mixed": (["assert f(1) == 2", {"input": "1", "output": "2"}], "neither Python nor objects but dict, str", {}),
    "not text": ([{"input": {"a": 1}, "output": "2"}], "input or output is a dict", {}),
    "not json": ([{"input": "x", "output": "2", "fn_name": "f"}], "one argument per line in JSON", {}),
    "two functions": ([{"input": [1], "output": 2, "fn_name": name} for name in "fg"], r"call \['f', 'g'\]", {}),
    "no name": ([{"input": [1], "output": 2, "fn_name": "f(x)"}], "not the name of a function", {}),
    "not python": ("assert (", "not Python", {"entry_point": "f"}),
    "not python, setup": ("assert f(1) == 2", "not Python", {"setup": "def ("}),
    "outside": ("return f(1) == 2", "the tests cannot run: SyntaxError", {}),
    "entry_point": ("assert f(1) == 2", "entry_point is 3; write a name", {"entry_point": 3}),
    "checker": ([{"input": "1", "output": "2"}], "no checker 'token'; name one of exact, numbers, tokens", {"checker": "token"}),
    "checker, code": ([{"input": "1", "output": "2"}], "the checker is not Python", {"checker": "int main() {"}),
    # tests that need something that is not available
    "package": ("import numpy\nassert f(1) == 2", "No module named 'numpy'; the sandbox provides only the standard library", {}),
    "package, later": ("def test_a():\n    import numpy\n    assert f(1) == 2", "No module named 'numpy'", {}),
    "module": ("from main import f\nassert f(1) == 2", "the completion as `solution`", {}),
    "name": (f"{CHECK.replace('(1)', '(g(1))')}", "name 'g' is not defined; define it in `setup`, or name it in `entry_point`", {"entry_point": "f"}),
    "fixture": ("def test_a(tmp_path):\n    assert f(1) == 2", "has the argument 'tmp_path', and pytest fixtures are not", {}),
    "candidate": ([CHECK], r"define check\(candidate\).*name one in `entry_point`", {}),
}  # fmt: skip


@isolated
@pytest.mark.parametrize("name", UNSCORABLE)
def test_no_completion_is_scored_with_tests_that_cannot_distinguish_programs(name):
    tests, reason, columns = UNSCORABLE[name]
    values, said = judge(tests, ["no idea", "", F, PROGRAM], **columns)
    assert values == [None] * 4
    assert re.search(reason, said)
    assert "\n" not in said


@isolated
def test_programs_may_end_with_exit_as_under_python():
    tests = [{"input": "1", "output": "2"}]
    assert judge(tests, [f"{PROGRAM}\nexit()", f"{PROGRAM}\nquit(0)", f"{PROGRAM}\nexit(1)"]) == ([1.0, 1.0, 0.0], "")


@isolated
def test_functions_may_have_to_return_nothing_or_anything_else():
    """Only tests that every answer passes are rejected."""
    nothing, something = "def f(n):\n    return None", "def f(n):\n    return 7"
    assert judge("assert f(1) is None", [nothing, something]) == ([1.0, 0.0], "")
    assert judge("assert f(1) is not None", [nothing, something]) == ([0.0, 1.0], "")
    raising = "try:\n    f(1)\n    assert False\nexcept ValueError:\n    pass"
    assert judge(raising, ["def f(n):\n    raise ValueError", something]) == ([1.0, 0.0], "")


@isolated
def test_exceptions_of_the_code_are_distinguished_from_its_end():
    """A process that has ended raises no exception that a test could expect."""
    tests = "try:\n    f(1)\nexcept {}:\n    pass\nelse:\n    raise AssertionError"
    for kind in ("RuntimeError", "OSError", "ZeroDivisionError"):
        raises = f"def f(n):\n    raise {kind}"
        assert judge(tests.format(kind), [raises, "no idea", "import os\nos._exit(0)", F])[0] == [1.0, 0.0, 0.0, 0.0]
    stops = "def f(n):\n    raise StopIteration"
    assert judge("assert all(map(f, [1, 2]))", [F, stops])[0] == [1.0, 0.0]


@isolated
def test_a_wrong_answer_that_makes_tests_raise_a_name_error_is_wrong():
    assert judge("assert f(1) == 2, explain(f)", [F, "def f(n):\n    return 3"], entry_point="f") == ([1.0, 0.0], "")


@isolated
def test_the_reason_reaches_the_verdict_and_other_problems_are_scored():
    batches = [
        RewardBatch("p", ["no idea"] * 9, {"tests": ["# no tests"]}),
        RewardBatch("p", [F], {"tests": "assert f(1) == 2"}),
    ]
    with RewardPool(
        {"code": code_tests, "one": lambda completions, **_: [1.0] * len(completions)}, workers=1, timeout=60
    ) as pool:
        first, second = pool.score(batches)
    assert {verdict.reward for verdict in first} == {None}
    assert first[0].reason.startswith("unscorable: code cannot score the row: the tests pass for an empty program")
    assert [verdict.reward for verdict in second] == [2.0]


@isolated
def test_a_problem_is_checked_once(monkeypatch):
    """A later call does not check it again, unless something that decides has changed."""
    from gvpo.rewards.code import problem

    tried, run = [], problem.run_tests
    monkeypatch.setattr(
        problem, "run_tests", lambda code, *args, **named: tried.append(code) or run(code, *args, **named)
    )
    tests = "assert f(1) == 2  # of this test alone"
    for _ in range(2):
        assert judge(tests, [F, F])[0] == [1.0, 1.0]
    assert tried.count("") == 1
    judge(tests, [F], setup="one = 1")
    code_reward(wall=3)([F], tests=[tests])
    assert tried.count("") == 3
    assert len(tried) == 3 + 3 + 6  # programs without a statement, stubs, and completions


def test_tests_may_be_arrays():
    """pandas reads them as arrays from Parquet files."""

    class Array(list):
        def tolist(self):
            return list(self)

    assert read_tests(Array(["assert f(1) == 2"]), Array(["f"])) == Functions("assert f(1) == 2", ("f",))
    assert read_tests({"input": Array(["1"]), "output": Array(["2"])}) == Programs((("1", "2"),))
    assert read_tests(Array([])) is None


def _humaneval(path=REAL / "humaneval" / "HumanEval.jsonl"):
    return [json.loads(line) for line in path.read_text().splitlines()]


def _raw_humaneval_pays(row):
    """Return the values of the reference, a refusal and an empty answer with HumanEval's own columns."""
    given = row["prompt"]
    texts = [row["canonical_solution"], "    no idea\n", "", "no idea"]
    return judge(row["test"], texts, entry_point=row["entry_point"], prefix=given, setup=given)


@isolated
@pytest.mark.skipif(not (REAL / "humaneval").exists(), reason="HumanEval is missing")
def test_raw_humaneval():
    for row in _humaneval()[::20]:
        assert _raw_humaneval_pays(row) == ([1.0, 0.0, 0.0, 0.0], ""), row["task_id"]


@isolated
@pytest.mark.skipif(not (REAL / "mbpp").exists(), reason="MBPP is missing")
def test_raw_mbpp():
    rows = [json.loads(line) for line in (REAL / "mbpp" / "mbpp.jsonl").read_text().splitlines()]
    for row in rows[::150]:
        paid = judge(row["test_list"], [row["code"], "no idea", ""], setup=row["test_setup_code"])
        assert paid == ([1.0, 0.0, 0.0], ""), row["task_id"]


@isolated
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not (REAL / "humaneval").exists(), reason="HumanEval is missing")
def test_all_of_raw_humaneval():
    paid = {row["task_id"]: _raw_humaneval_pays(row) for row in _humaneval()}
    assert {name: each for name, each in paid.items() if each != ([1.0, 0.0, 0.0, 0.0], "")} == {}
