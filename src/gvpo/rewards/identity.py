"""Fingerprints of reward functions: they change with the code and the values that decide a reward.

A function has the same fingerprint in every process: it does not depend on addresses, on the seed of Python's hashes,
on line numbers, or on the name under which its module was imported. It covers

    code      instructions of the function, of the user's functions and classes that it mentions, and of nested ones
    values    defaults, closures, attributes of callable objects, global constants that the code mentions
    modules   the user's own modules that the code mentions or imports when it is called

Comments, layout, docstrings and annotations do not count. Objects of Python, of an installed package or of gvpo count
only by name. A value that differs between processes counts by the expression that computes it, and state that a
function writes does not count (`gvpo.rewards.source_code`). Files and services that a function reads when it is called
are not covered.
"""

import datetime
import dis
import functools
import hashlib
import importlib.util
import marshal
import re
import sys
import sysconfig
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from types import BuiltinFunctionType, CodeType, FunctionType, MappingProxyType, MethodType, ModuleType
from typing import Any

from gvpo.rewards.source_code import fleeting, state, without_docstrings
from gvpo.workers.state import STATEFUL

_LIBRARIES = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib"))
_LARGE = 1000
"""Number of items from which a collection of plain data is hashed as a whole, which is a hundred times as fast."""
_WHOLE, _SAMPLED = 2**22, 2**16
"""Maximum size of an array that is hashed completely, and the number of evenly spaced values of a larger one."""
_VALUES = (
    "argparse",
    "array",
    "builtins",
    "collections",
    "datetime",
    "decimal",
    "fractions",
    "operator",
    "string",
    "types",
)
"""Modules of Python whose objects are values; objects of other modules may contain open files or caches."""


def identity(function: Any) -> str:
    """Return a short fingerprint of a reward function, a callable object or any value that decides rewards.

    An object with a method `identity` is replaced by the value that this method returns.
    """
    try:
        return _Namer().name(function).hex()
    except RecursionError:  # a value nested more deeply than Python can follow
        return _atom("deep", type(function).__qualname__).hex()


