"""Short answers in words: equal after normalization, or with words in common."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

from gvpo.rewards.base import Answer, completion_text, grade
from gvpo.rewards.verifiers.exact import normal_space
from gvpo.rewards.verifiers.stated_answer import stated_answer, without_thinking

_ARTICLES = ("a", "an", "the")
_COMMA_IN_NUMBER = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


def text_match(completions: Sequence[Answer], answer: Sequence[Any], **columns: Any) -> list[float | None]:
    r"""Return 1 if the completion gives `answer` after normalization, else 0.

    The reward compares the part that the completion marks as its answer (<answer>, \boxed{}, "the answer is"), or
    otherwise all of it after </think>. Case, punctuation, the articles a, an, the, composed letters and white space do
    not count; a sign and a decimal point of a number do.

    Args:
        completions: k completions.
        answer: k answers, each a text or a list of accepted texts; None abstains.
        columns: Not used.

    Returns:
        k values: 1.0, 0.0, or None.

    Reference: the exact match of SQuAD (arXiv:1606.05250), which drops signs and decimal points too.
    """
    return grade(completions, answer, lambda text, gold: any(same_text(said(text), each) for each in accepted(gold)))


def text_f1(completions: Sequence[Answer], answer: Sequence[Any], **columns: Any) -> list[float | None]:
    """Return the F1 score of SQuAD in [0, 1], computed from the words that a completion and `answer` share.

    Args:
        completions: k completions, read like those of `text_match`.
        answer: k answers, each a text or a list of texts of which the best match counts; None abstains.
        columns: Not used.

    Returns:
        k values in [0, 1], or None.
    """
    return [
        None if gold is None else max((shared_words(said(completion), each) for each in accepted(gold)), default=0.0)
        for completion, gold in zip(completions, answer, strict=True)
    ]


def said(completion: Answer) -> str:
    """Return the answer that a completion marks, or otherwise all of it after its reasoning."""
    text = completion_text(completion)
    marked = stated_answer(text)
    return without_thinking(text) if marked is None else marked


def accepted(gold: Any) -> list[str]:
    """Return the texts that a reference answer accepts."""
    return [str(each) for each in (gold if isinstance(gold, list | tuple) else [gold])]


def same_text(left: str, right: str) -> bool:
    """Return whether two texts are equal after normalization, or only stripped if one of them has only articles."""
    one, other = normal_text(left), normal_text(right)
    if one and other:
        return one == other
    left, right = normal_space(left).casefold(), normal_space(right).casefold()
    return left == right != ""


def shared_words(left: str, right: str) -> float:
    """Return the harmonic mean of the fractions of each text's words that the other text also has."""
    one, other = normal_text(left).split(), normal_text(right).split()
    common = (Counter(one) & Counter(other)).total()
    return 2 * common / (len(one) + len(other)) if common else 0.0


def normal_text(text: str) -> str:
    """Return `text` in one case without punctuation, articles and extra white space; numbers keep sign and point."""
    folded = _COMMA_IN_NUMBER.sub("", unicodedata.normalize("NFKC", text).casefold())
    kept = "".join(_kept(folded, place) for place in range(len(folded)))
    return " ".join(word for word in kept.split() if word not in _ARTICLES)


def _kept(text: str, place: int) -> str:
    """Return the normalized form of a character: itself, a space for a dash between words, or an empty string."""
    character = text[place]
    kind = unicodedata.category(character)
    if not kind.startswith("P") and character != "−":  # noqa: RUF001 - Unicode does not class the minus as punctuation
        return character
    before, after = text[place - 1 : place], text[place + 1 : place + 2]
    if character == "." and after.isdigit():
        return character
    if kind == "Pd" or character == "−":  # noqa: RUF001
        return "-" if after.isdigit() and not before.isalnum() else " "
    return ""
