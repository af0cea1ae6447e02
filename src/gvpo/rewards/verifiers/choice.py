"""Multiple choice: the option that a completion names."""

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gvpo.rewards.base import Answer, completion_text
from gvpo.rewards.verifiers.stated_answer import stated_answer, without_thinking
from gvpo.rewards.verifiers.text import normal_text

_AROUND = re.compile(r"\\(?:text|mathrm|textbf|mathbf)\{([^{}]*)\}")
_LABEL = re.compile(
    r"""(?i:option|choice|answer)?\s*
        (?: \((?P<inside>[A-Za-z0-9])\) | (?P<plain>[A-Z0-9]) | (?P<alone>[a-z])(?=[).:]?\s*$) )
        (?P<mark>[).:]?)
        (?P<rest>.*)""",
    re.VERBOSE | re.DOTALL,
)
_REASON = re.compile(r"\s*(?:$|[,;(–—-]?\s*(?:because|since|as|for)\b)")  # noqa: RUF001
_ANOTHER = re.compile(r"\s*(?:or|and|/|&|,)\s*\(?\w\)?(?:\W|$)")


@dataclass(frozen=True)
class Options:
    """Options of a question.

    Args:
        labels: "A", "B", ...
        texts: Text of each label; empty if the texts are not known.
    """

    labels: Sequence[str]
    texts: Sequence[str] = ()

    @classmethod
    def of(cls, choices: Any) -> "Options":
        """Create options from a column: a list of texts, {"label": [...], "text": [...]}, or None.

        Raises:
            ValueError: If the column is something else.
        """
        if choices is None:
            return cls(string.ascii_uppercase)
        if isinstance(choices, Mapping) and {"label", "text"} <= set(choices):
            return cls([str(label) for label in choices["label"]], [str(text) for text in choices["text"]])
        if isinstance(choices, str | Mapping) or len(choices) > len(string.ascii_uppercase):
            raise ValueError('choices is neither a short list of texts nor {"label": [...], "text": [...]}')
        return cls(string.ascii_uppercase[: len(choices)], [str(text) for text in choices])

    def label_of(self, text: str) -> str | None:
        """Return the label of the option that equals a text after normalization."""
        wanted = normal_text(text)
        same = [label for label, each in zip(self.labels, self.texts, strict=False) if normal_text(each) == wanted]
        return same[0] if wanted and len(same) == 1 else None


def multiple_choice(
    completions: Sequence[Answer], answer: Sequence[Any], choices: Sequence[Any] | None = None, **columns: Any
) -> list[float | None]:
    r"""Return 1 if the completion chooses `answer`, else 0.

    The choice is read after </think>: from the part that the completion marks as its answer (<answer>, \boxed{}, "the
    answer is"), otherwise from all of it, otherwise from its last line. It is only a label, a label with its text ("B)
    Paris"), or the text of one of `choices`. Two labels, or a label with the text of another one, are not a choice.

    Args:
        completions: k completions.
        answer: k correct answers: a label, a position from 0, or the text of a choice; None abstains.
        choices: k sets of options: a list of texts for A, B, ..., or {"label": [...], "text": [...]} as in ARC.
        columns: Not used.

    Returns:
        k values: 1.0, 0.0, or None.

    Raises:
        ValueError: If an answer is not one of its choices.
    """
    offered = choices or [None] * len(completions)
    return [
        None if gold is None else float(_is_right(completion_text(completion), gold, Options.of(given)))
        for completion, gold, given in zip(completions, answer, offered, strict=True)
    ]


def _is_right(text: str, gold: Any, options: Options) -> bool:
    return chosen(text, options) == right_label(gold, options)


def right_label(gold: Any, options: Options) -> str:
    """Return the label of a correct answer.

    Raises:
        ValueError: If the answer is not one of the options.
    """
    if isinstance(gold, int) and 0 <= gold < len(options.labels):
        return options.labels[gold]
    bare = str(gold).strip().strip("().:")
    label = next((each for each in (bare, bare.upper()) if each in options.labels), None)
    label = label or options.label_of(str(gold))
    if label is None:
        raise ValueError(f"the answer {str(gold)[:40]!r} is not one of the choices {', '.join(options.labels)}")
    return label


def chosen(text: str, options: Options) -> str | None:
    """Return the label that a completion chooses; None if it chooses no label or two."""
    marked = stated_answer(text)
    if marked is not None:
        return _choice(marked, options)
    whole = without_thinking(text).strip()
    return _choice(whole, options) or _choice(whole.rpartition("\n")[2], options)


def _choice(part: str, options: Options) -> str | None:
    plain = _AROUND.sub(r"\1", part).strip().strip("*_$`\"' ")
    by_text = options.label_of(plain)
    named = _LABEL.fullmatch(plain)
    if by_text is not None or named is None:
        return by_text
    letter = named["inside"] or named["plain"] or named["alone"]
    label = next((each for each in (letter, letter.upper()) if each in options.labels), None)
    rest = named["rest"].lstrip("*").rstrip(".")
    if label is None or _ANOTHER.match(rest) or not _ends_label(named, rest):
        return None
    return label if options.label_of(rest) in (None, label) else None


def _ends_label(named: "re.Match[str]", rest: str) -> bool:
    """Return whether a letter is a label rather than a word: an end, a bracket, a mark or a reason follows it."""
    marked = bool(named["inside"] or named["mark"])
    return bool(_REASON.match(rest)) or (marked and rest[:1].isspace())
