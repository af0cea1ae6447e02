"""Search for the texts of a collection that another text contains, by runs of words: exact, and fast for many texts.

The grams of a text are the set of its runs of n words. A text contains another by the fraction of the other's grams
that it has. To find the texts contained by a fraction t or more, only a few grams of each need to be looked up: of g
grams, at least t g must be shared, so any g - t g + 1 of them include a shared gram. The rarest grams are indexed,
because few texts have them.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

Gram = tuple[str, ...]


def grams(words: Sequence[str], size: int) -> frozenset[Gram]:
    """Return the runs of `size` words of a text. A shorter text is a single run, and an empty text has none."""
    if len(words) <= size:
        return frozenset([tuple(words)] if words else [])
    return frozenset(tuple(words[start : start + size]) for start in range(len(words) - size + 1))


class Containment:
    """An index of texts, given by their grams, that finds the texts contained in another text.

    Args:
        common: Frequency of each gram in the texts that will be added or searched; rare grams are looked up.
        share: Fraction of a text's grams that must be found, in (0, 1].
    """

    def __init__(self, common: Counter[Gram], share: float) -> None:
        self._common, self._share = common, share
        self._texts: list[frozenset[Gram]] = []
        self._by_gram: dict[Gram, list[int]] = defaultdict(list)

    def add(self, text: frozenset[Gram]) -> int:
        """Add a text.

        Returns:
            Its number, from 0.
        """
        number = len(self._texts)
        self._texts.append(text)
        looked_up = len(text) - math.ceil(self._share * len(text)) + 1
        for gram in sorted(text, key=lambda each: (self._common[each], each))[:looked_up]:
            self._by_gram[gram].append(number)
        return number

    def text(self, number: int) -> frozenset[Gram]:
        """Return an added text."""
        return self._texts[number]

    def search(self, text: frozenset[Gram]) -> list[tuple[int, float]]:
        """Find the added texts that `text` contains.

        Returns:
            (number, share) pairs, sorted by number; share is the fraction of the added text's grams that `text` has.
        """
        candidates = {number for gram in text for number in self._by_gram.get(gram, ())}
        shares = ((number, len(self._texts[number] & text) / len(self._texts[number])) for number in sorted(candidates))
        return [(number, share) for number, share in shares if share >= self._share]


def counted(texts: Iterable[frozenset[Gram]]) -> Counter[Gram]:
    """Count the texts that contain each gram."""
    return Counter(gram for text in texts for gram in text)


def jaccard(left: frozenset[Gram], right: frozenset[Gram]) -> float:
    """Return the Jaccard similarity: the fraction of all grams that both texts have; 0 for two texts without grams."""
    either = len(left | right)
    return len(left & right) / either if either else 0.0
