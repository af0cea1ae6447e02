"""Code: does the completion's Python pass its tests? It runs in a sandbox, and the verdict is made outside of it.

Completions are judged by what their functions return, compared in a process that they cannot reach, or by what they
print, compared here. See `gvpo.rewards.sandbox` for what holds the code.
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
    """1 where the completion's code passes all tests, else 0.

    The code is the last block fenced as Python, or else the last fenced at all, or else the whole text.

    Args:
        completions: k completions.
        tests: k times either tests of functions, as Python text or a list of it, or runs of a program, such as a list
            of {"input": text, "output": text} (`codeforms` has all shapes); None or none abstains.
        entry_point: k names that tests call (or lists of them), `Class.method` too; default every name in the tests
            that neither they, nor `setup`, nor Python define.
        setup: k pieces of Python that the tests need.
        prefix: k beginnings of the code, for completions that go on where a prompt ends.
        checker: how a program's output is compared: a name in `checkers.CHECKERS` or the source of a program that
            prints 1 for right, given the paths of the input, the right output and the output; default "tokens".
        columns: not used.

    Returns:
        k values: 1.0, 0.0, or None. None has a reason (`no_value`) where the problem cannot be judged: its tests have
        a form that is not described here, cannot run, or pass for an empty program.

    Raises:
        RewardError: code cannot be isolated on this machine and `GVPO_UNSAFE_CODE=1` is not set.
    """
    return _judged(Limits(), completions, tests, entry_point, setup, prefix, checker)


code_tests.check_ready = is_isolated  # type: ignore[attr-defined]
code_tests.row_by_row = True  # type: ignore[attr-defined]


def code_reward(**limits: Any) -> RewardFunc:
    """`code_tests` with limits of its own.

    Args:
        limits: `wall`, `cpu` (seconds), `memory`, `disk`, `output` (bytes), `processes`: see `sandbox.limits.Limits`.

    Raises:
        RewardError: a limit that cannot be.
    """
    reward: RewardFunc = functools.partial(_judged, Limits(**limits))
    reward.check_ready, reward.row_by_row = is_isolated, True  # type: ignore[attr-defined]  # a partial takes them
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
            known = row, scorable(limits, *row)  # once for the completions of a group
        if isinstance(known[1], str):
            no_value(number, known[1])
        values.append(float(_passes(completion, known[1])) if isinstance(known[1], CodeProblem) else None)
    return values


def _passes(completion: Answer, problem: CodeProblem) -> bool:
    code = f"{problem.prefix}{extract_code(completion_text(completion))}"
    if not code.strip() or "\0" in code:
        return False  # no program at all: not worth a process
    return problem.passes(code)


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
