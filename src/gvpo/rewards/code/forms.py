"""The formats in which datasets write the tests of code, read as one of two forms: runs of a program, or a test script.

Runs are a list of {"input", "output"}, or parallel lists {"inputs", "outputs"} (APPS, TACO, CodeContests,
LiveCodeBench), as values or as JSON text. With `fn_name` they are calls of a function, which are converted to a test
script. Any other text is a test script: assertions, test functions and classes, or `check(candidate)` (`sandbox.suite`
runs the functions that it defines).
"""

import ast
import builtins
import contextlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gvpo.errors import RewardError, type_of

SHAPES = (
    'Python, or objects with `input` and `output` (or `inputs` and `outputs`), such as {"input": "1", "output": "2"}'
)
_CALLS = ("functional", "function_call", "call_based")
_INPUTS, _OUTPUTS = ("input", "inputs"), ("output", "outputs")
# Datasets write the return values of functions in JSON, which has no tuples.
_LISTED = """\
from math import inf, nan
def gvpo_listed(value):
    return [gvpo_listed(item) for item in value] if isinstance(value, (list, tuple)) else value
"""
# Call-based problems are solved by a function or by a method of a class, depending on their starter code.
_METHOD = """
if "{name}" not in globals() and "Solution" in globals():
    {name} = lambda *args: getattr(Solution(), "{name}")(*args)
"""


class TestsError(RewardError):
    """The tests of one problem cannot be used; the message states how to correct them."""

    __test__ = False  # pytest collects classes by their name


@dataclass(frozen=True)
class Programs:
    """Runs of a program.

    Args:
        runs: Pairs of the program's input and its expected output.
    """

    runs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Functions:
    """Tests of functions.

    Args:
        script: Python code that raises if the functions are wrong, or defines tests that do.
        names: Names of the functions that it calls, perhaps as `Class.method`.
        defined: Names of the test functions and classes that it defines and does not run itself.
        ending: Python code that runs after the completion's code, in its process.
    """

    script: str
    names: tuple[str, ...]
    defined: tuple[str, ...] = ()
    ending: str = ""

    def stub(self, value: Any) -> str:
        """Return code whose functions return a value for any arguments; "" if the tests call no function."""
        return "\n".join(_stub(name, value) for name in self.names)


def _stub(name: str, value: Any) -> str:
    owner, _, function = name.rpartition(".")
    line = f"def {function}(*args, **named): return {value!r}"
    return f"class {owner}:\n    {line}" if owner else line


def read_tests(tests: Any, names: Any = None, setup: str = "") -> Programs | Functions | None:
    """Read the column `tests` of a problem.

    Args:
        tests: Tests in any of the formats above.
        names: Column `entry_point`: a name, a list of names, or None.
        setup: Python code that defines what the tests also need.

    Returns:
        The tests; None if the problem has none (null, "", [] or {}).

    Raises:
        TestsError: If they have another format, or are not Python.
    """
    items = list(_items(tests))
    if not items:
        return None
    listed = _names(names)
    if all(isinstance(item, str) for item in items):
        script = "\n".join(items)
        _refuse_pairs(tests, script)
        tree = _parsed(script)
        called = dict.fromkeys([*(listed or called_names(script, setup)), *_imported(tree)])
        return Functions(script, tuple(called), tuple(_defined(tree)))
    if not all(isinstance(item, Mapping) for item in items):
        kinds = ", ".join(sorted({type(item).__name__ for item in items}))
        raise TestsError(f"tests are neither Python nor objects but {kinds}; write {SHAPES}")
    cases = [case for item in items for case in _cases(item, listed)]
    if not cases:
        raise TestsError("there are no tests in the column `tests`; add some, or remove the problem")
    if any(name for _, _, name in cases):
        return _calls(cases, listed)
    return Programs(tuple((_text(given), _text(right)) for given, right, _ in cases))


def _items(tests: Any) -> Iterator[Any]:
    """Yield texts and objects from any wrapping: single values, lists, arrays, JSON text."""
    tests = tests.tolist() if hasattr(tests, "tolist") else tests
    if isinstance(tests, str):
        data = _data(tests)
        yield from _items(data) if data is not None else [tests] * bool(tests)
    elif isinstance(tests, list | tuple):
        for item in tests:
            yield from [item] if item == "" else _items(item)
    elif tests is not None and tests != {}:
        yield tests