class _Namer:
    """Fingerprints values by their content. It visits each mutable value once and does not follow cycles."""

    def __init__(self) -> None:
        self._done: dict[int, bytes] = {}
        self._open: set[int] = set()
        self._kept: list[Any] = []  # keeps objects alive so that no id is reused

    def name(self, value: Any) -> bytes:
        if isinstance(value, int):
            return _atom(type(value).__name__, hex(value))  # Python does not convert long ints to decimal
        if value is None or value is Ellipsis or isinstance(value, float | complex):
            return _atom(type(value).__name__, repr(value))
        if isinstance(value, str | bytes):
            return _atom(type(value).__name__, value)
        key = id(value)
        if key in self._open:
            return _atom("cycle", type(value).__qualname__)
        if key not in self._done:
            self._open.add(key)
            self._kept.append(value)
            self._done[key] = self._composed(value)
            self._open.discard(key)
        return self._done[key]

    def _composed(self, value: Any) -> bytes:
        if isinstance(value, dict | list | set) and len(value) >= _LARGE and (data := _plain_data(value)) is not None:
            return _atom("data", data)
        for kind, describe in self._kinds:
            if isinstance(value, kind):
                named: bytes = describe(self, value)
                return named
        return self._object(value)

    def _sequence(self, values: Iterable[Any]) -> bytes:
        return _joined("sequence", [self.name(value) for value in values])

    def _mapping(self, values: Mapping[Any, Any]) -> bytes:
        pairs = [(self.name(key), key) for key in values]
        ordered = sorted(pairs, key=lambda pair: pair[0])
        return _joined("mapping", [part for named, key in ordered for part in (named, self.name(values[key]))])

    def _code(self, code: CodeType) -> bytes:
        arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        shape = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags, arguments)
        done = [(each.opname, each.argval) for each in _instructions(code)]
        return self.name(("code", shape, done))

    def _function(self, function: FunctionType) -> bytes:
        own = state(function)
        closed = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        cells = [_content(cell) for name, cell in closed if name not in own]
        values = self.name((function.__defaults__, function.__kwdefaults__, cells))
        if _belongs_to_a_library(function.__module__):
            return _joined("library", [_atom("name", _full_name(function)), values])
        mentioned = {name: function.__globals__[name] for name in _names(function) if name in function.__globals__}
        known = self._steady(mentioned, fleeting(function))
        imported = self._sequence(_imported(function))
        return _joined("function", [self._code(function.__code__), values, known, imported])

    def _steady(self, values: Mapping[str, Any], expressions: Mapping[str, str], prefix: str = "") -> bytes:
        """Fingerprint values; those that differ between processes by the expressions that compute them."""
        found = {name: expressions.get(prefix + name) if _is_plain(value) else None for name, value in values.items()}
        return self._mapping({name: found[name] or value for name, value in values.items()})

    def _class(self, owner: type) -> bytes:
        if _belongs_to_a_library(owner.__module__):
            return _atom("class", _full_name(owner))
        ignored = ("__dict__", "__weakref__", "__module__", "__doc__", "__firstlineno__", "__static_attributes__")
        own = {name: value for name, value in vars(owner).items() if name not in ignored}
        return _joined("class", [self._sequence(owner.__bases__), self._mapping(own)])

    def _module(self, module: ModuleType) -> bytes:
        file = getattr(module, "__file__", None)
        if file is None or _belongs_to_a_library(module.__name__) or not Path(file).is_file():
            return _atom("module", module.__name__)
        others = {name: value for name, value in vars(module).items() if _is_from_another(value, module)}
        return _joined("module", [_atom("source", _source(Path(file))), self._mapping(others)])

    def _object(self, value: Any) -> bytes:
        """Fingerprint a callable object or another instance by its class and its attributes."""
        ours = type(value).__module__.startswith("gvpo.")
        if ours and hasattr(value, "identity"):
            return _joined("own", [self.name(type(value)), self.name(value.identity())])
        if hasattr(value, "__wrapped__"):  # functools.lru_cache and similar
            return _joined("wrapped", [self.name(value.__wrapped__)])
        if hasattr(value, "dtype") and hasattr(value, "shape") and hasattr(value, "reshape"):
            return self._array(value)
        if type(value).__name__ == "Pattern":  # of the package regex
            return self._pattern(value)
        if hasattr(value, "state_dict") and not getattr(value, STATEFUL, False):  # a model
            return _joined("weights", [self.name(type(value)), self._mapping(value.state_dict())])
        if _belongs_to_a_library(type(value).__module__) and not ours:
            return _joined("object", [_atom("type", _full_name(type(value))), self._content(value)])
        slots = {name: getattr(value, name) for name in _slots(type(value)) if hasattr(value, name)}
        every = {**slots, **getattr(value, "__dict__", {})}
        attributes = {name: each for name, each in every.items() if f".{name}" not in _state_of(type(value))}
        return _joined("object", [self.name(type(value)), self._steady(attributes, _made_by(type(value)), ".")])

    def _content(self, value: Any) -> bytes:
        """Fingerprint the content of a library's object if it is a value: a date, a range, a pattern, a table."""
        if type(value).__module__.partition(".")[0] == "pandas" and hasattr(value, "index"):
            return self.name([value.to_numpy(), value.index.to_numpy(), list(getattr(value, "columns", ()))])
        if type(value).__module__.partition(".")[0] not in (*_VALUES, "_operator", "functools", "_decimal"):
            return b""
        try:
            _, *parts = value.__reduce_ex__(4)
        except (TypeError, AttributeError):  # a generator, or another object that is not a value
            return b""
        return self.name([list(part) if isinstance(part, Iterator) else part for part in parts])

    def _partial(self, value: "functools.partial[Any]") -> bytes:
        return _joined("partial", [self.name(part) for part in (value.func, value.args, value.keywords)])

    def _property(self, value: property) -> bytes:
        return _joined("property", [self.name(part) for part in (value.fget, value.fset, value.fdel)])

    def _pattern(self, value: "re.Pattern[Any]") -> bytes:
        return self.name(("pattern", value.pattern, value.flags))

    def _array(self, values: Any) -> bytes:
        """Fingerprint an array of numpy or torch by its shape and by values spread over it."""
        flat = values.reshape(-1)
        some = flat if len(flat) <= _WHOLE else flat[:: len(flat) // _SAMPLED]
        plain = some.detach().cpu().float().numpy() if hasattr(some, "detach") else some
        content = plain.tolist() if plain.dtype.hasobject else plain.tobytes()
        return self.name(("array", str(values.dtype), tuple(values.shape), content))

    _kinds: Sequence[tuple[Any, Any]] = (
        (dict | MappingProxyType, _mapping),
        (list | tuple, _sequence),
        (set | frozenset, lambda self, values: _joined("set", sorted(self.name(value) for value in values))),
        (CodeType, _code),
        (FunctionType, _function),
        (MethodType, lambda self, method: _joined("method", [self.name(method.__func__), self.name(method.__self__)])),
        (type, _class),
        (ModuleType, _module),
        (functools.partial, _partial),
        (property, _property),
        (staticmethod | classmethod, lambda self, value: _joined(type(value).__name__, [self.name(value.__func__)])),
        (re.Pattern, _pattern),
        (PurePath, lambda self, value: self.name(("path", str(value)))),
        (BuiltinFunctionType, lambda _, value: _atom("builtin", _full_name(value))),
    )


def _atom(kind: str, content: str | bytes) -> bytes:
    written = content.encode(errors="surrogatepass") if isinstance(content, str) else content
    return hashlib.blake2b(kind.encode() + b" " + written, digest_size=16).digest()


def _plain_data(values: dict[Any, Any] | list[Any] | set[Any]) -> bytes | None:
    """Return a collection of numbers, strings and nested collections as bytes; None if it contains anything else."""
    try:
        items = values if isinstance(values, list) else sorted(values.items() if isinstance(values, dict) else values)
        return marshal.dumps(
            [type(values).__name__, items], 2
        )  # version 3 and later write shared values once, so that equal data could have different bytes
    except (ValueError, TypeError):
        return None


def _joined(kind: str, parts: Sequence[bytes]) -> bytes:
    return hashlib.blake2b(kind.encode() + b" " + b"".join(parts), digest_size=16).digest()


def _instructions(code: CodeType) -> Iterator[dis.Instruction]:
    return (each for each in dis.get_instructions(code) if each.opname not in ("NOP", "RESUME", "EXTENDED_ARG"))


def _all_instructions(code: CodeType) -> Iterator[dis.Instruction]:
    """Yield the instructions of code and of the code nested in it."""
    yield from dis.get_instructions(code)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _all_instructions(constant)


def _names(function: FunctionType) -> list[str]:
    """Return the globals that a function reads but does not write; attributes with the same names do not count."""
    found = [each for each in _all_instructions(function.__code__) if each.opname in ("LOAD_GLOBAL", "LOAD_NAME")]
    return sorted({each.argval for each in found} - state(function))


def _imported(function: FunctionType) -> list[str]:
    """Return the sources of the user's modules that a function imports when it is called."""
    found = [each.argval for each in _all_instructions(function.__code__) if each.opname == "IMPORT_NAME"]
    files = (_file_of(name) for name in sorted(set(found)) if name and not _belongs_to_a_library(name))
    return [_source(file) for file in files if file is not None]


def _file_of(module: str) -> Path | None:
    """Return the file of a module that may not be imported yet; None if a library owns it or it has no file."""
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError, AttributeError):
        return None
    file = Path(found.origin) if found is not None and found.has_location and found.origin else None
    return file if file is not None and file.is_file() and not _is_in_a_library(file) else None


