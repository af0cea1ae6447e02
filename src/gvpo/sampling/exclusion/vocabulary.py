"""The bytes that each token writes. Text is not enough, because a character may be split over several tokens."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from gvpo.errors import ModelError

_PRINTED = {*range(33, 127), *range(161, 173), *range(174, 256)}
_OTHERS = sorted(set(range(256)) - _PRINTED)
_BYTES = {chr(byte): byte for byte in _PRINTED} | {chr(256 + place): byte for place, byte in enumerate(_OTHERS)}
"""The letters that byte-level tokenizers write for bytes: the byte's own letter if printable, else one from 256 on."""


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The tokens of a model. Vocabularies are compared by identity, since they can be large.

    Args:
        tokens: The bytes that each of the V tokens writes; None for tokens without text (control tokens, unused ids).
        stops: Ids that end a completion.
    """

    tokens: tuple[bytes | None, ...]
    stops: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, size: int, stops: Sequence[int]) -> "Vocabulary":
        """Return the vocabulary of a model with `size` logits.

        Raises:
            ModelError: If the bytes of the tokenizer's tokens cannot be determined.
        """
        return cls(tuple(_token_bytes(tokenizer, size)), tuple(stop for stop in stops if stop < size))

    @property
    def size(self) -> int:
        """Number of tokens, V."""
        return len(self.tokens)

    @cached_property
    def written(self) -> list[tuple[int, bytes]]:
        """Ids and bytes of the tokens with text."""
        return [(token, data) for token, data in enumerate(self.tokens) if data]

    @cached_property
    def by_first_byte(self) -> list[list[tuple[int, bytes]]]:
        """For each of the 256 bytes, the tokens that begin with it."""
        found: list[list[tuple[int, bytes]]] = [[] for _ in range(256)]
        for token, data in self.written:
            found[data[0]].append((token, data))
        return found

    def mask(self, allowed: Iterator[int] | Sequence[int], *, textless: bool) -> npt.NDArray[np.bool_]:
        """Return a mask [V], true at these ids, and also at the tokens without text if `textless`."""
        made = np.array([textless and not data for data in self.tokens])
        made[list(allowed)] = True
        return made


def _token_bytes(tokenizer: PreTrainedTokenizerBase, size: int) -> Iterator[bytes | None]:
    read = _reader(tokenizer)
    added = tokenizer.added_tokens_decoder
    control = {token for token, entry in added.items() if entry.special} | set(tokenizer.all_special_ids)
    names = {token: name for name, token in tokenizer.get_vocab().items()}
    for token in range(size):
        if token in control or token not in names:
            yield None
        else:
            yield names[token].encode() if token in added else read(names[token])


def _reader(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], bytes]:
    """Return the function that converts a token's name to its bytes, according to the tokenizer's decoder."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.decoder is None:
        raise ModelError(
            f"{type(tokenizer).__name__} does not define the bytes of its tokens; use a fast tokenizer with a decoder"
        )
    steps = list(_steps(json.loads(backend.decoder.__getstate__())))
    kinds = {step["type"] for step in steps}
    if strange := kinds - {"ByteLevel", "ByteFallback", "Fuse", "Metaspace", "Replace", "Strip"}:
        raise ModelError(
            f"decoding by {', '.join(sorted(strange))} joins tokens in a way that exclusion does not support; use a "
            "model with a byte-level or SentencePiece tokenizer"
        )
    if "ByteLevel" in kinds:
        return _from_letters
    spaces = [step["pattern"]["String"] for step in steps if step["type"] == "Replace" and step["content"] == " "]
    spaces += [step["replacement"] for step in steps if step["type"] == "Metaspace"]
    return lambda name: _from_pieces(name, spaces, fallback="ByteFallback" in kinds)


def _steps(decoder: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if decoder["type"] == "Sequence":
        for step in decoder["decoders"]:
            yield from _steps(step)
    else:
        yield decoder


def _from_letters(name: str) -> bytes:
    if all(letter in _BYTES for letter in name):
        return bytes(_BYTES[letter] for letter in name)
    return name.encode()


def _from_pieces(name: str, spaces: Sequence[str], *, fallback: bool) -> bytes:
    if fallback and len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
        return bytes.fromhex(name[3:5])
    for space in spaces:
        name = name.replace(space, " ")
    return name.encode()
