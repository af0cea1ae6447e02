"""Which texts of a collection are contained in another text, by runs of words: exact, and fast on tens of thousands.

The grams of a text are its runs of n words, as a set. A text is contained in another by the share of its grams that the
other has too. To find the texts contained by a share t or more, only a few grams of each need be looked up: of g grams,
at least t g must be common, so one of any g - t g + 1 of them is. The rarest ones are taken, which few texts have.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

Gram = tuple[str, ...]


def grams(words: Sequence[str], size: int) -> frozenset[Gram]:
    """The runs of `size` words of a text; a shorter text is one run of its own length, and no words are none."""
    if len(words) <= size:
        return frozenset([tuple(words)] if words else [])
    return frozenset(tuple(words[start : start + size]) for start in range(len(words) - size + 1))


class Containment:
    """Texts, given by their grams, and a search for those that another text contains.

    Args:
        common: how often each gram is met, in whatever texts will be added or searched: rare ones are looked up.
        share: of a text's grams that must be found, in (0, 1].
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
        """An added text."""
        return self._texts[number]

    def search(self, text: frozenset[Gram]) -> list[tuple[int, float]]:
        """The added texts that `text` contains.

        Returns:
            (number, share) pairs by number: the share of the added text's grams that `text` has.
        """
        candidates = {number for gram in text for number in self._by_gram.get(gram, ())}
        shares = ((number, len(self._texts[number] & text) / len(self._texts[number])) for number in sorted(candidates))
        return [(number, share) for number, share in shares if share >= self._share]


def counted(texts: Iterable[frozenset[Gram]]) -> Counter[Gram]:
    """In how many texts each gram is."""
    return Counter(gram for text in texts for gram in text)


def jaccard(left: frozenset[Gram], right: frozenset[Gram]) -> float:
    """The grams that both texts have, as a share of those that either has; two texts without any have nothing alike."""
    either = len(left | right)
    return len(left & right) / either if either else 0.0
