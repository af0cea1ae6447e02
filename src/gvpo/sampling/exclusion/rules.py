"""Rules about text, token by token: they map the text so far to the allowed next tokens.

A rule's state stores the relevant part of the text so far. Masks are cached per state, since there are few states.

    start ──advance(state, token)──▶ state ──allowed──▶ [V] bool
                                       └────may_end───▶ whether the text may end here
"""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from gvpo.sampling.exclusion.characters import CharacterSet, decode
from gvpo.sampling.exclusion.vocabulary import Vocabulary

Mask = npt.NDArray[np.bool_]
MASKS = 256
"""Number of masks that a rule caches, for the most recent states."""


class Rule(Protocol):
    """A condition on the tokens of a completion. States are never changed in place."""

    start: Any

    def advance(self, state: Any, token: int) -> Any:
        """Return the state after an allowed token."""
        ...

    def allowed(self, state: Any) -> Mask:
        """Return [V] the tokens after which the text can still become an allowed one. Do not write to the result."""
        ...

    def may_end(self, state: Any) -> bool:
        """Return whether the current text is an allowed one."""
        ...


class TokenRule:
    """Allow only some token ids, or ban some. Ids outside the model's vocabulary have no effect."""

    start = None

    def __init__(self, vocabulary: Vocabulary, allow: Sequence[int], ban: Sequence[int]) -> None:
        self._mask = np.full(vocabulary.size, not allow)
        self._mask[[token for token in allow if token < vocabulary.size]] = True
        self._mask[[token for token in ban if token < vocabulary.size]] = False

    def advance(self, state: None, token: int) -> None:
        """Do nothing; the rule has no state."""

    def allowed(self, state: None) -> Mask:
        """Return the same mask for every state."""
        return self._mask

    def may_end(self, state: None) -> bool:
        """Return True; the text may end anywhere."""
        return True


class _BytesRule:
    """A rule whose state is some bytes of the text."""

    start = b""

    def __init__(self, vocabulary: Vocabulary, *, textless: bool) -> None:
        self.vocabulary, self.textless = vocabulary, textless
        self._masks = lru_cache(maxsize=MASKS)(self._mask)

    def allowed(self, state: bytes) -> Mask:
        """Return the mask of a state from the cache."""
        return self._masks(state)

    def _mask(self, state: bytes) -> Mask:
        return self.vocabulary.mask(self._tokens(state), textless=self.textless)

    def _tokens(self, state: bytes) -> Iterator[int]:
        raise NotImplementedError


class CharacterRule(_BytesRule):
    """The text consists of characters of a set. The state is the incomplete UTF-8 sequence at its end."""

    def __init__(self, vocabulary: Vocabulary, characters: CharacterSet, *, textless: bool) -> None:
        super().__init__(vocabulary, textless=textless)
        self.characters = characters

    def advance(self, state: bytes, token: int) -> bytes:
        """Keep only the incomplete sequence."""
        return decode(state + (self.vocabulary.tokens[token] or b""))[1]

    def may_end(self, state: bytes) -> bool:
        """Return whether the text does not end within a character."""
        return not state

    def _tokens(self, state: bytes) -> Iterator[int]:
        for token, data in self._candidates(state):
            text, tail = decode(state + data)
            if self.characters.holds(text) and self.characters.may_become(tail):
                yield token

    def _candidates(self, state: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield tokens that may follow. Within a character, they must begin with a continuation byte."""
        for first in range(0x80, 0xC0) if state else range(256):
            yield from self.vocabulary.by_first_byte[first]


class BannedStrings(_BytesRule):
    """The text contains none of some strings. The state is the longest suffix of the text that begins one of them."""

    def __init__(self, vocabulary: Vocabulary, strings: Sequence[str]) -> None:
        super().__init__(vocabulary, textless=True)
        self.strings = [text.encode() for text in strings]
        self.beginnings = {text[:length] for text in self.strings for length in range(len(text))}
        self.longest = max(map(len, self.strings))
        self._inside = re.compile(b"|".join(map(re.escape, self.strings))).search

    def advance(self, state: bytes, token: int) -> bytes:
        """Keep only the relevant suffix."""
        text = (state + (self.vocabulary.tokens[token] or b""))[-self.longest :]
        return next(text[cut:] for cut in range(len(text) + 1) if text[cut:] in self.beginnings)

    def may_end(self, state: bytes) -> bool:
        """Return True; the text may end anywhere."""
        return True

    def _tokens(self, state: bytes) -> Iterator[int]:
        rests = tuple(
            text[length:]
            for text in self.strings
            for length in range(1, min(len(state), len(text) - 1) + 1)
            if state.endswith(text[:length])
        )
        for token, data in self.vocabulary.written:
            if not (self._inside(data) or data.startswith(rests)):
                yield token


class AllowedStrings(_BytesRule):
    """The text is one of some strings. The state is the text."""

    def __init__(self, vocabulary: Vocabulary, strings: Sequence[str]) -> None:
        super().__init__(vocabulary, textless=False)
        self.strings = frozenset(text.encode() for text in strings)

    def advance(self, state: bytes, token: int) -> bytes:
        """Append the token's bytes."""
        return state + (self.vocabulary.tokens[token] or b"")

    def may_end(self, state: bytes) -> bool:
        """Return whether the text is one of the strings."""
        return state in self.strings

    def _tokens(self, state: bytes) -> Iterator[int]:
        rests = [text[len(state) :] for text in self.strings if text.startswith(state) and text != state]
        for first in {rest[0] for rest in rests}:
            for token, data in self.vocabulary.by_first_byte[first]:
                if any(rest.startswith(data) for rest in rests):
                    yield token
