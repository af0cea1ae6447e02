"""Tests that a script defines but does not run: test functions, test classes and `check(candidate)`.

They are what pytest, unittest and HumanEval's own program would run. Imports the standard library only.
"""

import asyncio
import inspect
import unittest
from collections.abc import Callable, Mapping, Sequence
from typing import Any

unittest.main = lambda *_, **__: None  # type: ignore[assignment]  # scripts end with it, and their tests run below


class Unreadable(Exception):
    """The script defines a test that cannot be run here."""


def run_defined(tests: Sequence[str], module: Mapping[str, Any], names: Sequence[str]) -> None:
    """Run tests that a script has defined and not run itself.

    Args:
        tests: the names of its functions and classes.
        module: what it has defined.
        names: the functions of the completion that it may call.

    Raises:
        Unreadable: a test needs what nobody here can give.
        Exception: what the first test that fails raised.
    """
    for test in [module[name] for name in tests if name in module]:
        if inspect.isclass(test):
            _run_class(test)
        elif getattr(test, "__name__", "") == "check":
            _call(test, _candidate(module, names))
        elif callable(test):
            _run_function(test)


def _run_class(test: type) -> None:
    if issubclass(test, unittest.TestCase):
        result = _Result()
        unittest.defaultTestLoader.loadTestsFromTestCase(test).run(result)
        if result.first is not None:
            raise result.first
    elif test.__name__.startswith("Test"):
        for name in [name for name in dir(test) if name.startswith("test")]:
            _run_method(test, name)


class _Result(unittest.TestResult):
    """Keeps the first exception; of a test that must fail and did not, one that says so."""

    first: BaseException | None = None

    def addError(self, test: Any, err: Any) -> None:  # noqa: N802 - unittest names it
        """Note what a test or a fixture raised."""
        self.first = self.first or err[1]

    addFailure = addError  # noqa: N815

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:  # noqa: N802
        """Note what a part of a test raised, if it did."""
        self.first = self.first or (err and err[1])

    def addUnexpectedSuccess(self, test: Any) -> None:  # noqa: N802
        """Note that a test passed which says that it fails."""
        self.first = self.first or AssertionError(f"{test} passed, which it must not")


def _run_method(test: type, name: str) -> None:
    """Run a method of a test class of pytest, on an object of its own."""
    own = test()
    getattr(own, "setup_method", _nothing)()
    try:
        _run_function(getattr(own, name))
    finally:
        getattr(own, "teardown_method", _nothing)()


def _nothing() -> None:
    """Stand in for a method that a class does not have."""


def _run_function(test: Callable[..., Any]) -> None:
    needed = _needed(test)
    if needed:
        raise Unreadable(
            f"the test {test.__name__} has the argument {needed[0]!r}, and fixtures of pytest are not read; "
            "write tests without arguments"
        )
    _call(test)


def _needed(test: Callable[..., Any]) -> list[str]:
    """The arguments that a function cannot be called without."""
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(test).parameters.values()
    return [each.name for each in parameters if each.default is each.empty and each.kind not in kinds]


def _candidate(module: Mapping[str, Any], names: Sequence[str]) -> Any:
    if len(names) != 1:
        raise Unreadable(
            f"the tests define check(candidate) and the functions to test are {names}; name one in `entry_point`"
        )
    return module[names[0]]


def _call(test: Callable[..., Any], *arguments: Any) -> None:
    """Call a test, and wait for one that is `async def`."""
    returned = test(*arguments)
    if inspect.iscoroutine(returned):
        asyncio.run(returned)
