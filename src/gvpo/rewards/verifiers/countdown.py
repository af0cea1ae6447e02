r"""Countdown: an expression of given numbers that equals a target, checked by its syntax tree and never evaluated.

The expression of a completion is the content of its last \boxed{...}; without a box, of its last <answer>...</answer>;
without a tag, its last line. "= value" may follow it. LaTeX's \times, \cdot, \div and \frac are accepted too.
"""

import ast
import json
import re
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from gvpo.rewards.base import Answer, completion_text
from gvpo.rewards.code.forms import parse_quietly
from gvpo.rewards.verifiers.boxed import last_boxed

MAX_CHARACTERS = 500
"""Maximum length of an expression; longer ones are not read."""
_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_SPELLINGS = (
    *((sign, "*") for sign in ("\\times", "\\cdot", "×", "·")),  # noqa: RUF001
    *((sign, "/") for sign in ("\\div", "÷")),
    *((sign, "-") for sign in ("−", "–")),  # noqa: RUF001
    *((sign, " ") for sign in ("\\left", "\\right", "\\,", "\\;", "\\!", "\\ ", "$")),
)
_READABLE = re.compile(r"[0-9+\-*/() \t]+")


def countdown(
    completions: Sequence[Answer], numbers: Sequence[Any], target: Sequence[Any], **columns: Any
) -> list[float | None]:
    """Return 1 if the completion's expression equals the target and uses each number exactly once, else 0.

    Args:
        completions: k completions.
        numbers: k lists of integers, or their JSON; None abstains.
        target: k integers; None abstains.
        columns: Not used.

    Returns:
        k values: 1.0, 0.0, or None.

    Raises:
        ValueError: If numbers or a target are not integers.
    """
    return [
        None if given is None or wanted is None else float(_is_right(completion_text(text), _given(given), int(wanted)))
        for text, given, wanted in zip(completions, numbers, target, strict=True)
    ]


def value_of(expression: str, numbers: Sequence[int]) -> Fraction | None:
    """Return the exact value of an expression.

    Args:
        expression: Expression of integers, +, -, *, / and brackets.
        numbers: Numbers that it must use, each as often as it occurs here.

    Returns:
        The exact value; None if the text is not such an expression, uses other numbers, or divides by zero.
    """
    tree = _tree(expression)
    if tree is None:
        return None
    used = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    if Counter(used) != Counter(numbers):
        return None
    try:
        return _value(tree)
    except (ValueError, ZeroDivisionError):
        return None


def written_expression(text: str) -> str:
    """Return the expression of a completion in Python's notation; "" for a text that is much too long."""
    found = last_boxed(text)
    if found is None:
        tagged = _TAGGED.findall(text)
        found = tagged[-1] if tagged else text.strip().rpartition("\n")[2]
    if len(found) > 4 * MAX_CHARACTERS:
        return ""
    for old, new in _SPELLINGS:
        found = found.replace(old, new)
    before = None
    while before != found:
        before, found = found, _FRACTION.sub(r"((\1)/(\2))", found)
    return found.strip().removesuffix(".")


def _is_right(text: str, numbers: Sequence[int], target: int) -> bool:
    expression, equals, stated = written_expression(text).partition("=")
    return value_of(expression, numbers) == target and (not equals or stated.strip() == str(target))


def _given(numbers: Any) -> list[int]:
    listed = json.loads(numbers) if isinstance(numbers, str) else numbers
    if not isinstance(listed, Sequence) or not all(isinstance(each, int) for each in listed):
        raise ValueError(f"the numbers {str(numbers)[:80]!r} are not a list of integers; clean the column")
    return list(listed)


def _tree(expression: str) -> ast.expr | None:
    if len(expression) > MAX_CHARACTERS or not _READABLE.fullmatch(expression):
        return None
    try:
        (statement,) = parse_quietly(expression.strip()).body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None
    return statement.value if isinstance(statement, ast.Expr) else None


def _value(node: ast.expr) -> Fraction:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return Fraction(node.value)
    if not isinstance(node, ast.BinOp):
        raise ValueError("a sign that is not allowed")
    left, right = _value(node.left), _value(node.right)
    if isinstance(node.op, ast.Add):
        return left + right
    if isinstance(node.op, ast.Sub):
        return left - right
    if isinstance(node.op, ast.Mult):
        return left * right
    if isinstance(node.op, ast.Div):
        return left / right
    raise ValueError("a sign that is not allowed")
