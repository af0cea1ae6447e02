"""Tokens of text of a chat template, and of text that somebody said, in which nothing is a control token."""

import copy
import re
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import pairwise

from transformers import PreTrainedTokenizerBase

from gvpo.errors import DataError
from gvpo.model.endings import in_brackets
from gvpo.types import Message

CUT = " ... "
"""Text in place of the middle of an observation that is too long."""
_CHARACTERS_PER_TOKEN = 64
"""Number of characters per token from which the middle of a long text is dropped without encoding it."""
_BROKEN = "\ufffd"
"""Character in place of bytes that are only a part of a character."""


class TurnTokens:
    """Tokens of text.

    Args:
        tokenizer: Tokenizer of the policy.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    @cached_property
    def controls(self) -> frozenset[int]:
        """Return special tokens, and added tokens in brackets."""
        added = self._tokenizer.added_tokens_decoder.items()
        return frozenset(number for number, token in added if token.special or in_brackets(token.content))

    def written(self, token: int) -> str:
        """Return the text of a token."""
        return str(self._tokenizer.convert_ids_to_tokens(token))

    def live(self, text: str) -> list[int]:
        """Return the tokens of text of a template, in which control tokens are control tokens."""
        return list(self._tokenizer(text, add_special_tokens=False).input_ids)

    def live_after(self, text: str) -> list[int]:
        """Return the tokens of text of a template that continues other text."""
        return _continued(self.live, text)

    def plain(self, text: str) -> list[int]:
        """Return the tokens of text that somebody said, in which nothing is a control token."""
        places = [match.start() + 1 for match in self._marks.finditer(text)]
        parts = [text[start:stop] for start, stop in pairwise([0, *places, len(text)])]
        return [token for part in parts for token in _continued(self._split, part)]

    def controls_in(self, tokens: Sequence[int]) -> list[int]:
        """Return the control tokens among some tokens."""
        return [token for token in tokens if token in self.controls]

    def opened(self, text: str, encode: Callable[[str], Sequence[int]]) -> list[int]:
        """Return the tokens of a prompt with an environment's opening, in which nothing is a control token.

        Args:
            text: The opening.
            encode: Function that returns the tokens of the prompt with any opening.

        Raises:
            DataError: If the opening has the text of control tokens, and its place in the prompt cannot be found.
        """
        if not self.controls_in(self.live(text)):
            return list(encode(text))
        unused = self.controls - {*encode("A"), self._tokenizer.eos_token_id, self._tokenizer.bos_token_id}
        mark = min(unused, default=None)  # a control token keeps its place among other tokens
        tokens = [] if mark is None else list(encode(self.written(mark)))
        if mark is None or tokens.count(mark) != 1:
            raise DataError(f"the prompt cannot be encoded with the text of control tokens: {text[:40]!r}")
        place = tokens.index(mark)
        return [*tokens[:place], *self.plain(text), *tokens[place + 1 :]]

    def shortened(self, messages: Sequence[Message], most: int) -> tuple[list[Message], bool]:
        """Return messages whose contents have at most `most` tokens together, and whether any was cut in its middle.

        Args:
            messages: What an environment says. The longest contents are cut first.
            most: Maximum number of tokens.
        """
        texts = [_without_middle(str(message["content"]), _CHARACTERS_PER_TOKEN * most) for message in messages]
        counts = [len(self.plain(text)) for text in texts]
        share = _largest_share(counts, most)
        kept = [text if count <= share else self._cut(text, share) for text, count in zip(texts, counts, strict=True)]
        cut: list[Message] = [{**message, "content": text} for message, text in zip(messages, kept, strict=True)]
        is_cut = any(text != str(message["content"]) for text, message in zip(kept, messages, strict=True))
        return (cut, True) if is_cut else (list(messages), False)

    def _cut(self, text: str, most: int) -> str:
        """Return the beginning and the end of a text, with a mark between them, in at most `most` tokens."""
        tokens = self.plain(text)
        for kept in range(most - len(self.plain(CUT)), 0, -1):
            head, tail = tokens[: (kept + 1) // 2], tokens[len(tokens) - kept // 2 :]
            shown = f"{self._decoded(head).rstrip(_BROKEN)}{CUT}{self._decoded(tail).lstrip(_BROKEN)}"
            if len(self.plain(shown)) <= most:
                return shown
        return self._decoded(tokens[:most]).rstrip(_BROKEN)

    def _decoded(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False))

    def _split(self, text: str) -> list[int]:
        return list(self._splitter(text, add_special_tokens=False, split_special_tokens=True).input_ids)

    @cached_property
    def _splitter(self) -> PreTrainedTokenizerBase:
        """Return a tokenizer of its own, since splitting is a state that other threads' encoding would see."""
        splitter = copy.deepcopy(self._tokenizer)
        splitter("", split_special_tokens=True)  # sets the state before any thread has it
        return splitter

    @cached_property
    def _marks(self) -> re.Pattern[str]:
        """Return the texts of control tokens that the tokenizer finds even if it splits special tokens."""
        added = self._tokenizer.added_tokens_decoder
        texts = [added[token].content for token in self.controls if not added[token].special]
        return re.compile("|".join(map(re.escape, texts)) or r"(?!)")


def _continued(encode: Callable[[str], list[int]], text: str) -> list[int]:
    """Return the tokens of a text that continues another, for tokenizers that put a space before a first word."""
    if not text:
        return []
    lead, both = encode("\n"), encode(f"\n{text}")
    return both[len(lead) :] if both[: len(lead)] == lead else encode(text)


def _without_middle(text: str, most: int) -> str:
    """Return a text of at most `most` characters, and 5 more for the mark in its middle."""
    return text if len(text) <= most else f"{text[: most // 2]}{CUT}{text[len(text) - most // 2 :]}"


def _largest_share(counts: Sequence[int], most: int) -> int:
    """Return the largest number to which all counts can be lowered so that their sum is at most `most`."""
    left = most
    for place, count in enumerate(sorted(counts)):
        share = left // (len(counts) - place)
        if count > share:
            return share
        left -= count
    return max(counts, default=0)
