r"""The part of a completion that is its answer: after the reasoning, in tags, in a box, or after "the answer is"."""

import re

from gvpo.rewards.math.math_answer import final_answer

_END_OF_THINKING = "</think>"
_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)


def without_thinking(text: str) -> str:
    """Return the text after the last `</think>`, or the whole text without one."""
    return text.rpartition(_END_OF_THINKING)[2]


def stated_answer(text: str) -> str | None:
    r"""Return the answer that a completion marks as one; None if it marks none.

    It is the first of these that exists after its reasoning: the content of the last <answer>...</answer>; that of the
    last \boxed{...}; the rest of the line after the last "answer is" or "answer:".
    """
    said = without_thinking(text)
    tagged = _TAGGED.findall(said)
    return str(tagged[-1]).strip() if tagged else final_answer(said)
