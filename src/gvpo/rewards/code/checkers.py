"""Checkers, by name, that decide whether a program's output is correct."""

import math
from collections.abc import Callable

TOLERANCE = 1e-6
"""Tolerance of `numbers`, relative or absolute, whichever is larger, as is common in programming contests."""


def exact(output: str, right: str) -> bool:
    """Return whether two texts are the same, except for white space at the ends of lines and of the text."""
    return _lines(output) == _lines(right)


def tokens(output: str, right: str) -> bool:
    """Return whether two texts have the same words between white space."""
    return output.split() == right.split()


def numbers(output: str, right: str) -> bool:
    """Return whether two texts have the same words, where numbers may differ by a millionth."""
    ours, theirs = output.split(), right.split()
    return len(ours) == len(theirs) and all(map(_is_near, ours, theirs))


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


def _is_near(word: str, right: str) -> bool:
    if word == right:
        return True
    try:
        value, wanted = float(word), float(right)
    except ValueError:
        return False
    return math.isfinite(wanted) and math.isclose(value, wanted, rel_tol=TOLERANCE, abs_tol=TOLERANCE)


CHECKERS: dict[str, Callable[[str, str], bool]] = {"exact": exact, "numbers": numbers, "tokens": tokens}
"""The built-in comparisons: `checker(output, right)`."""
