r"""The answer in the last \boxed{...}, which language models are prompted to write around a result."""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from gvpo.rewards.base import Answer, grade
from gvpo.rewards.verifiers.number import parse_number

_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s*(?=\{|[-+]?[\d.\\(]|(?<=[\s])[A-Za-z](?![A-Za-z]))")
_BARE = re.compile(r"(?:\{[^{}]*\}|[^\s{}$])*(?:\{[^{}]*\}|[^\s{}$.,;:])")
_ENUMERATED = re.compile(r"[,;](?:and|or)?|,?(?:and|or|\\(?:text|mbox|textrm|mathrm)\{,?(?:and|or),?\}),?")
_LAYOUT = re.compile(r"[\s$~]|\\[,;: !]|\\q?quad(?![a-z])|\\[()\[\]]")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_IGNORED = ("\\left", "\\right", "\\,", "\\;", "\\:", "\\!", "\\ ", "$")
_ONE_SPELLING = (("\\dfrac", "\\frac"), ("\\tfrac", "\\frac"), ("\\%", "%"), ("\\$", ""), ("−", "-"))  # noqa: RUF001


def boxed_answer(completions: Sequence[Answer], answer: Sequence[Any], **columns: Any) -> list[float | None]:
    r"""Return 1 if the content of the last \boxed{...} is `answer`, else 0.

    They are equal if they are the same number (`number.parse_number`: \frac{1}{2}, 1/2 and 0.5 are), or the same text
    without white space, $, LaTeX's spacing, \left and \right and a full stop at the end. A last box that never closes
    contains no answer.

    Args:
        completions: k completions.
        answer: k answers; an answer that is itself \boxed{...} is unwrapped; None abstains.
        columns: Not used.

    Returns:
        k values: 1.0, 0.0, or None.
    """
    return grade(completions, answer, lambda text, gold: _is_boxed(text, str(gold)))


def _is_boxed(text: str, gold: str) -> bool:
    content = last_boxed(text)
    unwrapped = last_boxed(gold)
    return content is not None and same_answer(content, gold if unwrapped is None else unwrapped)


def same_answer(left: str, right: str) -> bool:
    """Return whether two short answers are the same number or the same normalized text; an empty one equals nothing."""
    left, right = normal_answer(left), normal_answer(right)
    if not left or not right:
        return False
    if left == right:
        return True
    number = parse_number(left)
    return number is not None and number == parse_number(right)


def normal_answer(text: str) -> str:
    r"""Return `text` without spacing, $, \left, \right and a full stop at the end, which do not change an answer."""
    for old, new in _ONE_SPELLING:
        text = text.replace(old, new)
    for ignored in _IGNORED:
        text = text.replace(ignored, " ")
    return _joined(text).removesuffix(".")


def _joined(text: str) -> str:
    """Return `text` without white space, except for one space between two digits: 1 1/2 is not 11/2."""
    words = text.split()
    joined = words[:1]
    for before, word in pairwise(words):
        joined.append(f" {word}" if before[-1].isdigit() and word[0].isdigit() else word)
    return "".join(joined)


def last_boxed(text: str) -> str | None:
    r"""Return the content of the last box, including nested braces; None if there is no box or it never closes.

    A box is \boxed{...}, \fbox{...} or \framebox{...}. Without braces it contains the text after it, as in \boxed 7.
    """
    span = last_boxed_span(text)
    return None if span is None else text[span[0] : span[1]]


def last_answer(text: str) -> str | None:
    r"""Return the content of the last box and of the boxes enumerated with it: \boxed{1} and \boxed{2} is 1, 2."""
    boxes = list(_BOX.finditer(text))
    found: list[str] = []
    after = len(text)
    for box in reversed(boxes):
        span = _content(text, box.end())
        if span is None or (found and not _ENUMERATED.fullmatch(_LAYOUT.sub("", text[span[1] : after]).lstrip("}"))):
            break
        found.insert(0, text[span[0] : span[1]].strip())
        after = box.start()
    return ", ".join(dict.fromkeys(found)) if found else None


def last_boxed_span(text: str) -> tuple[int, int] | None:
    """Return the start and the end of the content of the last box."""
    box = None
    for box in _BOX.finditer(text):  # noqa: B007 - only the last match is needed
        pass
    return None if box is None else _content(text, box.end())


def _content(text: str, start: int) -> tuple[int, int] | None:
    """Return the span of the content of a box whose command ends at `start`; None if the box never closes."""
    if not text.startswith("{", start):
        bare = _BARE.match(text, start)
        return bare.span() if bare else None
    end = _closing(text, start)
    return None if end is None else (start + 1, end)


def has_box(text: str) -> bool:
    r"""Return whether a text contains a box, even one that never closes."""
    return _BOX.search(text) is not None


def _closing(text: str, start: int) -> int | None:
    r"""Return where the brace that opens at `start` closes; escaped braces are ignored, except at the end of {185\}."""
    depth, escaped = 0, None
    for brace in _BRACE.finditer(text, start):
        depth += (brace[0] == "{") - (brace[0] == "}")
        if depth == 0:
            return brace.start()
        if brace[0] == "\\}" and escaped is None and depth == 1:
            escaped = brace.start()
    return escaped if escaped is not None and "\\{" not in text[start:] else None
