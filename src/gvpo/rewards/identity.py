"""A name for what a reward function computes: it changes with the code and the values that decide a reward.

The same function has the same name in each process: nothing in it depends on addresses, on the seed of Python's hashes,
on line numbers, or on the name under which its module was imported. It covers

    code      bytecode of the function, of the functions and classes of the user that it mentions, and of nested ones
    values    defaults, closures, attributes of callable objects, global constants that the code mentions
    modules   the files of the user's own modules that the code mentions

What belongs to Python, to an installed package or to gvpo counts by its name alone. Files and services that a function
reads when it is called are not covered.
"""

import functools
import hashlib
import re
import sys
import sysconfig
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from types import BuiltinFunctionType, CodeType, FunctionType, MappingProxyType, MethodType, ModuleType
from typing import Any

_LIBRARIES = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib"))
_SAMPLED = 4096
"""Values of an array that are looked at, spread evenly."""


def identity(function: Any) -> str:
    """Return a short name for a reward function, a callable object or any value that decides rewards.

    An object with a method `identity` says itself what it is: it returns a value that is named in its place.
    """
    try:
        return _Namer().name(function).hex()
    except RecursionError:  # a value nested more deeply than Python can follow
        return _atom("deep", type(function).__qualname__).hex()


class _Namer:
    """Names values by what they contain; each mutable one is looked at once, and one inside itself is not followed."""

    def __init__(self) -> None:
        self._done: dict[int, bytes] = {}
        self._open: set[int] = set()
        self._kept: list[Any] = []  # so that no id is used twice

    def name(self, value: Any) -> bytes:
        if isinstance(value, int):
            return _atom(type(value).__name__, hex(value))  # Python refuses to write long ones in decimal
        if value is None or value is Ellipsis or isinstance(value, float | complex | str | bytes):
            return _atom(type(value).__name__, repr(value))
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
        for kind, describe in self._kinds:
            if isinstance(value, kind):
                named: bytes = describe(self, value)
                return named
        return self._object(value)

    def _sequence(self, values: Iterable[Any]) -> bytes:
        return _joined("sequence", [self.name(value) for value in values])

    def _set(self, values: Iterable[Any]) -> bytes:
        return _joined("set", sorted(self.name(value) for value in values))

    def _mapping(self, values: Mapping[Any, Any]) -> bytes:
        pairs = [(self.name(key), key) for key in values]
        ordered = sorted(pairs, key=lambda pair: pair[0])
        return _joined("mapping", [part for named, key in ordered for part in (named, self.name(values[key]))])

    def _code(self, code: CodeType) -> bytes:
        shape = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
        names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        return _joined("code", [_atom("bytes", code.co_code.hex()), self.name((shape, names, code.co_consts))])

    def _function(self, function: FunctionType) -> bytes:
        cells = [_content(cell) for cell in function.__closure__ or ()]
        values = self.name((function.__defaults__, function.__kwdefaults__, cells))
        if _belongs_to_a_library(function.__module__):
            return _joined("library", [_atom("name", _full_name(function)), values])
        mentioned = {
            name: function.__globals__[name]
            for name in sorted(_names(function.__code__))
            if name in function.__globals__
        }
        return _joined("function", [self._code(function.__code__), values, self._mapping(mentioned)])

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
        return _joined("module", [_atom("bytes", Path(file).read_bytes().hex()), self._mapping(others)])

    def _object(self, value: Any) -> bytes:
        """A callable object or another instance: its class and its attributes."""
        ours = type(value).__module__.startswith("gvpo.")
        if ours and hasattr(value, "identity"):
            return _joined("own", [self.name(type(value)), self.name(value.identity())])
        if hasattr(value, "__wrapped__"):  # functools.lru_cache and the like
            return _joined("wrapped", [self.name(value.__wrapped__)])
        if hasattr(value, "dtype") and hasattr(value, "shape") and hasattr(value, "reshape"):
            return self._array(value)
        if hasattr(value, "state_dict"):  # a model
            return _joined("weights", [self.name(type(value)), self._mapping(value.state_dict())])
        if _belongs_to_a_library(type(value).__module__) and not ours:
            return _atom("object", _full_name(type(value)))
        slots = {name: getattr(value, name) for name in _slots(type(value)) if hasattr(value, name)}
        return _joined("object", [self.name(type(value)), self._mapping({**slots, **getattr(value, "__dict__", {})})])

    def _partial(self, value: "functools.partial[Any]") -> bytes:
        return _joined("partial", [self.name(part) for part in (value.func, value.args, value.keywords)])

    def _method(self, method: MethodType) -> bytes:
        return _joined("method", [self.name(method.__func__), self.name(method.__self__)])

    def _property(self, value: property) -> bytes:
        return _joined("property", [self.name(part) for part in (value.fget, value.fset, value.fdel)])

    def _pattern(self, value: "re.Pattern[Any]") -> bytes:
        return self.name(("pattern", value.pattern, value.flags))

    def _static(self, value: "staticmethod[..., Any] | classmethod[Any, ..., Any]") -> bytes:
        return _joined(type(value).__name__, [self.name(value.__func__)])

    def _array(self, values: Any) -> bytes:
        """An array of numpy or torch: its shape, and values all over it."""
        flat = values.reshape(-1)
        some = flat[:: max(1, len(flat) // _SAMPLED)]
        plain = some.detach().cpu().float() if hasattr(some, "detach") else some
        return self.name(("array", str(values.dtype), tuple(values.shape), plain.tolist()))

    _kinds: Sequence[tuple[Any, Any]] = (
        (dict | MappingProxyType, _mapping),
        (list | tuple, _sequence),
        (set | frozenset, _set),
        (CodeType, _code),
        (FunctionType, _function),
        (MethodType, _method),
        (type, _class),
        (ModuleType, _module),
        (functools.partial, _partial),
        (property, _property),
        (staticmethod | classmethod, _static),
        (re.Pattern, _pattern),
        (PurePath, lambda self, value: self.name(("path", str(value)))),
        (BuiltinFunctionType, lambda _, value: _atom("builtin", _full_name(value))),
    )


def _atom(kind: str, text: str) -> bytes:
    return hashlib.blake2b(f"{kind} {text}".encode(errors="surrogatepass"), digest_size=16).digest()


def _joined(kind: str, parts: Sequence[bytes]) -> bytes:
    return hashlib.blake2b(kind.encode() + b" " + b"".join(parts), digest_size=16).digest()


def _names(code: CodeType) -> set[str]:
    """The names that code and the code nested in it mention."""
    nested = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*(_names(each) for each in nested))


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
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"


def _is_from_another(value: Any, module: ModuleType) -> bool:
    """Whether a module of the user's has a value from another one."""
    if isinstance(value, ModuleType):
        return not _belongs_to_a_library(value.__name__)
    home = getattr(value, "__module__", None)
    return isinstance(value, FunctionType | type) and home != module.__name__ and not _belongs_to_a_library(home)


@functools.cache
def _belongs_to_a_library(module: str | None) -> bool:
    """Whether a module is Python's, an installed package's or gvpo's own."""
    if module is None:
        return False
    top = module.partition(".")[0]
    if top == "gvpo" or top in sys.stdlib_module_names:
        return top != "__main__"
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None:
        return False
    place = Path(file).resolve()
    return "site-packages" in place.parts or any(place.is_relative_to(library) for library in _LIBRARIES)
