"""Values as JSON, between the process of a completion and that of the tests.

Only values of Python's own types are sent and recreated on the other side: a class with its own `__eq__`, a patched
builtin or a string that lies about itself stays where it was. Everything else is sent as a reference to the object in
the completion's process. Imports only the standard library.
"""

import builtins
import itertools
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

MAX_ITEMS = 1_000_000
"""Maximum number of values of an iterator; one with more is not sent."""
_COLLECTIONS: dict[str, Callable[[Any], Any]] = {
    "list": list,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "iter": iter,
}
_PLAIN_INT = 1 << 62
"""Larger integers are sent as hexadecimal text, since Python does not parse decimals of many digits."""


def encode(value: Any, reference: Callable[[Any], int]) -> Any:
    """Return `value` in a form that `json.dumps` accepts.

    Args:
        value: Any value.
        reference: Function that returns the number of an object that cannot be sent.

    Raises:
        ValueError: If an iterator has more than MAX_ITEMS values.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        number = int(value)
        return number if -_PLAIN_INT < number < _PLAIN_INT else ["int", hex(number)]
    if isinstance(value, float):
        return float(value)
    if isinstance(value, str):
        return "".join(value)
    return _scalar(value) or _collection(value, reference) or ["ref", reference(value)]


def _scalar(value: Any) -> list[Any] | None:
    if isinstance(value, bytes | bytearray):
        return [type(value).__name__, bytes(value).hex()]
    if isinstance(value, complex):
        return ["complex", value.real, value.imag]
    if isinstance(value, Fraction | Decimal):
        return [type(value).__name__, str(value)]
    if isinstance(value, range):
        return ["range", hex(value.start), hex(value.stop), hex(value.step)]
    if isinstance(value, type) and vars(builtins).get(name := value.__name__) is value:
        return ["type", name]
    return None


def _collection(value: Any, reference: Callable[[Any], int]) -> list[Any] | None:
    if isinstance(value, dict):
        return ["dict", [[encode(key, reference), encode(item, reference)] for key, item in value.items()]]
    for name in ("list", "tuple", "set", "frozenset"):
        if isinstance(value, _COLLECTIONS[name]):  # type: ignore[arg-type]  # these four are types
            return [name, [encode(item, reference) for item in value]]
    if isinstance(value, Iterator):
        items = list(itertools.islice(value, MAX_ITEMS + 1))
        if len(items) > MAX_ITEMS:
            raise ValueError(f"an iterator gives more than {MAX_ITEMS} values")
        return ["iter", [encode(item, reference) for item in items]]
    return None


def decode(data: Any, referred: Callable[[int], Any]) -> Any:
    """Return the value that `encode` wrote.

    Args:
        data: Result of `json.loads`.
        referred: Function that returns the object of a reference.

    Raises:
        ValueError: If `encode` cannot have written it.
    """
    if not isinstance(data, list):
        if isinstance(data, dict):
            raise ValueError("a value is not an object")
        return data
    name, *rest = data
    if name == "dict":
        return {decode(key, referred): decode(item, referred) for key, item in rest[0]}
    if name in _COLLECTIONS:
        return _COLLECTIONS[name]([decode(item, referred) for item in rest[0]])
    if name == "ref":
        return referred(int(rest[0]))
    if name not in _SCALARS:
        raise ValueError(f"there is no kind of value {name!r}")
    return _SCALARS[name](*rest)


def _builtin_type(name: str) -> type:
    found = getattr(builtins, name, None)
    if not isinstance(found, type):
        raise ValueError(f"{name} is not a builtin type")
    return found


_SCALARS: dict[str, Callable[..., Any]] = {
    "int": lambda text: int(text, 16),
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "complex": complex,
    "Fraction": Fraction,
    "Decimal": Decimal,
    "range": lambda *texts: range(*(int(text, 16) for text in texts)),
    "type": _builtin_type,
}
