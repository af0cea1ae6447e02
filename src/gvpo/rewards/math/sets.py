r"""Sets of real numbers, so that `\mathbb{R} \setminus \{0\}`, `x \ne 0` and `(-\infty,0) \cup (0,\infty)` are one set.

A set is a tuple of disjoint pieces in ascending order. The end of a piece is a number and -1, 0 or 1 (just before it,
at it, just after it), so (1,2] goes from (1, 1) to (2, 0), and [1,1] is the point 1.
"""

import re
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

from gvpo.rewards.math import text as mathtext
from gvpo.rewards.math.evaluate import NoValue, value
from gvpo.rewards.math.parse import parsed, symbols
from gvpo.rewards.math.relations import ORDERS, Relation, is_name, relation
from gvpo.rewards.math.spelling import compact

End = tuple[Any, int]
Pieces = tuple[tuple[End, End], ...]
_ABSOLUTE = re.compile(r"\|\s*[A-Za-z]\s*\|")
_LEAST, _GREATEST = float("-inf"), float("inf")
REALS: Pieces = (((_LEAST, 1), (_GREATEST, -1)),)
_ALL = ("\\mathbb{R}", "\\text{all real numbers}", "\\text{all reals}", "all real numbers", "\\text{all real }x")


def real_set(text: str) -> Pieces | None:
    """Return the set of real numbers that a text denotes; None if it is not a set or its ends are not numbers."""
    try:
        return _set(text.strip())
    except (NoValue, ValueError, TypeError):
        return None


def is_about_sets(text: str) -> bool:
    r"""Return whether a text can only be a set of real numbers: a union, a difference, \mathbb{R}, an inequality."""
    flat = mathtext.level_zero(text)
    return (
        any(sign in flat for sign in ("\\cup", "\\cap", "\\setminus", "\\mathbb", "<", ">", "\\le", "\\ge", "\\ne"))
        or _is_all(text)
        or ("\\{" in text and any(mark in text for mark in ("\\mid", ":", "|")))
    )


def _is_all(text: str) -> bool:
    return text in _ALL or text.lower() in _ALL


def variables(text: str) -> frozenset[str]:
    """Return the names of the variables that a text makes statements about."""
    sides = [
        side for part in mathtext.split(text) for found in (relation(part),) if found.signs for side in found.sides
    ]
    return frozenset(compact(side) for side in sides if is_name(side))


def _set(text: str) -> Pieces:
    text = text.strip()
    if _is_all(text):
        return REALS
    parts = mathtext.split(text)
    if len(parts) > 1:
        return _conditions([_relation(relation(part)) for part in parts])
    for sign, combined in (("\\cup", union), ("\\cap", _intersection), ("\\setminus", _difference), ("-", _difference)):
        at = mathtext.level_zero(text).rfind(sign)
        if at > 0 and (sign != "-" or text.startswith(("\\mathbb", "(-\\infty"))):
            return combined(_set(text[:at]), _set(text[at + len(sign) :]))
    found = relation(text)
    if found.signs == ("\\in",) and is_name(found.sides[0]):
        return _set(found.sides[1])
    return _relation(found) if found.signs else _bracketed(text)


def _bracketed(text: str) -> Pieces:
    r"""Return the pieces of an interval, a set of numbers or \{x : x > 2\}."""
    found = mathtext.form(text)
    if found.kind == "tuple" and len(found.parts) == 2:
        low, high = map(_end, found.parts)
        return _pieces([((low, int(found.brackets[0] == "(")), (high, -int(found.brackets[1] == ")")))])
    if text.startswith("\\{") and text.endswith("\\}"):
        return _members(text[2:-2].strip(), found.parts)
    if found.kind == "union" and text.startswith("("):
        return _set(text[1:-1])
    if text.strip() == "\\emptyset":
        return ()
    raise ValueError(text)


def _members(inner: str, parts: tuple[str, ...]) -> Pieces:
    for mark in ("\\mid", "|", ":"):
        before, found, condition = inner.partition(mark)
        if found and is_name(relation(before.strip()).sides[0]):
            return _set(condition)
    return _pieces([((number, 0), (number, 0)) for number in map(_number, parts)])


