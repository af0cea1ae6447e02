"""Suggestions for misspelled names, with the words "did you mean" of every message.

    beta          objective.beta    the name is the part after the dot in a known one
    train.stpes   train.steps       every word has almost the same spelling
    stpes         train.steps       the same, for the words after the dot
    a.model.path  model.path        the name ends in a known one
    forget        forget_carry      the name is the first or the last words of exactly one known name
    max_steps     no suggestion     `max_tokens` shares one of two words, which is too little

Words are compared by difflib's ratio, which would by itself suggest `max_tokens` for `max_steps`.
"""

import re
from collections.abc import Iterable, Mapping
from difflib import SequenceMatcher
from itertools import takewhile

ALIKE = 0.75
"""Minimum similarity of two words of which one is misspelled; equal words have 1."""

JOINED_ALIKE = 0.9
"""Minimum similarity of whole names that separate their words differently, such as `groupsize`."""

STEM, ENDING = 5, 3
"""Two words match if they share this many first letters and each has at most this many more: family, families."""

MOST = 3
"""Maximum number of names in a suggestion."""


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """Return the end of a message about an unknown name: "; did you mean 'objective.beta'?".

    Args:
        name: The unknown name.
        known: The names that exist.
        otherwise: Hint if no known name is close; "" for none.
    """
    near = nearest(name, known)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else otherwise
    return f"; {hint}" if hint else ""


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Return the known names that an unknown one most likely stands for, the best first, or [] if none is close.

    There are several only if the name is, or resembles, the part after the dot in each of them.
    """
    names = list(dict.fromkeys(known))
    whole = [each for each in names if name.endswith(f".{each}")]
    best = whole or _most_alike(name, {each: each for each in names})
    ends = {each: _end(each) for each in names}
    same_end = _ending_in(_end(name), ends)
    if same_end:
        return best if best and best[0] in same_end else same_end[:MOST]
    alike = _most_alike(_end(name), ends)
    return best or _ending_in("".join(ends[each] for each in alike), ends)[:MOST] or _only_extension(name, names)


def _ending_in(end: str, ends: Mapping[str, str]) -> list[str]:
    """Return the names with this part after the dot, the shortest first."""
    return sorted((name for name, own in ends.items() if own == end), key=len)


def _most_alike(name: str, spellings: Mapping[str, str]) -> list[str]:
    """Return the known name with the most similar spelling, if it is similar enough."""
    alike = {known: _likeness(name, spelling) for known, spelling in spellings.items()}
    best = max(alike, key=alike.__getitem__, default=None)
    return [] if best is None or alike[best] < ALIKE else [best]


def _only_extension(name: str, names: list[str]) -> list[str]:
    """Return the known name that begins or ends with the words of `name` if there is exactly one."""
    words = _words(name)
    longer = [each for each in names if words and words in (_words(each)[: len(words)], _words(each)[-len(words) :])]
    return longer if len(longer) == 1 else []


def _likeness(name: str, other: str) -> float:
    """Return the similarity of the least similar pair of words, or 0 if the numbers of words differ."""
    words, others = _words(name), _words(other)
    if len(words) == len(others) > 0:
        return min(_word_likeness(*pair) for pair in zip(words, others, strict=True))
    joined = _ratio("".join(words), "".join(others))
    return joined if joined >= JOINED_ALIKE else 0.0


def _word_likeness(word: str, other: str) -> float:
    stem = sum(1 for _ in takewhile(lambda letters: letters[0] == letters[1], zip(word, other, strict=False)))
    same_stem = stem >= STEM and max(len(word), len(other)) - stem <= ENDING
    return max(_ratio(word, other), ALIKE if same_stem else 0.0)


def _ratio(word: str, other: str) -> float:
    return SequenceMatcher(None, word, other, autojunk=False).ratio()


def _end(name: str) -> str:
    """Return the part after the last dot, in the spelling that is compared."""
    return "_".join(_words(name.rpartition(".")[2]))


def _words(name: str) -> list[str]:
    return re.findall(r"[^\W_]+", name.lower())
