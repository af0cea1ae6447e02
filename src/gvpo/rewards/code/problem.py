"""One problem of `code_tests`: does a program pass its tests, and can the tests distinguish programs at all?"""

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from typing import Any

from gvpo.errors import RewardError
from gvpo.rewards.code.checkers import CHECKERS
from gvpo.rewards.code.forms import Functions, Programs, TestsError, parse_quietly, read_tests
from gvpo.rewards.sandbox.guest import BROKEN
from gvpo.rewards.sandbox.limits import Limits
from gvpo.rewards.sandbox.run import RESERVE, run_program, run_tests
from gvpo.workers.deadline import seconds_left

ACCEPTED = 1.0
"""Minimum number that a problem's own checker prints for a correct output."""
CONTRADICTING = (None, "gvpo")
"""Outputs of which at least one is wrong for any problem."""
_faults: dict[str, str] = {}
"""Faults of the problems that were used in this process, by a hash of everything that decides them."""


@dataclass(frozen=True)
class CodeProblem:
    """The tests of a problem, with the code and limits that they need.

    Args:
        tests: Tests of functions or of a program.
        setup: Python code that the tests need.
        prefix: Beginning of the code.
        checker: Name in `CHECKERS`, or the source of a program.
        limits: Limits of each run.
    """

    tests: Programs | Functions
    setup: str
    prefix: str
    checker: str
    limits: Limits

    def passes(self, code: str) -> bool:
        """Return whether a program passes all tests."""
        if isinstance(self.tests, Functions):
            return self.run_tests(code)[0]
        budget = _Budget(len(self.tests.runs))
        return all(self._prints(code, *run, budget) for run in self.tests.runs)

    def run_tests(self, code: str) -> tuple[bool, str]:
        """Run the tests of functions; see `sandbox.run.run_tests`."""
        assert isinstance(self.tests, Functions)
        script, names, defined = self.tests.script, self.tests.names, self.tests.defined
        code = f"{code}\n{self.tests.ending}" if self.tests.ending else code
        return run_tests(code, script, names, self.limits, setup=self.setup, defined=defined)

    def accepts(self, given: str, right: str, output: str) -> bool:
        """Return whether an output is correct according to the problem's checker."""
        if self.checker in CHECKERS:
            return CHECKERS[self.checker](output, right)
        points = self.checked(given, right, output)
        return points is not None and points >= ACCEPTED

    def checked(self, given: str, right: str, output: str) -> float | None:
        """Return the number that the problem's own checker prints; None if it fails or prints none."""
        files = {"input.txt": given, "answer.txt": right, "output.txt": output}
        judged = run_program(self.checker, "", self.limits, files=files)
        if judged.code != 0:
            return None
        try:
            return float((judged.output or b"").split()[0])
        except (IndexError, ValueError):
            return None

    def _prints(self, code: str, given: str, right: str, budget: "_Budget") -> bool:
        run = run_program(code, given, self.limits)
        if not budget.covers(run.seconds) or run.code != 0 or run.output is None:
            return False
        return self.accepts(given, right, run.output.decode(errors="replace"))


class _Budget:
    """The time for all tests of one completion, which end before the pool gives up the call.

    Args:
        tests: Number of tests.
    """

    def __init__(self, tests: int) -> None:
        self._tests, self._done, self._own = tests, 0, 0.0
        self._started, self._seconds = time.monotonic(), seconds_left() - RESERVE

    def covers(self, seconds: float) -> bool:
        """Count a test in which the completion's program used `seconds`; return whether time is left.

        Raises:
            RewardError: If the tests would not fit even if the program needed no time.
        """
        self._done, self._own = self._done + 1, self._own + seconds
        taken = time.monotonic() - self._started
        if taken >= self._seconds and (taken - self._own) / self._done * self._tests >= self._seconds:
            raise RewardError(f"{self._tests} tests need more time than a completion has; increase rewards.timeout")
        return taken < self._seconds


