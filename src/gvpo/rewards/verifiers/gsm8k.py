r"""GSM8K: the number at the end of a worked solution.

The dataset's solutions end in a line `#### 1,234`; models write that, a \boxed{}, or a sentence. The answer of a
completion is therefore the first of these that exists: the number after its last `####`; the content of its last
\boxed{}, without an `x =` before it and the unit after it; its last number. A marker without a number after it is a
wrong answer (the other places are not searched), and so is one before a calculation, a range or a choice: 5-6, 5 or 6.

Reference: Cobbe et al., Training Verifiers to Solve Math Word Problems (arXiv:2110.14168).
"""

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from gvpo.rewards.base import Answer, grade
from gvpo.rewards.math import spelling
from gvpo.rewards.math import text as mathtext
from gvpo.rewards.verifiers.boxed import last_boxed, normal_answer
from gvpo.rewards.verifiers.number import MAX_CHARACTERS, first_number, gold_number, last_number, parse_number

MARKER = "####"
_EQUALS = re.compile(r"(?<![<>!])=")
_GOES_ON = re.compile(r"[%$\s]*(?:[-+*/^=<>~×÷:—]|\\[a-z]+|\.\.|,\s|(?:or|and|to|x)\b)[\s$\\]*[-+]?[$.\d]")  # noqa: RUF001
_WORDS_AT_END = re.compile(r"(?<=[0-9}])\s+[A-Za-z][A-Za-z ]*$")


def gsm8k(completions: Sequence[Answer], answer: Sequence[Any], **columns: Any) -> list[float | None]:
    """Return 1 if the completion's final number equals `answer`, else 0.

    Args:
        completions: k completions.
        answer: k numbers, or the dataset's own solutions that end in `#### n`; None abstains.
        columns: Not used.

    Returns:
        k values: 1.0, 0.0, or None.

    Raises:
        ValueError: If an answer has no number.
    """
    return grade(completions, answer, lambda text, gold: final_number(text) == gold_answer(gold))


def gold_answer(value: Any) -> Fraction:
    """Return the number of a GSM8K answer: the text after the last `####`, or all of it without a marker.

    Raises:
        ValueError: If that is not a number.
    """
    return gold_number(str(value).rpartition(MARKER)[2])


def final_number(text: str) -> Fraction | None:
    """Return the number at the end of a solution, by the convention above; None if there is no number."""
    if MARKER in text:
        return _marked(text.rpartition(MARKER)[2])
    boxed = last_boxed(text)
    if boxed is not None:
        return _number_in_box(boxed)
    return last_number(text)


def _marked(text: str) -> Fraction | None:
    """Return the first number of a text; None if it is part of a calculation, a range or a choice."""
    number, rest = first_number(text)
    return None if _GOES_ON.match(rest) else number


def _number_in_box(content: str) -> Fraction | None:
    """Return the number in a box, after the last equals sign and without its unit; None for other expressions."""
    if len(content) > MAX_CHARACTERS:
        return None
    value = mathtext.unwrapped(_EQUALS.split(spelling.spelled(content))[-1])
    bare, _ = mathtext.without_units(mathtext.words(value) or value)
    return parse_number(normal_answer(_WORDS_AT_END.sub("", bare)))
