"""Scoring of code: the output of a program, and whether functions pass tests. The code's own claims do not count."""

import contextlib
import os
import select
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gvpo.errors import RewardError
from gvpo.rewards.sandbox.guest import BROKEN, PASSED
from gvpo.rewards.sandbox.isolation import is_isolated
from gvpo.rewards.sandbox.limits import Limits
from gvpo.rewards.sandbox.process import GuestExit, Jail, sealed
from gvpo.workers.deadline import seconds_left

START_SECONDS = 10.0
"""Maximum number of seconds to build a sandbox on a loaded machine, in addition to the run's own time."""
RESERVE = 0.75
"""Seconds before the end of the pool's call at which a run ends: time to end sandboxes and to write a reply."""


@dataclass(frozen=True)
class Run:
    """Result of a run of a program.

    Args:
        output: Printed output; None if it exceeded the limit.
        code: Exit code, minus a signal, or None if it ran out of time.
        seconds: Seconds that it ran, without the time to build its sandbox.
    """

    output: bytes | None
    code: int | None
    seconds: float = 0.0


def run_program(
    code: str, stdin: str = "", limits: Limits | None = None, *, files: Mapping[str, str] | None = None
) -> Run:
    """Run a Python program in a sandbox.

    Args:
        code: Source of the program.
        stdin: Input of the program.
        limits: Limits; default `Limits()`.
        files: Texts by name, in its directory; their names in order are its arguments.

    Returns:
        Its output and how it ended.

    Raises:
        RewardError: If code cannot be isolated here, or the sandbox cannot be built.
    """
    limits, files = limits or Limits(), files or {}
    payload = {"kind": "program", "code": code, "files": dict(files), "arguments": list(files)}
    with contextlib.ExitStack() as stack:
        source = sealed(stdin.encode("utf-8", "surrogatepass"))
        output, printed = os.pipe()
        stack.callback(os.close, output)
        try:
            jail = stack.enter_context(Jail(payload, limits, isolate=is_isolated(), stdin=source, stdout=printed))
        finally:
            os.close(source)
            os.close(printed)
        deadline = _deadline(limits)
        text = _read(output, limits.output, deadline)
        ended = _checked(jail.end() if text is None else jail.wait(deadline - time.monotonic()))
        return Run(text, ended.code, ended.seconds)


def run_tests(
    code: str,
    tests: str,
    names: Sequence[str],
    limits: Limits | None = None,
    *,
    setup: str = "",
    defined: Sequence[str] = (),
) -> tuple[bool, str]:
    """Run tests of the functions of some code; code and tests run in separate sandboxes.

    Args:
        code: Code that defines the functions.
        tests: Python code that raises if they are wrong.
        names: Functions that the tests call, perhaps as `Class.method`; no other name of the code reaches the tests.
        limits: Limits of each of the two; default `Limits()`.
        setup: Python code that the tests need; its names that are in `names` are replaced by the code's.
        defined: Test functions and classes that the tests define and do not run themselves.

    Returns:
        Whether they passed, and the problem if not: FAILED or BROKEN (the tests themselves cannot run) with an
        exception, or "" if they did not end.

    Raises:
        RewardError: If code cannot be isolated here, or a sandbox cannot be built (in time).
    """
    limits = limits or Limits()
    isolate, functions = is_isolated(), {"kind": "functions", "code": code}
    asked = {"kind": "tests", "tests": tests, "setup": setup, "names": list(names), "defined": list(defined)}
    with contextlib.ExitStack() as stack:
        requests, replies, verdict = os.pipe(), os.pipe(), os.pipe()
        stack.callback(os.close, verdict[0])
        try:
            theirs = stack.enter_context(Jail(functions, limits, isolate=isolate, stdin=requests[0], stdout=replies[1]))
            ours = stack.enter_context(
                Jail(asked, limits, isolate=isolate, stdin=replies[0], stdout=requests[1], verdict=verdict[1])
            )
        finally:
            for descriptor in (*requests, *replies, verdict[1]):
                os.close(descriptor)
        started = time.monotonic()
        said = _read(verdict[0], 1 << 16, _deadline(limits))
        exit_code = _checked(ours.wait(1.0) if said == b"" else ours.end()).code
        if said == b"" and exit_code is not None and exit_code >= 0:
            return False, f"{BROKEN}: Unreadable: the tests end their process; write tests that return"
        if said is None and _checked(theirs.end()).seconds < (time.monotonic() - started) / 2:
            raise RewardError("the sandbox for code did not start in time; increase rewards.timeout")
    text = (said or b"").decode(errors="replace")
    return text == PASSED, text


def _deadline(limits: Limits) -> float:
    """Return when a run has to end: after its own time, or before the pool's call does."""
    return time.monotonic() + min(limits.wall + START_SECONDS, seconds_left() - RESERVE)


def _checked(ended: GuestExit) -> GuestExit:
    if ended.error:
        raise RewardError(f"the sandbox for code cannot be built: {ended.error}; see `gvpo docs code-tests`")
    return ended


def _read(descriptor: int, limit: int, deadline: float) -> bytes | None:
    """Read until the last writer is gone; return None if it writes more than `limit` or takes too long."""
    data, poll = bytearray(), select.poll()
    poll.register(descriptor, select.POLLIN)
    while len(data) <= limit and (left := deadline - time.monotonic()) > 0:
        if poll.poll(left * 1000):
            part = os.read(descriptor, 1 << 16)
            if not part:
                return bytes(data)
            data += part
    return None
