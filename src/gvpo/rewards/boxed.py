r"""The answer in the last \boxed{...}: what language models are asked to write around a result."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from gvpo.rewards.base import Answer, completion_text
from gvpo.rewards.number import parse_number

_BOX = "\\boxed{"
_IGNORED = ("\\left", "\\right", "\\,", "\\;", "\\:", "\\!", "\\ ", "$")
_ONE_SPELLING = (("\\dfrac", "\\frac"), ("\\tfrac", "\\frac"), ("\\%", "%"), ("\\$", ""), ("−", "-"))  # noqa: RUF001


def boxed_answer(completions: Sequence[Answer], answer: Sequence[Any], **columns: Any) -> list[float | None]:
    r"""1 where the content of the last \boxed{...} is `answer`, else 0.

    They are equal if they are the same number (`number.parse_number`: \frac{1}{2}, 1/2 and 0.5 are) or the same text
    after white space, $, LaTeX's spacing, \left and \right and a full stop at the end are dropped. A last box that
    never closes is no answer.

    Args:
        completions: k completions.
        answer: k answers; an answer that is itself \boxed{...} is unwrapped; None abstains.
        columns: not used.

    Returns:
        k values: 1.0, 0.0, or None.
    """
    return [
        None if gold is None else float(_is_boxed(completion_text(completion), str(gold)))
        for completion, gold in zip(completions, answer, strict=True)
    ]


def _is_boxed(text: str, gold: str) -> bool:
    content = last_boxed(text)
    unwrapped = last_boxed(gold)
    return content is not None and same_answer(content, gold if unwrapped is None else unwrapped)


def same_answer(left: str, right: str) -> bool:
    """Whether two short answers are the same number or the same normalised text; an empty one equals nothing."""
    left, right = normal_answer(left), normal_answer(right)
    if not left or not right:
        return False
    if left == right:
        return True
    number = parse_number(left)
    return number is not None and number == parse_number(right)


def normal_answer(text: str) -> str:
    r"""`text` without what does not change an answer: spacing, $, \left, \right, a full stop at the end."""
    for old, new in _ONE_SPELLING:
        text = text.replace(old, new)
    for ignored in _IGNORED:
        text = text.replace(ignored, " ")
    return _joined(text).removesuffix(".")


def _joined(text: str) -> str:
    """`text` without its white space, but for one space between two digits: 1 1/2 is not 11/2."""
    words = text.split()
    joined = words[:1]
    for before, word in pairwise(words):
        joined.append(f" {word}" if before[-1].isdigit() and word[0].isdigit() else word)
    return "".join(joined)


def last_boxed(text: str) -> str | None:
    r"""The content of the last \boxed{...}, nested braces included; None if there is none or it never closes."""
    span = last_boxed_span(text)
    return None if span is None else text[span[0] : span[1]]


def last_boxed_span(text: str) -> tuple[int, int] | None:
    r"""Where the content of the last \boxed{...} starts and where its closing brace stands."""
    start = text.rfind(_BOX)
    if start < 0:
        return None
    depth, position = 1, start + len(_BOX)
    while position < len(text):
        character = text[position]
        if character == "\\":
            position += 1  # an escaped brace opens and closes nothing
        elif character in "{}":
            depth += 1 if character == "{" else -1
            if depth == 0:
                return start + len(_BOX), position
        position += 1
    return None
