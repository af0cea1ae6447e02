"""Reward functions in a worker: calls with the rows of a group, and replies with one value per row.

Does not know about groups, weights or verdicts.
"""

import contextlib
import math
import numbers
import pickle
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from gvpo.errors import GvpoError, type_of
from gvpo.workers.awaiting import Awaiting
from gvpo.workers.reasons import UNSCORABLE, hearing
from gvpo.workers.replies import failure, one_line, traceback_of
from gvpo.workers.state import Keeper


class Functions:
    """Functions that a worker calls (`worker.Service`).

    Args:
        pickled: Pickled functions by name.
        stateful: Names of the functions that keep a state.
    """

    def __init__(self, pickled: Mapping[str, bytes], stateful: Collection[str]) -> None:
        self._pickled, self._stateful = pickled, stateful
        self._functions: list[Callable[..., Any]] = []
        self._keepers: dict[int, Keeper] = {}
        self._awaiting = Awaiting()

    def load(self) -> dict[str, Any] | None:
        """Load the functions and the states that they keep; return the problem of the first that cannot be loaded."""
        for number, (name, data) in enumerate(self._pickled.items()):
            try:
                self._functions.append(pickle.loads(data))
                getattr(self._functions[-1], "prepare", lambda: None)()
                if name in self._stateful:
                    self._keepers[number] = Keeper(self._functions[-1])
            except BaseException as error:
                return problem(name, error)
        return None

    def parts(self, message: Any) -> Iterator[Callable[[], Mapping[str, Any]]]:
        """Return the calls of a message: one per row if `each`, otherwise one for all rows."""
        function, each, rows, arguments, state = message
        if not each:
            return iter([partial(self._answer, function, rows, arguments, state)])
        single = ({name: [values[row]] for name, values in arguments.items()} for row in range(rows))
        return (partial(self._answer, function, 1, part, state) for part in single)

    def _answer(
        self, function: int, rows: int, arguments: Mapping[str, Sequence[Any]], state: str | None
    ) -> dict[str, Any]:
        """Return the reply to a call: values and the new state, or why there are none."""
        keeper = self._keepers.get(function)
        if keeper is not None:
            keeper.begin(state)
        with hearing() as heard:
            returned = self._awaiting.result(self._functions[function](**arguments))
        reply = checked(returned, rows, heard)
        if keeper is not None and "failed" not in reply:
            reply["state"] = keeper.end()
        return reply


def problem(name: str, error: BaseException) -> dict[str, Any]:
    """Return why something cannot be loaded. Errors of gvpo state what to do themselves."""
    stated = isinstance(error, GvpoError)
    text = str(error) if stated else one_line(error)
    return {"name": name, "error": text, "traceback": traceback_of(error), "stated": stated}


def checked(returned: Any, rows: int, heard: Mapping[int, str] | None = None) -> dict[str, Any]:
    """Return the reply for the return value of a reward function.

    Args:
        returned: Anything; valid are `rows` numbers (including numpy's and 0-d tensors) or None.
        rows: Number of completions that the function received.
        heard: Reasons that it gave for rows without a value (`reasons.no_value`).

    Returns:
        `values` and `reasons` ([kind, detail] or None), one each per row; or a failure of all rows.
    """
    try:
        listed = None if isinstance(returned, str | bytes | Mapping) else list(returned)
    except TypeError:
        listed = None
    if listed is None:
        return failure(
            "wrong type", f"returned {type_of(returned)}; return a list of one number or None per completion"
        )
    if len(listed) != rows:
        return failure("wrong length", f"returned {len(listed)} values for {rows} completions")
    pairs = [value_of(value, (heard or {}).get(row)) for row, value in enumerate(listed)]
    return {"values": [value for value, _ in pairs], "reasons": [reason for _, reason in pairs]}


def value_of(value: Any, told: str | None = None) -> tuple[float | None, tuple[str, str] | None]:
    """Return a value as a number, and why it cannot be used.

    Args:
        value: Anything; valid are numbers (including numpy's and 0-d tensors) and None.
        told: The function's own reason for None.
    """
    if value is None:
        return None, (UNSCORABLE, f"cannot score the row: {told}") if told else None
    with contextlib.suppress(TypeError, ValueError, RuntimeError):
        value = value.item() if hasattr(value, "item") else value
    if not isinstance(value, numbers.Number) or isinstance(value, complex):
        return None, ("wrong type", f"returned {type_of(value)} instead of a number or None")
    try:
        number = float(value)  # type: ignore[arg-type]  # every other registered Number converts
    except OverflowError:
        number = math.inf
    if math.isnan(number):
        return None, ("nan", "returned nan")
    if math.isinf(number):
        return None, ("infinite", f"returned {number}")
    return number, None