def scorable(
    limits: Limits, tests: Any, names: Any, setup: str | None, prefix: str | None, checker: str | None
) -> CodeProblem | str | None:
    """Read a problem and check, when it is first used, whether its tests can fail.

    Args:
        limits: Limits of each run.
        tests: Column `tests` of `code_tests`.
        names: Column `entry_point`.
        setup: Column `setup`.
        prefix: Column `prefix`.
        checker: Column `checker`.

    Returns:
        The problem; the reason why no completion can be scored with it; or None if it has no tests.

    Raises:
        RewardError: If the sandbox cannot run code here.
    """
    try:
        form = read_tests(tests, names, setup or "")
        if form is None:
            return None
        problem = CodeProblem(form, setup or "", prefix or "", _checker(checker), limits)
    except TestsError as error:
        return str(error)
    key = hashlib.sha256(json.dumps(asdict(problem)).encode("utf-8", "surrogatepass")).hexdigest()
    if key not in _faults:
        _faults[key] = _fault(problem)
    return _faults[key] or problem


def _checker(checker: str | None) -> str:
    """Return the checker if it is a name in `CHECKERS` or a program.

    Raises:
        TestsError: If it is neither.
    """
    if not checker or checker in CHECKERS:
        return checker or "tokens"
    try:
        body = parse_quietly(checker).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise TestsError(f"the checker is not Python ({error}); correct the column `checker`") from None
    if checker.isidentifier() or not body:
        raise TestsError(f"there is no checker {checker!r}; name one of {', '.join(CHECKERS)}, or give a program")
    return checker


def _fault(problem: CodeProblem) -> str:
    """Return why no completion can be scored with a problem; "" if completions can be scored.

    Tests are useless if they pass for a program without a statement, for outputs that contradict each other, or for the
    beginning of the code without a completion.
    """
    programs = isinstance(problem.tests, Programs)
    fault = _fault_of_outputs(problem) if programs else _fault_of_tests(problem)
    if not fault and problem.prefix.strip() and problem.passes(problem.prefix):
        return "the tests pass for the column `prefix` without a completion; correct `tests` or `prefix`"
    return fault


def _fault_of_outputs(problem: CodeProblem) -> str:
    assert isinstance(problem.tests, Programs)
    runs = problem.tests.runs
    if all(problem.accepts(given, right, "") for given, right in runs):
        return "the tests accept an empty output, so every program passes; correct `tests` or `checker`"
    own = problem.checker not in CHECKERS
    if own and runs and problem.checked(*runs[0], runs[0][1]) is None:
        return "the checker raises an error, or prints no number, for the tests' own output; correct `checker`"
    if own and all(problem.accepts(*run, output) for output in map(str, CONTRADICTING) for run in runs):
        return f"the checker accepts {' and '.join(map(repr, map(str, CONTRADICTING)))} alike; correct `checker`"
    return ""


def _fault_of_tests(problem: CodeProblem) -> str:
    assert isinstance(problem.tests, Functions)
    empty, said = problem.run_tests("")
    if not said:  # not recorded, since the machine may be the cause
        raise RewardError("the tests do not end for an empty program; correct `tests`, or give them more seconds")
    if said.startswith(BROKEN):
        return _cannot_run(said.removeprefix(f"{BROKEN}: "))
    if empty:
        called = f"`{'`, `'.join(problem.tests.names)}`" if problem.tests.names else "no function of the code"
        return (
            f"the tests pass for an empty program, so they cannot fail (they call {called}); "
            "write tests that fail for wrong code, and name the functions that they call in `entry_point`"
        )
    if not problem.tests.names:
        return (
            "the tests call no function of the code and fail for every program "
            f"({said.partition(': ')[2].rstrip(': ')}); write tests that call its functions, "
            "or name these in `entry_point`"
        )
    if all(problem.passes(problem.tests.stub(value)) for value in CONTRADICTING):
        return (
            f"the tests pass whether functions return {' or '.join(map(repr, CONTRADICTING))}, so no value is wrong; "
            "write tests that compare what is returned, with `assert`"
        )
    return ""


def _cannot_run(said: str) -> str:
    """Return why tests cannot run, and how to fix them."""
    kind, _, text = said.partition(": ")
    if kind in ("ModuleNotFoundError", "ImportError"):
        return (
            f"the tests cannot run: {text}; the sandbox provides only the standard library, and the completion as "
            "`solution`; rewrite the tests, or remove the problem"
        )
    if kind == "NameError":
        return f"the tests cannot run: {text}; define it in `setup`, or name it in `entry_point` if it is the code's"
    return f"the tests cannot run: {text if kind == 'Unreadable' else f'{said}; correct the data'}"
