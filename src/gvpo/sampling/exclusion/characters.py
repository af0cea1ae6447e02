"""Classes of characters by name, script, category or brackets, and what an unfinished UTF-8 sequence may still become.

Unicode's tables are those of the `regex` library, which transformers brings.
"""

import codecs
from collections.abc import Sequence
from functools import lru_cache

import regex

from gvpo.errors import ConfigError
from gvpo.nearest import did_you_mean

NAMED = {
    "letters": r"\p{L}",
    "marks": r"\p{M}",
    "digits": r"\p{Nd}",
    "numbers": r"\p{N}",
    "punctuation": r"\p{P}",
    "symbols": r"\p{S}",
    "spaces": r"\p{White_Space}",
    "emoji": r"\p{Extended_Pictographic}",
    "ascii": r"\x00-\x7f",
}
"""Names for what people ask for most; besides these there are Unicode's scripts and general categories."""

NOT_TEXT = r"\ud800-\udfff"
"""Surrogates: no characters, and what bytes that are not UTF-8 are decoded to here."""


class CharacterSet:
    """The characters of which a text may consist.

    Args:
        allow: names, scripts, categories or classes; empty: every character.
        ban: the same, taken away from those.

    Raises:
        ConfigError: one that nothing is known of.
    """

    def __init__(self, allow: Sequence[str] = (), ban: Sequence[str] = ()) -> None:
        allowed = "".join(map(_class, allow)) or r"\s\S"
        banned = "".join(map(_class, ban))
        self._one = regex.compile(f"[[{allowed}]--[{banned}{NOT_TEXT}]]", regex.V1)
        self._has = lru_cache(maxsize=1 << 16)(lambda letter: self._one.match(letter) is not None)
        self.may_become = lru_cache(maxsize=4096)(self._may_become)

    def holds(self, text: str) -> bool:
        """Whether all of a text is allowed."""
        return all(map(self._has, text))

    def _may_become(self, tail: bytes) -> bool:
        """Whether an unfinished UTF-8 sequence has an end that makes it an allowed character; empty ones have."""
        if not tail:
            return True
        first, last = _range(tail)
        return self._one.search("".join(map(chr, range(first, last + 1)))) is not None


def decode(data: bytes) -> tuple[str, bytes]:
    """The characters of some bytes, and the unfinished UTF-8 sequence after them (at most 3 bytes).

    Bytes that are not UTF-8 become surrogates.
    """
    try:
        return data.decode(), b""
    except UnicodeDecodeError:
        decoder = codecs.getincrementaldecoder("utf-8")(errors="surrogateescape")
        text = decoder.decode(data)
        return text, decoder.getstate()[0]


def check_characters(names: Sequence[str]) -> None:
    """Raise a ConfigError for the first name that nothing is known of."""
    for name in names:
        _class(name)


def _range(tail: bytes) -> tuple[int, int]:
    """First and last code point whose UTF-8 form begins with some bytes; shorter forms than needed do not count."""
    length = 2 + (tail[0] >= 0xE0) + (tail[0] >= 0xF0)
    shortest = {2: 0x80, 3: 0x800, 4: 0x10000}[length]
    missing = 6 * (length - len(tail))
    bits = tail[0] & (0x7F >> length)
    for byte in tail[1:]:
        bits = bits << 6 | byte & 0x3F
    first = bits << missing
    return max(first, shortest), min(first | (1 << missing) - 1, 0x10FFFF)


@lru_cache(maxsize=256)
def _class(name: str) -> str:
    """The inside of a class of the `regex` library that has these characters."""
    candidates = [name] if name.startswith("[") else []
    if name in NAMED:
        candidates = [NAMED[name]]
    elif name.replace("_", "").isalnum():
        candidates = [rf"\p{{Script={name}}}", rf"\p{{General_Category={name}}}"]
    for candidate in candidates:
        try:
            regex.compile(f"[{candidate}]", regex.V1)
        except regex.error:
            continue
        return candidate
    raise ConfigError(_unknown(name))


def _unknown(name: str) -> str:
    if name.startswith("["):
        return f"{name!r} is not a class of characters; write one as [a-z.,!]"
    meant = did_you_mean(name, NAMED)
    return (
        f"there are no characters called {name!r}{meant}; use {', '.join(NAMED)}, a Unicode script (Hangul), a "
        f"general category (Lu) or a class ([a-z]), or text:{name} for a string"
    )
