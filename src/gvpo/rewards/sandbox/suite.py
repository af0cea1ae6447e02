"""Tests that a script defines but does not run: test functions, test classes and `check(candidate)`.

These are the tests that pytest, unittest and HumanEval's own program would run. Imports only the standard library.
"""

import asyncio
import inspect
import unittest
from collections.abc import Callable, Mapping, Sequence
from typing import Any

unittest.main = lambda *_, **__: None  # type: ignore[assignment]  # scripts end with it; their tests run below


class Unreadable(Exception):
    """The script defines a test that cannot be run here."""


def run_defined(tests: Sequence[str], module: Mapping[str, Any], names: Sequence[str]) -> None:
    """Run tests that a script has defined and not run itself.

    Args:
        tests: Names of its functions and classes.
        module: Namespace that the script has defined.
        names: Functions of the completion that it may call.

    Raises:
        Unreadable: If a test needs something that is not available here.
        Exception: The exception of the first test that fails.
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
    """Keeps the first exception; for a test that must fail and passed, it creates one."""

    first: BaseException | None = None

    def addError(self, test: Any, err: Any) -> None:  # noqa: N802 - unittest names it
        """Record the exception of a test or a fixture."""
        self.first = self.first or err[1]

    addFailure = addError  # noqa: N815

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:  # noqa: N802
        """Record the exception of a part of a test, if there is one."""
        self.first = self.first or (err and err[1])

    def addUnexpectedSuccess(self, test: Any) -> None:  # noqa: N802
        """Record that a test passed although it is marked as an expected failure."""
        self.first = self.first or AssertionError(f"{test} passed, but was expected to fail")


def _run_method(test: type, name: str) -> None:
    """Run a method of a pytest test class on a new object."""
    own = test()
    getattr(own, "setup_method", lambda: None)()
    try:
        _run_function(getattr(own, name))
    finally:
        getattr(own, "teardown_method", lambda: None)()


def _run_function(test: Callable[..., Any]) -> None:
    needed = _needed(test)
    if needed:
        raise Unreadable(
            f"the test {test.__name__} has the argument {needed[0]!r}, and pytest fixtures are not supported; "
            "write tests without arguments"
        )
    _call(test)


def _needed(test: Callable[..., Any]) -> list[str]:
    """Return the arguments that a function requires."""
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
    """Call a test, and wait for it if it is `async def`."""
    returned = test(*arguments)
    if inspect.iscoroutine(returned):
        asyncio.run(returned)