def _relation(found: Relation) -> Pieces:
    r"""Return the numbers that satisfy 1 < x \le 2, x > 1 or x \ne 0."""
    if len(found.signs) == 1 and any(map(_ABSOLUTE.fullmatch, found.sides)):
        return _absolute(found if _ABSOLUTE.fullmatch(found.sides[0]) else found.flipped())
    names = [index for index, side in enumerate(found.sides) if is_name(side)]
    if len(names) != 1 or not 0 < len(found.signs) <= 2:
        raise ValueError(found)
    at, pieces = names[0], REALS
    for index, side in enumerate(found.sides):
        if index != at:
            sign = found.signs[min(index, at)] if abs(index - at) == 1 else ""
            pieces = _intersection(pieces, _compared(sign, _end(side), index > at))
    return pieces


def _absolute(found: Relation) -> Pieces:
    """Return the numbers that satisfy |x| < 2, or |x| > 2."""
    name, end, sign = found.sides[0].strip("| "), found.sides[1], found.signs[0]
    above = _relation(Relation((name, end), (sign,)))
    below = _relation(Relation((f"-({end})", name), (sign,)))
    return union(above, below) if sign in (">", "\\ge") else _intersection(above, below)


def _compared(sign: str, end: Any, after: bool) -> Pieces:
    """Return the numbers x with `x sign end`, or with `end sign x` if the end is before the sign."""
    if sign == "\\ne":
        return _complement((((end, 0), (end, 0)),))
    if sign not in ORDERS:
        raise ValueError(sign)
    strict = int(sign in "<>")
    if (sign in ("<", "\\le")) == after:
        return _pieces([((_LEAST, 1), (end, -strict))])
    return _pieces([((end, strict), (_GREATEST, -1))])


def _conditions(sets: list[Pieces]) -> Pieces:
    """Combine several conditions: those that exclude each other are alternatives, others apply together."""
    result = sets[0]
    for each in sets[1:]:
        result = _intersection(result, each) or union(result, each)
    return result


def _end(text: str) -> Any:
    plain = text.replace(" ", "").removeprefix("+")
    if plain in ("\\infty", "-\\infty"):
        return _GREATEST if plain == "\\infty" else _LEAST
    return _number(text)


def _number(text: str) -> Any:
    tree = parsed(mathtext.without_units(mathtext.unwrapped(text))[0])
    if tree is None or symbols(tree):
        raise ValueError(text)
    found = value(tree)
    return found if isinstance(found, Fraction) else _rounded(found)


def _rounded(found: Any) -> Fraction:
    """Return a real number as a fraction of 40 decimal digits, so that the same ends are equal."""
    scale = 10**40
    return Fraction(int(found.context.nint(found * scale)), scale)


def _pieces(pieces: Iterable[tuple[End, End]]) -> Pieces:
    """Return the pieces in order; merge those that touch or overlap, and drop empty ones."""
    result: list[tuple[End, End]] = []
    for low, high in sorted(piece for piece in pieces if piece[0] <= piece[1]):
        if result and low <= _next(result[-1][1]):
            result[-1] = (result[-1][0], max(result[-1][1], high))
        else:
            result.append((low, high))
    return tuple(result)


def _next(end: End) -> End:
    """Return the next place after an end; the places of a number are before it, at it and after it."""
    return (end[0], end[1] + 1)


def union(left: Pieces, right: Pieces) -> Pieces:
    """Return the numbers in one of two sets."""
    return _pieces([*left, *right])


def _complement(pieces: Pieces) -> Pieces:
    low: End = (_LEAST, 1)
    result = []
    for start, end in pieces:
        result.append((low, (start[0], start[1] - 1)))
        low = _next(end)
    return _pieces([*result, (low, (_GREATEST, -1))])


def _intersection(left: Pieces, right: Pieces) -> Pieces:
    return _complement(union(_complement(left), _complement(right)))


def _difference(left: Pieces, right: Pieces) -> Pieces:
    return _intersection(left, _complement(right))
