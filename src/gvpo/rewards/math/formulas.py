r"""Comparison of two formulas, or of two equations between formulas, by their values at points.

Constants are compared exactly if they are fractions, and by 40 digits otherwise. Formulas with variables are compared
at points that are spread over small and large, positive and negative, integer and fractional numbers.
"""

import contextlib
import zlib
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

from gvpo.rewards.math.evaluate import DIGITS, NoValue, Value, value
from gvpo.rewards.math.parse import Tree, operations, symbols

RELATIVE = Fraction(1, 10**6)
"""Decimals are the same up to this fraction of the larger one, and up to one unit of the last written digit."""
_SAME = Fraction(1, 10**40)
"""Relative difference of two equal constants that rounding errors may cause."""
_WHOLE_NUMBERS = frozenset("ijklmnpqrNKM")
"""Variables that are integers in formulas with rounding: \\lceil n/2 \\rceil is \\lfloor (n+1)/2 \\rfloor."""
_ROUNDING = {"floor", "ceil", "mod", "gcd", "lcm", "factorial", "factorial2", "binomial", "sum", "prod"}
_SMALL, _POSITIVE, _SIGNED, _WHOLE, _NEGATIVE = (
    tuple(map(Fraction, row.split()))
    for row in (
        "1/7 2/9 -3/8 4/11 5/12 -1/5",
        "13/21 53/40 85/38 39/22 64/7 157/11",
        "-25/21 -13/5 7/9 -81/8 211/9 -3/17",
        "1 2 3 5 8 12 17 26 31 44",
        "-1 -4 -7 6",
    )
)
"""Points at which formulas are compared, row by row."""


def same_constant(left: Tree, right: Tree, decimals: bool, error: Fraction | None) -> bool:
    """Return whether two trees without variables have the same value, and False if one has no value.

    Args:
        left: A tree.
        right: Another tree.
        decimals: True if one of them is written with a decimal point, so that a difference of a millionth is allowed.
        error: The difference that is allowed instead; None for none.
    """
    try:
        a, b = value(left), value(right)
        if error is not None or decimals:
            return near(a, b, error)
        if isinstance(a, Fraction) and isinstance(b, Fraction):
            return a == b
        return _close(a, b) or _vanishes(("+", left, ("*", Fraction(-1), right)))
    except NoValue:
        return False


def near(a: Value, b: Value, error: Fraction | None) -> bool:
    """Return whether two numbers differ by at most `error`, or by a millionth of the larger one."""
    a, b = _alike(a, b)
    distance, size = abs(a - b), max(abs(a), abs(b))
    return bool(distance <= (_like(error, distance) if error is not None else size * _like(RELATIVE, size)))


def same_function(left: Tree, right: Tree) -> bool:
    """Return whether two trees with variables have the same values at all points at which both have one."""
    if left == right:
        return True
    seen = 0
    for a, b in _values(left, right):
        if not _close(a, b):
            return False
        seen += 1
    return seen >= 3


def ratio(left: Tree, right: Tree) -> Value | None:
    """Return the constant c with left = c * right; None if there is none, or if it is 0."""
    found: list[Value] = []
    for a, b in _values(left, right):
        if a == 0 or b == 0:
            if a != b:
                return None
            continue
        a, b = _alike(a, b)
        found.append(a / b)
        if not _close(found[0], found[-1]):
            return None
    return found[0] if len(found) >= 3 or (found and not symbols(left) | symbols(right)) else None


def _values(left: Tree, right: Tree) -> Iterator[tuple[Value, Value]]:
    """Yield the values of two formulas at all points at which both have one; without i, only real values count."""
    imaginary = "i" in _leaves(left) | _leaves(right)
    try:
        known = [None if symbols(tree) else value(tree, complex_numbers=imaginary) for tree in (left, right)]
    except NoValue:
        return
    for at in _points(left, right):
        with contextlib.suppress(NoValue):
            pairs = zip((left, right), known, strict=True)
            a, b = (value(tree, at, complex_numbers=imaginary) if same is None else same for tree, same in pairs)
            yield a, b


def _points(left: Tree, right: Tree) -> Iterator[dict[str, Any]]:
    """Yield points for all variables of two formulas, and functions for their unknown functions."""
    names = sorted(symbols(left) | symbols(right))
    roundings = [bool(operations(tree) & _ROUNDING) for tree in (left, right)]
    whole_only = all(roundings) and all(name in _WHOLE_NUMBERS for name in names if not name.endswith("()"))
    rows = [] if whole_only else [_SMALL, _POSITIVE, _SIGNED]
    if any(roundings) or "^" in operations(left) | operations(right):
        rows += [_WHOLE, _NEGATIVE]
    for row in rows:
        for start in range(len(row)):
            numbers = {name: _coordinate(row, start, n) for n, name in enumerate(names)}
            yield {name: _unknown(f"{start}{name}") if name.endswith("()") else x for name, x in numbers.items()}


def _coordinate(row: Sequence[Fraction], start: int, n: int) -> Fraction:
    """Return the n-th variable at a point: an integer in a row of integers, near 0 in the row of small numbers."""
    number = row[(start + 3 * n) % len(row)]
    if number.denominator == 1:
        return number + n * n * (start + 1) % 13 + n
    return number + Fraction(n * (7 * start + 11), (13 + n) * (40 if row is _SMALL else 1))


def _unknown(name: str) -> Any:
    """Return a function with a different value at each point, for f in f(x+1)."""

    def function(*arguments: Value) -> Fraction:
        text = ";".join(str(complex(each) if not isinstance(each, Fraction) else each) for each in arguments)
        return Fraction(zlib.crc32(f"{name}{text}".encode()) + 1, 2**28)

    return function


def _leaves(tree: Tree) -> set[str]:
    if isinstance(tree, str):
        return {tree}
    return set().union(*map(_leaves, tree[1:])) if isinstance(tree, tuple) else set()


def is_real(*values: Value) -> bool:
    """Return whether no value has an imaginary part."""
    return all(isinstance(each, Fraction) or not hasattr(each, "_mpc_") or each.imag == 0 for each in values)


def _close(a: Value, b: Value) -> bool:
    """Return whether two values agree exactly, or to 40 digits if one of them is not a fraction."""
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a == b
    a, b = _alike(a, b)
    size = max(abs(a), abs(b))
    return bool(abs(a - b) <= size * _like(_SAME, size))


def _vanishes(tree: Tree) -> bool:
    r"""Return whether a constant is 0 up to rounding errors, as \sin\pi is: it shrinks with more digits."""
    coarse, fine = abs(value(tree)), abs(value(tree, digits=2 * DIGITS))
    return bool(fine == 0 or (coarse < _like(_SAME, coarse) and fine < coarse * _like(_SAME, coarse)))


def _alike(a: Value, b: Value) -> tuple[Value, Value]:
    """Return two numbers as two fractions or as two mpmath numbers."""
    return _like(a, b), _like(b, a)


def _like(number: Value, other: Value) -> Value:
    """Return a fraction as an mpmath number if `other` is one."""
    if not isinstance(number, Fraction) or isinstance(other, Fraction):
        return number
    return other.context.mpf(number.numerator) / number.denominator


def is_zero(tree: Tree) -> bool:
    """Return whether a tree without variables is 0, or has no value."""
    try:
        return not symbols(tree) and bool(value(tree) == 0)
    except NoValue:
        return True
