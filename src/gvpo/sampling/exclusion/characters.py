"""Sets of characters by name, script, category or brackets, and the possible ends of incomplete UTF-8 sequences.

The Unicode tables come from the `regex` library, a dependency of transformers.
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
"""Names for the most common classes, in addition to Unicode's scripts and general categories."""

NOT_TEXT = r"\ud800-\udfff"
"""Surrogates, which are not characters. Invalid UTF-8 bytes are decoded to them here."""


class CharacterSet:
    """The characters that a text may consist of.

    Args:
        allow: Names, scripts, categories or classes; empty allows every character.
        ban: Names, scripts, categories or classes to remove from the allowed ones.

    Raises:
        ConfigError: If a name is unknown.
    """

    def __init__(self, allow: Sequence[str] = (), ban: Sequence[str] = ()) -> None:
        allowed = "".join(map(_class, allow)) or r"\s\S"
        banned = "".join(map(_class, ban))
        self._one = regex.compile(f"[[{allowed}]--[{banned}{NOT_TEXT}]]", regex.V1)
        self._has = lru_cache(maxsize=1 << 16)(lambda letter: self._one.match(letter) is not None)
        self.may_become = lru_cache(maxsize=4096)(self._may_become)

    def holds(self, text: str) -> bool:
        """Return whether every character of a text is allowed."""
        return all(map(self._has, text))

    def _may_become(self, tail: bytes) -> bool:
        """Return whether an incomplete UTF-8 sequence can become an allowed character. An empty one can."""
        if not tail:
            return True
        first, last = _range(tail)
        return self._one.search("".join(map(chr, range(first, last + 1)))) is not None


def decode(data: bytes) -> tuple[str, bytes]:
    """Decode bytes. Return the characters, and the incomplete UTF-8 sequence at the end (at most 3 bytes).

    Invalid bytes become surrogates.
    """
    try:
        return data.decode(), b""
    except UnicodeDecodeError:
        decoder = codecs.getincrementaldecoder("utf-8")(errors="surrogateescape")
        text = decoder.decode(data)
        return text, decoder.getstate()[0]


def check_characters(names: Sequence[str]) -> None:
    """Raise a ConfigError for the first unknown name."""
    for name in names:
        _class(name)


def _range(tail: bytes) -> tuple[int, int]:
    """Return the first and last code point whose UTF-8 form begins with these bytes, without overlong forms."""
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
    """Return the inside of a class of the `regex` library for these characters."""
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