def _source(file: Path) -> str:
    written = file.read_bytes()
    try:
        return without_docstrings(written)
    except (SyntaxError, ValueError, RecursionError):  # an extension, or another language
        return written.hex()


def _made_by(owner: type) -> Mapping[str, str]:
    """Return the attributes of a class's objects that differ between processes, with their expressions."""
    first = next((each for each in vars(owner).values() if isinstance(each, FunctionType)), None)
    return fleeting(first) if first is not None else {}


def _state_of(owner: type) -> set[str]:
    call = vars(owner).get("__call__")
    return state(call) if isinstance(call, FunctionType) else set()


def _is_plain(value: Any) -> bool:
    """Return whether a clock or a random source may have produced a value, rather than a file."""
    return isinstance(value, int | float | str | bytes | PurePath | datetime.date | datetime.time | uuid.UUID)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None


def _slots(owner: type) -> list[str]:
    found = [getattr(base, "__slots__", ()) for base in owner.__mro__]
    listed = [[slots] if isinstance(slots, str) else list(slots) for slots in found]
    return sorted({name for names in listed for name in names if name not in ("__dict__", "__weakref__")})


def _full_name(value: Any) -> str:
    """Return a dotted name; gvpo's own functions keep theirs when they move to another module of gvpo."""
    module = getattr(value, "__module__", "") or ""
    home = "gvpo" if module.partition(".")[0] == "gvpo" else module
    return f"{home}.{getattr(value, '__qualname__', type(value).__qualname__)}"


def _is_from_another(value: Any, module: ModuleType) -> bool:
    """Return whether a user's module imports a value from another module."""
    if isinstance(value, ModuleType):
        return not _belongs_to_a_library(value.__name__)
    home = getattr(value, "__module__", None)
    return isinstance(value, FunctionType | type) and home != module.__name__ and not _belongs_to_a_library(home)


@functools.cache
def _belongs_to_a_library(module: str | None) -> bool:
    """Return whether a module belongs to Python, to an installed package or to gvpo."""
    if module is None:
        return False
    top = module.partition(".")[0]
    if top == "gvpo" or top in sys.stdlib_module_names:
        return top != "__main__"
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None:
        return False
    return _is_in_a_library(Path(file))


@functools.cache
def _is_in_a_library(file: Path) -> bool:
    """Return whether a file belongs to Python or to an installed package, wherever that was installed."""
    place = file.resolve()
    if {"site-packages", "dist-packages"} & set(place.parts) or any(map(place.is_relative_to, _LIBRARIES)):
        return True
    return any(True for above in place.parents for _ in above.glob("*.dist-info"))
