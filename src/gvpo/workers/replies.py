"""Replies of a worker to its calls, on both sides of the pipe: as JSON there, as `Reply` here."""

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gvpo.errors import GvpoError

MAX_DETAIL, MAX_TRACEBACK = 300, 20_000
OWN = ("gvpo.workers.", "gvpo.environments.serving")
"""Beginnings of the names of modules whose frames a traceback does not begin with."""


@dataclass(frozen=True)
class Reply:
    """The result of a call: values, or a failure of the whole call.

    Args:
        values: One per row; None if the function abstained or its value cannot be used.
        reasons: One per row: (kind, detail) if the value cannot be used, else None.
        failed: (kind, detail) of a failure of the whole call; values and reasons are then empty.
        traceback: Traceback of an exception.
        again: True if the rows may succeed when they are called one by one.
        spent: True if the worker ran out of memory or ended, so that the call may succeed in another worker.
        stated: True if gvpo itself raised the error, which is then about the data or the machine.
        state: State of the function after the call, if it keeps one.
        answer: Answer of an environment; values and reasons are then empty.
        seconds: Duration of the call.
        withdrawn: True if the worker skipped the call because the pool withdrew it.
    """

    values: Sequence[float | None] = ()
    reasons: Sequence[tuple[str, str] | None] = ()
    failed: tuple[str, str] | None = None
    traceback: str = ""
    again: bool = False
    spent: bool = False
    stated: bool = False
    state: str | None = None
    answer: Mapping[str, Any] | None = None
    seconds: float = 0.0
    withdrawn: bool = False


def read_replies(message: Mapping[str, Any]) -> list[Reply]:
    """Return the replies in a message of a worker.

    Raises:
        KeyError, TypeError, ValueError: If it does not contain replies, because something else wrote into the pipe.
    """
    pairs = zip(message["replies"], message["seconds"], strict=True)
    return [_read(reply, float(seconds)) for reply, seconds in pairs]


def _read(message: Mapping[str, Any], seconds: float) -> Reply:
    if "failed" in message:
        kind, detail = message["failed"]
        again, spent, stated = (bool(message.get(name)) for name in ("again", "spent", "stated"))
        trace = message.get("traceback", "")
        return Reply((), (), (kind, detail), trace, again, spent, stated, seconds=seconds)
    if message.get("withdrawn"):
        return Reply(withdrawn=True)
    if "answer" in message:
        return Reply(answer=dict(message["answer"]), seconds=seconds)
    reasons = [None if reason is None else (reason[0], reason[1]) for reason in message["reasons"]]
    state = message.get("state")
    return Reply(message["values"], reasons, state=None if state is None else str(state), seconds=seconds)


def failure(kind: str, detail: str) -> dict[str, Any]:
    """Return the reply for a call that gave no values."""
    return {"failed": [kind, detail]}


def raised(error: BaseException) -> dict[str, Any]:
    """Return the reply for an exception. Errors of gvpo are about the data or the machine, never about a completion."""
    return {
        "failed": ["exception", f"raised {one_line(error)}"],
        "traceback": traceback_of(error),
        "again": True,
        "spent": isinstance(error, MemoryError),
        "stated": isinstance(error, GvpoError),
    }


def one_line(error: BaseException, most: int = MAX_DETAIL) -> str:
    """Return `ValueError: message` on one line of limited length, however badly the exception behaves."""
    text = " ".join("".join(traceback.format_exception_only(error)).split())
    return text if len(text) <= most else text[:most] + "..."


def traceback_of(error: BaseException) -> str:
    """Return the traceback without the worker's own frames."""
    inner = error.__traceback__
    while inner is not None and str(inner.tb_frame.f_globals.get("__name__")).startswith(OWN):
        inner = inner.tb_next
    return "".join(traceback.format_exception(type(error), error, inner))[-MAX_TRACEBACK:]
