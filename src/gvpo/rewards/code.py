"""Code: does the completion's Python pass its tests? It runs in a sandbox, and the verdict is made outside of it.

Completions are judged by what their functions return, compared in a process that they cannot reach, or by what they
print, compared here. See `gvpo.rewards.sandbox` for what holds the code.
"""

import ast
import builtins
import functools
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from gvpo.errors import RewardError
from gvpo.rewards.base import Answer, RewardFunc, completion_text
from gvpo.rewards.checkers import CHECKERS
from gvpo.rewards.sandbox.isolation import is_isolated
from gvpo.rewards.sandbox.limits import Limits
from gvpo.rewards.sandbox.run import run_program, run_tests

_BLOCK = re.compile(r"^[ \t]*```[ \t]*(\w*)[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
_PYTHON = ("python", "python3", "py")
ACCEPTED = 1.0
"""What a problem's own checker prints, at least, for a right output."""


def code_tests(
    completions: Sequence[Answer],
    tests: Sequence[Any],
    entry_point: Sequence[Any] | None = None,
    setup: Sequence[str | None] | None = None,
    prefix: Sequence[str | None] | None = None,
    checker: Sequence[str | None] | None = None,
    **columns: Any,
) -> list[float | None]:
    """1 where the completion's code passes all tests, else 0.

    The code is the last block fenced as Python, or else the last fenced at all, or else the whole text.

    Args:
        completions: k completions.
        tests: k times either tests of functions, as Python text or a list of it, or runs of a program, as a list of
            {"input": text, "output": text}; None or none abstains.
        entry_point: k names that tests call (or lists of them), `Class.method` too; default every name in the tests
            that neither they, nor `setup`, nor Python define.
        setup: k pieces of Python that the tests need.
        prefix: k beginnings of the code, for completions that go on where a prompt ends.
        checker: how a program's output is compared: a name in `checkers.CHECKERS` or the source of a program that
            prints 1 for right, given the paths of the input, the right output and the output; default "tokens".
        columns: not used.

    Returns:
        k values: 1.0, 0.0, or None.

    Raises:
        RewardError: code cannot be isolated on this machine and `GVPO_UNSAFE_CODE=1` is not set; or tests of a form
            that is not described here, or that do not run.
    """
    return _judged(Limits(), completions, tests, entry_point, setup, prefix, checker)


code_tests.check_ready = is_isolated  # type: ignore[attr-defined]


def code_reward(**limits: Any) -> RewardFunc:
    """`code_tests` with limits of its own.

    Args:
        limits: `wall`, `cpu` (seconds), `memory`, `disk`, `output` (bytes), `processes`: see `sandbox.limits.Limits`.

    Raises:
        RewardError: a limit that cannot be.
    """
    reward: RewardFunc = functools.partial(_judged, Limits(**limits))
    reward.check_ready = is_isolated  # type: ignore[attr-defined]  # a partial takes attributes
    return reward


def _judged(
    limits: Limits,
    completions: Sequence[Answer],
    tests: Sequence[Any],
    entry_point: Sequence[Any] | None = None,
    setup: Sequence[str | None] | None = None,
    prefix: Sequence[str | None] | None = None,
    checker: Sequence[str | None] | None = None,
    **columns: Any,
) -> list[float | None]:
    nothing = [None] * len(completions)
    options = zip(entry_point or nothing, setup or nothing, prefix or nothing, checker or nothing, strict=True)
    return [
        float(_passes(completion_text(completion), wanted, *row, limits)) if wanted else None
        for completion, wanted, row in zip(completions, tests, options, strict=True)
    ]


def _passes(
    text: str, tests: Any, names: Any, setup: str | None, prefix: str | None, checker: str | None, limits: Limits
) -> bool:
    code = f"{prefix or ''}{extract_code(text)}"
    if not code.strip() or "\0" in code:
        return False  # no program at all: not worth a process
    if isinstance(tests, str) or all(isinstance(test, str) for test in tests):
        script = tests if isinstance(tests, str) else "\n".join(tests)
        listed = [names] if isinstance(names, str) else list(names or called_names(script, setup or ""))
        return run_tests(code, script, listed, limits, setup=setup or "")[0]
    if not all(isinstance(test, Mapping) and {"input", "output"} <= set(test) for test in tests):
        raise RewardError("tests are neither Python nor objects with `input` and `output`; correct the column `tests`")
    return all(_prints(code, test["input"], test["output"], checker or "tokens", limits) for test in tests)


def extract_code(text: str) -> str:
    """The last Python block of a completion; without one, the last that names no language; else the text itself.

    A block that never closes ends with the text.
    """
    blocks = _BLOCK.findall(text)
    for wanted in (_PYTHON, ("",)):
        found = [code for language, code in blocks if language.lower() in wanted]
        if found:
            return str(found[-1])
    return text


def called_names(tests: str, setup: str = "") -> list[str]:
    """The names that tests use and nobody else defines: those that they expect of the code.

    Raises:
        RewardError: they are not Python.
    """
    try:
        nodes = [*ast.walk(parse_quietly(tests)), *ast.walk(parse_quietly(setup))]
    except (SyntaxError, ValueError, RecursionError) as error:
        raise RewardError(f"the tests of a problem are not Python ({error}); correct the data") from None
    names = {node.id: None for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    bound = {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    bound |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    bound |= {node.name for node in nodes if isinstance(node, ast.ExceptHandler) and node.name}
    bound |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            bound.update((alias.asname or alias.name).partition(".")[0] for alias in node.names)
    return [name for name in names if name not in bound and not hasattr(builtins, name)]


def parse_quietly(source: str) -> ast.Module:
    """`ast.parse` without warnings, of which the code in data sets has many: they are not about this program."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(source)


def _prints(code: str, given: str, right: str, checker: str, limits: Limits) -> bool:
    run = run_program(code, given, limits)
    if run.code != 0 or run.output is None:
        return False
    output = run.output.decode(errors="replace")
    if checker in CHECKERS:
        return CHECKERS[checker](output, right)
    files = {"input.txt": given, "answer.txt": right, "output.txt": output}
    judged = run_program(checker, "", limits, files=files)
    return judged.code == 0 and _is_accepted(judged.output or b"")


def _is_accepted(printed: bytes) -> bool:
    try:
        return float(printed.split()[0]) >= ACCEPTED
    except (IndexError, ValueError):
        return False
