"""A worker process: reads calls from one pipe, runs reward functions, writes their values to another.

Whatever a reward does, the worker either replies or ends; the pool sees which, and the deadline is the pool's. Standard
output and error belong to the rewards. The worker ends when the pipe of calls closes: when the pool, or the process
that holds it, is gone. Knows nothing of groups, weights or verdicts.
"""

import asyncio
import contextlib
import faulthandler
import inspect
import json
import math
import numbers
import os
import pickle
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from gvpo.rewards.reasons import UNSCORABLE, hearing
from gvpo.rewards.wire import HEADER_SIZE, frame, frame_length

ORPHAN_GRACE = 5.0
"""Seconds past a call's deadline after which a worker that nobody killed ends by itself: its trainer is dead."""
MAX_DETAIL, MAX_TRACEBACK = 300, 20_000


def main(requests: int, replies: int) -> NoReturn:
    """Serve until the pipe of calls closes.

    Args:
        requests: file descriptor that calls are read from.
        replies: file descriptor that values are written to.
    """
    with contextlib.suppress(EOFError, BrokenPipeError):
        _serve(requests, replies)
    os._exit(0)  # a reward's threads and exit handlers are not waited for


def _serve(requests: int, replies: int) -> None:
    _keep_from_children(requests, replies)
    _volunteer_to_be_killed()
    setup = pickle.loads(_read(requests))
    _limit_memory(setup["memory_limit"])
    functions, problem = _load(setup["functions"])
    _write(replies, {"problem": problem})
    calls = _Calls(functions, patience=setup["timeout"] + ORPHAN_GRACE)
    while True:
        _write(replies, calls.answer(_read(requests)))


def _keep_from_children(*descriptors: int) -> None:
    """Programs and forks that a reward starts must not hold the pipes: the pool would not see the worker end."""
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)

    def close() -> None:
        for descriptor in descriptors:
            with contextlib.suppress(OSError):
                os.close(descriptor)

    os.register_at_fork(after_in_child=close)


def _volunteer_to_be_killed() -> None:
    """When memory runs out, Linux shall end this process, not the trainer."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _limit_memory(limit: int | None) -> None:
    """Beyond the limit allocations fail with MemoryError; address space that is only reserved does not count."""
    if limit is not None:
        with contextlib.suppress(ImportError, OSError, ValueError):
            import resource

            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _load(pickled: Mapping[str, bytes]) -> tuple[list[Callable[..., Any]], dict[str, str] | None]:
    """The functions in order, and what is wrong with the first that does not load."""
    functions = []
    for name, data in pickled.items():
        try:
            functions.append(pickle.loads(data))
            getattr(functions[-1], "prepare", _nothing)()
        except BaseException as error:
            return [], {"name": name, "error": _one_line(error), "traceback": _traceback(error)}
    return functions, None


def _nothing() -> None:
    """What a function without `prepare` needs first."""


class _Calls:
    """Runs calls one after the other. All coroutines share one event loop, as clients with connections expect."""

    def __init__(self, functions: Sequence[Callable[..., Any]], patience: float) -> None:
        self._functions, self._patience = functions, patience
        self._runner: asyncio.Runner | None = None
        self._pid = os.getpid()
        self._nowhere = Path(os.devnull).open("w")  # noqa: SIM115 - open as long as the process lives

    def answer(self, request: bytes) -> dict[str, Any]:
        """The reply to a call: values, or why there are none."""
        function, rows, arguments = pickle.loads(request)
        faulthandler.dump_traceback_later(self._patience, exit=True, file=self._nowhere)
        try:
            with hearing() as heard:
                returned = self._run(self._functions[function], arguments)
            reply = checked(returned, rows, heard)
        except BaseException as error:
            reply = failure("exception", f"raised {_one_line(error)}", _traceback(error), again=True)
        if os.getpid() != self._pid:
            os._exit(0)  # the reward forked and both returned; the parent replies
        faulthandler.cancel_dump_traceback_later()
        return reply

    def _run(self, function: Callable[..., Any], arguments: Mapping[str, Sequence[Any]]) -> Any:
        returned = function(**arguments)
        if inspect.isawaitable(returned):
            self._runner = self._runner or asyncio.Runner()
            returned = self._runner.run(_awaited(returned))
        return returned


async def _awaited(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def checked(returned: Any, rows: int, heard: Mapping[int, str] | None = None) -> dict[str, Any]:
    """The reply for what a reward function returned.

    Args:
        returned: anything; `rows` numbers (numpy's and 0-d tensors too) or None are right.
        rows: completions that it was given.
        heard: the reasons that it gave for rows without a value (`reasons.no_value`).

    Returns:
        `values`, and `reasons` as [kind, detail] or None, one each a row; or a failure of all rows.
    """
    try:
        listed = None if isinstance(returned, str | bytes | Mapping) else list(returned)
    except TypeError:
        listed = None
    if listed is None:
        return failure("wrong type", f"returned {_kind(returned)}; return a list of one number or None a completion")
    if len(listed) != rows:
        return failure("wrong length", f"returned {len(listed)} values for {rows} completions")
    pairs = [_value(value, (heard or {}).get(row)) for row, value in enumerate(listed)]
    return {"values": [value for value, _ in pairs], "reasons": [reason for _, reason in pairs]}


def failure(kind: str, detail: str, trace: str = "", *, again: bool = False) -> dict[str, Any]:
    """The reply for a call that gave no values; `again`: its rows may do better alone."""
    return {"failed": [kind, detail], "traceback": trace, "again": again}


def _value(value: Any, told: str | None = None) -> tuple[float | None, tuple[str, str] | None]:
    """Return a row's value, and why it cannot be used; `told` is the reward's own reason for None."""
    if value is None:
        return None, (UNSCORABLE, f"cannot judge the row: {told}") if told else None
    with contextlib.suppress(TypeError, ValueError, RuntimeError):
        value = value.item() if hasattr(value, "item") else value
    if not isinstance(value, numbers.Number) or isinstance(value, complex):
        return None, ("wrong type", f"returned {_kind(value)} where a number or None belongs")
    try:
        number = float(value)  # type: ignore[arg-type]  # every other registered Number converts
    except OverflowError:
        number = math.inf
    if math.isnan(number):
        return None, ("nan", "returned nan")
    if math.isinf(number):
        return None, ("infinite", f"returned {number}")
    return number, None


def _kind(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def _one_line(error: BaseException) -> str:
    """`ValueError: what it says`, on one line and not too long, however badly the exception behaves."""
    text = " ".join("".join(traceback.format_exception_only(error)).split())
    return text if len(text) <= MAX_DETAIL else text[:MAX_DETAIL] + "..."


def _traceback(error: BaseException) -> str:
    """The traceback without this module's own frames."""
    inner = error.__traceback__
    while inner is not None and inner.tb_frame.f_code.co_filename == __file__:
        inner = inner.tb_next
    return "".join(traceback.format_exception(type(error), error, inner))[-MAX_TRACEBACK:]


def _read(descriptor: int) -> bytes:
    return _read_exactly(descriptor, frame_length(_read_exactly(descriptor, HEADER_SIZE)))


def _read_exactly(descriptor: int, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = os.read(descriptor, min(size - len(data), 1 << 20))
        if not part:
            raise EOFError
        data += part
    return bytes(data)


def _write(descriptor: int, reply: Mapping[str, Any]) -> None:
    rest = memoryview(frame(json.dumps(reply).encode()))
    while rest:
        rest = rest[os.write(descriptor, rest) :]
