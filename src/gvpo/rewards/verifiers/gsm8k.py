r"""GSM8K: the number that a worked solution ends with.

The data set's solutions end in a line `#### 1,234`; models write that, a \boxed{}, or a sentence. So the answer of a
completion is the first of these that it has: the number after its last `####`; the content of its last \boxed{},
without an `x =` before it and the unit after it; its last number. A marker without a number after it is a wrong
answer, not a reason to look elsewhere, and so is one before a calculation, a range or a choice: 5-6, 5 or 6.

Reference: Cobbe et al., Training Verifiers to Solve Math Word Problems (arXiv:2110.14168).
"""

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from gvpo.rewards.base import Answer, completion_text
from gvpo.rewards.math import spelling
from gvpo.rewards.math import text as mathtext
from gvpo.rewards.verifiers.boxed import last_boxed, normal_answer
from gvpo.rewards.verifiers.number import MAX_CHARACTERS, first_number, gold_number, last_number, parse_number

MARKER = "####"
_EQUALS = re.compile(r"(?<![<>!])=")
_GOES_ON = re.compile(r"[%$\s]*(?:[-+*/^=<>~×÷:—]|\\[a-z]+|\.\.|,\s|(?:or|and|to|x)\b)[\s$\\]*[-+]?[$.\d]")  # noqa: RUF001
_WORDS_AT_END = re.compile(r"(?<=[0-9}])\s+[A-Za-z][A-Za-z ]*$")


def gsm8k(completions: Sequence[Answer], answer: Sequence[Any], **columns: Any) -> list[float | None]:
    """1 where the completion's final number equals `answer`, else 0.

    Args:
        completions: k completions.
        answer: k numbers, or the data set's own solutions that end in `#### n`; None abstains.
        columns: not used.

    Returns:
        k values: 1.0, 0.0, or None.

    Raises:
        ValueError: an answer has no number.
    """
    return [
        None if gold is None else float(final_number(completion_text(completion)) == gold_answer(gold))
        for completion, gold in zip(completions, answer, strict=True)
    ]


def gold_answer(value: Any) -> Fraction:
    """The number of a GSM8K answer: what follows the last `####`, or the whole of it where there is no marker.

    Raises:
        ValueError: that is not a number.
    """
    return gold_number(str(value).rpartition(MARKER)[2])


def final_number(text: str) -> Fraction | None:
    """The number that a solution ends with, by the convention above; None if it has none."""
    if MARKER in text:
        return _marked(text.rpartition(MARKER)[2])
    boxed = last_boxed(text)
    if boxed is not None:
        return _number_in_box(boxed)
    return last_number(text)


def _marked(text: str) -> Fraction | None:
    """The first number of a text; None where a calculation, a range or a choice goes on to another one."""
    number, rest = first_number(text)
    return None if _GOES_ON.match(rest) else number


def _number_in_box(content: str) -> Fraction | None:
    """The number in a box, behind the last equals sign and without its unit; no other number of an expression."""
    if len(content) > MAX_CHARACTERS:
        return None
    value = mathtext.unwrapped(_EQUALS.split(spelling.spelled(content))[-1])
    bare, _ = mathtext.without_units(mathtext.words(value) or value)
    return parse_number(normal_answer(_WORDS_AT_END.sub("", bare)))
