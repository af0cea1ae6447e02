"""Code: does the completion's Python code pass its tests? It runs in a sandbox, and is scored outside of it.

Completions are scored by the return values of their functions, compared in a process that they cannot reach, or by
their printed output, compared here. See `gvpo.rewards.sandbox` for the isolation of the code.
"""

import functools
import re
from collections.abc import Sequence
from typing import Any

from gvpo.rewards.base import Answer, RewardFunc, blames_text, completion_text
from gvpo.rewards.code.problem import CodeProblem, scorable
from gvpo.rewards.sandbox.isolation import is_isolated
from gvpo.rewards.sandbox.limits import Limits
from gvpo.workers.reasons import no_value

_BLOCK = re.compile(r"^[ \t]*```[ \t]*(\w*)[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
_PYTHON = ("python", "python3", "py")


def code_tests(
    completions: Sequence[Answer],
    tests: Sequence[Any],
    entry_point: Sequence[Any] | None = None,
    setup: Sequence[str | None] | None = None,
    prefix: Sequence[str | None] | None = None,
    checker: Sequence[str | None] | None = None,
    **columns: Any,
) -> list[float | None]:
    """Return 1 if the completion's code passes all tests, else 0.

    The code is the last block fenced as Python, otherwise the last fenced block, otherwise the whole text.

    Args:
        completions: k completions.
        tests: k sets of tests: either tests of functions, as Python text or a list of such texts, or runs of a program,
            such as a list of {"input": text, "output": text} (see `forms` for all formats); None or no tests abstains.
        entry_point: k names that tests call (or lists of them), including `Class.method`; default every name in the
            tests that is defined neither by them, nor by `setup`, nor by Python.
        setup: k pieces of Python code that the tests need.
        prefix: k beginnings of the code, for completions that continue the prompt's code.
        checker: k comparisons of a program's output: a name in `checkers.CHECKERS`, or the source of a program that
            prints 1 for correct, given the paths of the input, the correct output and the output; default "tokens".
        columns: Not used.

    Returns:
        k values: 1.0, 0.0, or None. None has a reason (`no_value`) if no completion can be scored because the tests
        have an unknown format, cannot run, or pass for an empty program.

    Raises:
        RewardError: If code cannot be isolated on this machine and `GVPO_UNSAFE_CODE=1` is not set.
    """
    return _judged(Limits(), completions, tests, entry_point, setup, prefix, checker)


code_tests.check_ready = is_isolated  # type: ignore[attr-defined]
code_tests.row_by_row = True  # type: ignore[attr-defined]


def code_reward(**limits: Any) -> RewardFunc:
    """Create `code_tests` with other limits.

    Args:
        limits: `wall`, `cpu` (seconds), `memory`, `disk`, `output` (bytes), `processes`: see `sandbox.limits.Limits`.

    Raises:
        RewardError: If a limit is invalid.
    """
    reward: RewardFunc = functools.partial(_judged, Limits(**limits))
    reward.check_ready, reward.row_by_row = is_isolated, True  # type: ignore[attr-defined]  # a partial allows them
    return blames_text(reward, control="pass")


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
    rows = zip(tests, *(column or nothing for column in (entry_point, setup, prefix, checker)), strict=True)
    values: list[float | None] = []
    known: tuple[Any, CodeProblem | str | None] = ((), None)
    for number, (completion, row) in enumerate(zip(completions, rows, strict=True)):
        if not known[0] or any(one is not other for one, other in zip(row, known[0], strict=True)):
            known = row, scorable(limits, *row)  # once for all completions of a group
        if isinstance(known[1], str):
            no_value(number, known[1])
        values.append(float(_passes(completion, known[1])) if isinstance(known[1], CodeProblem) else None)
    return values


def _passes(completion: Answer, problem: CodeProblem) -> bool:
    code = f"{problem.prefix}{extract_code(completion_text(completion))}"
    if not code.strip() or "\0" in code:
        return False  # an empty program needs no process
    return problem.passes(code)


def extract_code(text: str) -> str:
    """Return the last Python block of a completion, otherwise the last block without a language, otherwise the text.

    A block that never closes ends with the text.
    """
    blocks = _BLOCK.findall(text)
    for wanted in (_PYTHON, ("",)):
        found = [code for language, code in blocks if language.lower() in wanted]
        if found:
            return str(found[-1])
    return text
