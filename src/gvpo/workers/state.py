"""State of stateful reward functions, as text that travels between workers and into checkpoints.

    state_dict() ──▶ text ──▶ the pool, a checkpoint ──▶ text ──▶ load_state_dict()

The pool owns the state and passes it with each call. A worker loads it only if it is not the one that it returned last,
so a call that fails leaves no trace. Only plain values are read back: a state from a file cannot run code.
"""

import base64
import binascii
import io
import pickle
from collections.abc import Callable
from typing import Any

from gvpo.errors import RewardError

STATEFUL = "gvpo_stateful"
"""Attribute of functions and objects that keep a state between calls."""

_PLAIN = frozenset(
    {
        *(("builtins", name) for name in ("bool", "bytearray", "complex", "dict", "float", "frozenset", "int", "list")),
        *(("builtins", name) for name in ("range", "set", "slice", "str", "tuple")),
        *(("collections", name) for name in ("Counter", "OrderedDict", "defaultdict", "deque")),
        *(("numpy", name) for name in ("dtype", "ndarray")),
        *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
        *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    }
)


def keeps_state(function: object) -> bool:
    """Return whether a function is stateful and has `state_dict` and `load_state_dict`."""
    stateful = getattr(function, STATEFUL, False) is True
    return stateful and all(callable(getattr(function, name, None)) for name in ("state_dict", "load_state_dict"))


class Keeper:
    """The state of one function in this process.

    Args:
        function: Function for which `keeps_state` is true.

    Raises:
        RewardError: If its state contains anything but plain values.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function: Any = function
        self._initial = self._written()
        self._current: str | None = self._initial

    def begin(self, state: str | None) -> None:
        """Give the function a state before a call; None is the one that it was created with."""
        wanted = self._initial if state is None else state
        if wanted != self._current:
            self._function.load_state_dict(_read(wanted))
        self._current = None  # the call may change it and fail

    def end(self) -> str:
        """Return the state after a call that succeeded."""
        self._current = self._written()
        return self._current

    def _written(self) -> str:
        text = base64.b64encode(pickle.dumps(self._function.state_dict(), protocol=5)).decode()
        _read(text)
        return text


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Return a class of plain values; reject any other."""
        if (module, name) not in _PLAIN:
            raise RewardError(
                f"its state_dict() contains a {module}.{name}, which cannot be stored; return numbers, text, lists, "
                "dictionaries, sets or numpy arrays"
            )
        return super().find_class(module, name)


def _read(text: str) -> Any:
    try:
        return _Reader(io.BytesIO(base64.b64decode(text, validate=True))).load()
    except (binascii.Error, pickle.UnpicklingError, EOFError) as error:
        raise RewardError(f"its stored state cannot be read: {error}") from error