def _data(text: str) -> Any:
    """Return the list or object that a text is in JSON, or in the format of Python's `str`; None if it is neither."""
    if not text.lstrip().startswith(("[", "{")):
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            data = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return data if isinstance(data, list | dict) else None
    return None


def _refuse_pairs(tests: Any, script: str) -> None:
    """Raise TestsError for lists of an input and an output: they are not a script, though each text may be Python."""
    data = _data(tests) if isinstance(tests, str) else tests
    if not isinstance(data, list | tuple) or not any(isinstance(each, list | tuple) for each in data):
        return
    with contextlib.suppress(TestsError):
        if any(isinstance(node, ast.Call) for node in ast.walk(_parsed(script))):
            return
    raise TestsError(
        'tests are lists of texts in a list; write each pair as an object, such as {"input": "1", "output": "2"}'
    )


def _names(names: Any) -> list[str]:
    """Return the names of `entry_point`, with `Solution().f` written as `Solution.f`."""
    names = names.tolist() if hasattr(names, "tolist") else names
    listed = [names] if isinstance(names, str) else names or []
    if not isinstance(listed, list | tuple) or not all(isinstance(name, str) for name in listed):
        raise TestsError(f"entry_point is {names!r}; write a name, or a list of names")
    return [name.replace("()", "").strip() for name in listed if name.strip()]


_Case = tuple[Any, Any, str]
"""Input, output, and the called function ("" for a program)."""


def _cases(item: Mapping[str, Any], listed: Sequence[str], outer: str = "") -> Iterator[_Case]:
    """Yield the cases of an object, which contains one case or parallel lists of cases."""
    name = _function(item) or outer or _unnamed(item, listed)
    if "test_cases" in item:
        for each in _items(item["test_cases"]):
            if not isinstance(each, Mapping):
                raise TestsError(f"test_cases has {type_of(each)}; write {SHAPES}")
            yield from _cases(each, listed, name)
        return
    given, right = _column(item, _INPUTS), _column(item, _OUTPUTS)
    several = "inputs" in item or (isinstance(given, list) and isinstance(right, list) and not name)
    if not several:
        yield given, right, name
        return
    given, right = ([each] if isinstance(each, str) else list(each or []) for each in (given, right))
    if len(given) != len(right):
        raise TestsError(f"the tests have {len(given)} inputs and {len(right)} outputs; give one output per input")
    for pair in zip(given, right, strict=True):
        yield (*pair, name)


def _function(item: Mapping[str, Any]) -> str:
    """Return the name of the function that an object's cases call; "" for a program."""
    metadata = item.get("metadata")
    metadata = _data(metadata) if isinstance(metadata, str) else metadata
    places = [item, metadata] if isinstance(metadata, Mapping) else [item]
    found = (place.get(key) for place in places for key in ("fn_name", "func_name"))
    return next((str(name) for name in found if name), "")


def _unnamed(item: Mapping[str, Any], listed: Sequence[str]) -> str:
    """Return the name in `entry_point` if an object's cases call a function that they do not name; else ""."""
    kind = item.get("testtype") or item.get("type") or ""
    given = next((item[key] for key in _INPUTS if isinstance(item.get(key), list | tuple)), "")
    if kind in _CALLS or (listed and not kind and not all(isinstance(each, str) for each in given)):
        if not listed:
            raise TestsError(f"the tests are of type {kind!r} and name no function; name it in `entry_point`")
        return listed[0]
    return ""


def _column(item: Mapping[str, Any], names: Sequence[str]) -> Any:
    for name in names:
        if item.get(name) is not None:
            value = item[name]
            return value.tolist() if hasattr(value, "tolist") else value
    if any(name in item for name in names):
        raise TestsError(f"a test's `{names[0]}` is null; write the text that is read or printed, or drop the test")
    raise TestsError(
        f"tests are neither Python nor objects with input and output but have {list(item)}; write {SHAPES}"
    )


def _text(value: Any) -> str:
    """Return the text that a program reads or prints, given as a text, its lines, or a number."""
    if isinstance(value, list | tuple):
        return "\n".join(map(_text, value))
    if isinstance(value, str | int | float):
        return str(value)
    raise TestsError(f"a test's input or output is {type_of(value)}; write the text that is read or printed")


