r"""Numbers in text, exactly: read as fractions, compared without tolerance, never evaluated.

Each of these is read as one number:

    12   -3   +4   1,234,567   0.5   .5   1e-3   3/4   1 1/2   \frac{3}{4}   1\frac{1}{2}   $5   -$5   50%   1{,}234

A minus is a sign unless it touches a digit, a letter or a closing bracket before it: 10-5 ends in 5, not in -5.
A percent sign is dropped (50% equals 50, not 0.5), units are ignored (5km is 5), and digits inside a word are not a
number (H2O).
"""

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from gvpo.rewards.base import Answer, grade

MAX_CHARACTERS = 1000
"""Maximum length of a run of digits; a longer one is not a plausible answer, and its arithmetic would take long."""

_UNSIGNED = (
    r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})++(?![0-9])|[0-9]++)(?:\.[0-9]++)?|(?<!\.)\.[0-9]++)"  # 1,234.5 or .5
    r"(?:[eE][-+]?[0-9]{1,3}(?![0-9]))?"
)
_NUMBER = re.compile(
    rf"""
    (?:(?<![A-Za-z0-9_)\]}}])(?P<sign>[-+]))?          # 10-5 and f(x)-5 subtract
    \$?
    (?<![A-Za-z0-9_])(?<![0-9]\.)                      # not inside a word, nor the third part of 1.2.3
    (?:
        (?P<latex_whole>[0-9]++)?\s?\\[dt]?frac\{{(?P<top>-?{_UNSIGNED})\}}\{{(?P<bottom>{_UNSIGNED})\}}
      | (?P<whole>[0-9]++)[ ](?P<part>[0-9]++)/(?P<parts>[0-9]++)
      | (?P<numerator>{_UNSIGNED})/(?P<denominator>{_UNSIGNED})
      | (?P<plain>{_UNSIGNED})
    )
    """,
    re.VERBOSE,
)
_SPELLINGS = (
    *((minus, "-") for minus in "−–‐‑﹣－"),  # noqa: RUF001
    *(("{,}", ","), ("\\!", ""), ("\\$", "$"), ("\\%", "%")),
)


def number_match(completions: Sequence[Answer], answer: Sequence[Any], **columns: Any) -> list[float | None]:
    """Return 1 if the last number in the completion equals `answer` exactly (as 0.1 + 0.2 equals 0.3), else 0.

    Args:
        completions: k completions; one without a number gets 0.
        answer: k numbers or their text; None abstains.
        columns: Not used.

    Returns:
        k values: 1.0, 0.0, or None.

    Raises:
        ValueError: If an answer is not a number.
    """
    return grade(completions, answer, lambda text, gold: last_number(text) == gold_number(gold))


def gold_number(value: Any) -> Fraction:
    """Return the number of a dataset's answer; a float is read as printed, so 0.1 is a tenth.

    Raises:
        ValueError: If it is not a number.
    """
    number = parse_number(str(value))
    if number is None:
        raise ValueError(f"the answer {str(value)[:80]!r} is not a number; clean the column or use exact_match")
    return number


def last_number(text: str) -> Fraction | None:
    """Return the last number in a text; None if there is none, or if it has no value (3/0, a thousand digits)."""
    last = None
    for last in _NUMBER.finditer(_spelled(text)):  # noqa: B007 - only the last match is needed
        pass
    return None if last is None else _value(last)


def first_number(text: str) -> tuple[Fraction | None, str]:
    """Return the first number in a text, and the text after it; None and "" if `last_number` finds none."""
    spelled = _spelled(text)
    first = _NUMBER.search(spelled)
    return (None, "") if first is None else (_value(first), spelled[first.end() :])


def parse_number(text: str) -> Fraction | None:
    """Return the number that a text is, ignoring $, % and a full stop at its end; None if it is anything else."""
    whole = _NUMBER.fullmatch(_spelled(text).strip().strip("$").removesuffix(".").removesuffix("%").strip())
    return None if whole is None else _value(whole)


def _spelled(text: str) -> str:
    """Return `text` with one spelling for each sign."""
    for old, new in _SPELLINGS:
        text = text.replace(old, new)
    return text


def _value(match: re.Match[str]) -> Fraction | None:
    found = {name: part.replace(",", "") for name, part in match.groupdict().items() if part is not None}
    if len(match.group()) > MAX_CHARACTERS:
        return None
    sign = -1 if found.pop("sign", "+") == "-" else 1
    try:
        return sign * _magnitude(found)
    except ZeroDivisionError:
        return None


def _magnitude(found: dict[str, str]) -> Fraction:
    if "plain" in found:
        return Fraction(found["plain"])
    if "numerator" in found:
        return Fraction(found["numerator"]) / Fraction(found["denominator"])
    if "whole" in found:
        return int(found["whole"]) + Fraction(int(found["part"]), int(found["parts"]))
    return int(found.get("latex_whole", 0)) + Fraction(found["top"]) / Fraction(found["bottom"])
