"""Source code of values that differ between processes: clocks, process IDs, random numbers, locations.

START = time.time()          the fingerprint covers the expression instead of the value
CACHE[text] = score          a function that writes into a global keeps state there, which decides no reward
"""

import ast
import functools
import linecache
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import FunctionType
from typing import Any

_CALLS = frozenset(
    {
        "time",
        "time_ns",
        "perf_counter",
        "perf_counter_ns",
        "monotonic",
        "monotonic_ns",
        "process_time",
        "now",
        "utcnow",
        "today",
        "ctime",
        "uuid1",
        "uuid4",
        "getpid",
        "getppid",
        "get_ident",
        "gethostname",
        "node",
        "getcwd",
        "cwd",
        "gettempdir",
        "mkdtemp",
        "mkstemp",
        "TemporaryDirectory",
        "NamedTemporaryFile",
        "random",
        "uniform",
        "randint",
        "randrange",
        "choice",
        "choices",
        "sample",
        "getrandbits",
        "token_hex",
        "token_bytes",
        "token_urlsafe",
        "urandom",
        "id",
    }
)
"""Names of functions that return another value in each process."""
_NAMES = frozenset({"__file__", "executable"})
_CHANGES = frozenset(
    {
        "append",
        "add",
        "update",
        "setdefault",
        "extend",
        "insert",
        "pop",
        "popitem",
        "clear",
        "remove",
        "discard",
        "appendleft",
    }
)


def fleeting(function: FunctionType) -> Mapping[str, str]:
    """Return the names whose values differ between processes, each with the expression that computes them.

    Args:
        function: A function; its file, or the cells of its notebook, are searched. An attribute is called `.name`.
    """
    return {name: text for source in _sources(function) for name, text in source.fleeting.items()}


def state(function: FunctionType) -> set[str]:
    """Return the globals, closure variables and `.attributes` that a function writes into."""
    here = (function.__code__.co_name, function.__code__.co_firstlineno)
    return {name for source in _sources(function) for name in source.written.get(here, ())}


def without_docstrings(source: bytes) -> str:
    """Return a module in normalized form: without comments, layout, docstrings and types.

    Raises:
        SyntaxError, ValueError: If the source is not Python.
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [each for each in node.body if not _is_text(each)]
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.returns = None
        if isinstance(node, ast.arg):
            node.annotation = None
    return ast.dump(tree)


@dataclass(frozen=True)
class _Source:
    """Names that a file or a cell defines or writes.

    Args:
        fleeting: Names whose values differ between processes, with their expressions.
        written: Names that each function writes into, by the function's name and first line.
    """

    fleeting: Mapping[str, str]
    written: Mapping[tuple[str, int], frozenset[str]]


def _sources(function: FunctionType) -> list[_Source]:
    cells = function.__globals__.get("In")  # of a notebook
    texts = [cell for cell in cells if isinstance(cell, str)] if isinstance(cells, list) else []
    return [_read(text) for text in [*texts, "".join(linecache.getlines(function.__code__.co_filename))]]


@functools.lru_cache(maxsize=1024)
def _read(text: str) -> _Source:
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):  # for example, a cell with a notebook command
        return _Source({}, {})
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    written = {
        (node.name, min(each.lineno for each in [node, *node.decorator_list])): frozenset(
            name for each in ast.walk(node) for name in _written(each)
        )
        for node in functions
    }
    return _Source(dict(_fleeting(tree)), written)


def _fleeting(tree: ast.Module) -> Iterator[tuple[str, str]]:
    known: set[str] = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        if not any(_is_fleeting(each, known) for each in ast.walk(node.value)):
            continue
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            name = _target(target)
            known.add(name)
            yield name, ast.dump(node.value)


def _is_fleeting(node: ast.AST, known: set[str]) -> bool:
    if isinstance(node, ast.Call):
        return _last_name(node.func) in _CALLS
    return isinstance(node, ast.Name | ast.Attribute) and (_last_name(node) in _NAMES or _target(node) in known)


def _target(node: ast.expr) -> str:
    return f".{node.attr}" if isinstance(node, ast.Attribute) else _last_name(node)


def _last_name(node: ast.AST) -> str:
    return str(getattr(node, "attr", getattr(node, "id", "")))


def _written(node: ast.AST) -> list[str]:
    """Return the names that one statement or call writes into; local variables among them are harmless."""
    if isinstance(node, ast.Global | ast.Nonlocal):
        return node.names
    if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
        return [_target(node)]
    if isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
        return [_target(node.value)]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _CHANGES:
        return [_target(node.func.value)]
    return []


def _is_text(node: Any) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