def _calls(cases: Sequence[_Case], listed: Sequence[str]) -> Functions:
    """Return calls of one function as a test script."""
    called = {name for _, _, name in cases}
    if len(called) > 1:
        raise TestsError(f"the tests of a problem call {sorted(called)}; a problem tests one function or one program")
    owner, _, name = _names([*called])[0].rpartition(".")
    if not name.isidentifier():
        raise TestsError(f"the tests call {name!r}, which is not the name of a function; correct fn_name")
    methods = [each for each in [f"{owner}.{name}", *listed] if each.rpartition(".")[::2] != ("", name)]
    owners = tuple(each for each in methods if each.rpartition(".")[2] == name and not each.startswith("."))
    calls = [_call(given, right) for given, right, _ in cases]
    texts = any(isinstance(given, str) for given, _, _ in cases)
    wrapped = not texts and all(isinstance(right, list) and len(right) == 1 for _, right in calls)  # APPS: [3] for 3
    lines = [
        f"assert gvpo_listed({name}(*{args!r})) {f'in ({right!r}, {right[0]!r})' if wrapped else f'== {right!r}'}"
        for args, right in calls
    ]
    return Functions(
        "\n".join([_LISTED, *lines]), owners[:1] or (name,), (), "" if owners else _METHOD.format(name=name)
    )


def _call(given: Any, right: Any) -> tuple[list[Any], Any]:
    """Return the arguments and the correct value: lists, or JSON with one argument per line (LiveCodeBench)."""
    if not isinstance(given, str):
        return (list(given) if isinstance(given, list | tuple) else [given]), _listed(right)
    try:
        arguments = [json.loads(line) for line in given.splitlines() if line.strip()]
        return arguments, json.loads(right) if isinstance(right, str) else right
    except ValueError as error:
        raise TestsError(
            f"a test of a function has an input or output that is not JSON ({error}); write a list of arguments, "
            "or one argument per line in JSON"
        ) from None


def _listed(value: Any) -> Any:
    return [_listed(item) for item in value] if isinstance(value, list | tuple) else value


def called_names(tests: str, setup: str = "") -> list[str]:
    """Return the names that tests use and that are not defined otherwise, which the code must therefore define.

    Raises:
        TestsError: If the tests are not Python.
    """
    nodes = [*ast.walk(_parsed(tests)), *ast.walk(_parsed(setup))]
    names = {node.id: None for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    bound = {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    bound |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    bound |= {node.name for node in nodes if isinstance(node, ast.ExceptHandler) and node.name}
    bound |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            bound.update((alias.asname or alias.name).partition(".")[0] for alias in node.names)
    return [name for name in names if name not in bound and name not in _GIVEN and not hasattr(builtins, name)]


_GIVEN = ("__name__", "__file__", "__doc__")
"""Names that every module has."""


def _imported(tests: ast.Module) -> Iterator[str]:
    """Yield the names that tests import from the module `solution`, which is the completion's code (KodCode)."""
    modules = {
        alias.asname or alias.name
        for node in ast.walk(tests)
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name == "solution"
    }
    for node in ast.walk(tests):
        if isinstance(node, ast.ImportFrom) and node.module == "solution":
            yield from (alias.name for alias in node.names if alias.name != "*")
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            yield node.attr


def _defined(tests: ast.Module) -> Iterator[str]:
    """Yield the tests that a script defines and does not run: those of pytest and unittest, and HumanEval's `check`."""
    used = {node.id for node in ast.walk(tests) if isinstance(node, ast.Name)}
    run = set(_used_at_once(tests))
    for node in tests.body:
        if isinstance(node, ast.ClassDef):
            if node.bases or node.name.startswith("Test"):
                yield node.name
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            helps = node.name in used and len(node.args.args) > len(node.args.defaults)
            is_test = node.name.startswith("test") and node.name not in run and not helps
            if is_test or (node.name == "check" and node.name not in used):
                yield node.name


def _used_at_once(tests: ast.Module) -> Iterator[str]:
    """Yield the names that are used when a script runs, excluding those inside its functions."""
    waiting: list[ast.AST] = list(tests.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Name):
            yield node.id
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            waiting.extend(ast.iter_child_nodes(node))


def _parsed(source: str) -> ast.Module:
    try:
        return parse_quietly(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise TestsError(f"the tests of a problem are not Python ({error}); correct the data") from None


def parse_quietly(source: str) -> ast.Module:
    """Return `ast.parse` of a source without warnings: code in datasets causes many, which are not about gvpo."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(source)
