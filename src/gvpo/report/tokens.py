"""The place of each token in the text of its completion, according to the tokenizer of a checkpoint of the run.

Rollout files contain token ids, and texts that were decoded as a whole. Each id gets the bytes that it adds to a text,
from tokenizer.json alone. If the bytes of a completion are not exactly its text, its tokens have no place.
"""

import json
import re
from collections.abc import Sequence
from functools import cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Self

from gvpo import runfiles
from gvpo.report.data import Run

TOKENIZER = "tokenizer.json"


class Pieces:
    """The bytes that each token of a tokenizer adds to a decoded text.

    Args:
        tokenizer: a `tokenizers.Tokenizer`.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._added = tokenizer.get_added_tokens_decoder()
        decoder = json.loads(tokenizer.to_str()).get("decoder") or {}
        kinds = {part["type"] for part in (decoder, *decoder.get("decoders", ()))}
        self._byte_level = "ByteLevel" in kinds
        self._byte_fallback = "ByteFallback" in kinds
        self._cache: dict[int, bytes] = {}

    @classmethod
    def of(cls, run: Run) -> Self | None:
        """Return those of a run's newest checkpoint, else of its starting model; None if neither can be read."""
        from tokenizers import Tokenizer

        path = next((path for path in _candidates(run) if path.is_file()), None)
        if path is None:
            return None
        try:
            return cls(Tokenizer.from_file(str(path)))
        except Exception:  # the library raises plain exceptions; the report works without colours
            return None

    def lengths(self, tokens: Sequence[int], text: str) -> list[int] | None:
        """Return the length of each token in `text`.

        Args:
            tokens: C token ids.
            text: decoded text of the tokens, without special tokens.

        Returns:
            C lengths in UTF-16 code units, as JavaScript counts; their sum is the length of the text. Special tokens
            have length 0, and so have tokens that end within a character, which belongs to the token that completes
            it. None if the bytes of the tokens are not those of the text.
        """
        for token in set(tokens) - self._cache.keys():
            self._cache[token] = self._decoded(token)
        pieces = [self._cache[token] for token in tokens]
        joined, whole = b"".join(pieces), text.encode("utf-8", errors="replace")
        if joined == b" " + whole and pieces[0].startswith(b" "):
            pieces[0] = pieces[0][1:]  # sentencepiece's decoders drop the first space
        elif joined != whole:
            return None
        sizes = [len(piece) for piece in pieces]
        return sizes if text.isascii() else _code_units(text, sizes)

    def _decoded(self, token: int) -> bytes:
        if token in self._added:
            added = self._added[token]
            return b"" if added.special else added.content.encode()
        written = self._tokenizer.id_to_token(token) or ""
        if self._byte_level:
            alphabet = byte_alphabet()
            return b"".join(bytes([alphabet[c]]) if c in alphabet else c.encode() for c in written)
        if self._byte_fallback and re.fullmatch("<0x[0-9A-F]{2}>", written):
            return bytes.fromhex(written[3:5])
        return written.replace("\u2581", " ").encode()


def _candidates(run: Run) -> list[Path]:
    """Return the files that may contain the run's tokenizer, best first."""
    checkpoints = sorted((run.path / runfiles.CHECKPOINTS).glob(f"step-*/{TOKENIZER}"), reverse=True)
    named = (run.setting("model", "tokenizer"), run.setting("model", "path"))
    return [*checkpoints, *(Path(name) / TOKENIZER for name in named if isinstance(name, str))]


@cache
def byte_alphabet() -> dict[str, int]:
    """Return the characters with which byte-level vocabularies, such as that of GPT-2, write the 256 bytes.

    Printable Latin-1 characters are written as themselves; the other bytes, in order, as the characters from 256 on.
    """
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = sorted(set(range(256)) - set(shown))
    return {chr(byte): byte for byte in shown} | {chr(256 + index): byte for index, byte in enumerate(hidden)}


def _code_units(text: str, sizes: Sequence[int]) -> list[int]:
    """Convert lengths in UTF-8 bytes to UTF-16 code units; a split character belongs to its last token."""
    complete = []  # index: number of bytes; value: code units of the characters that are complete by then
    units = 0
    for character in text:
        complete += [units] * len(character.encode("utf-8", errors="replace"))
        units += 1 + (ord(character) > 0xFFFF)
    complete.append(units)
    return [end - begin for begin, end in pairwise([0, *(complete[at] for at in accumulate(sizes))])]
