"""Restrictions of completions as plain data: by token ids, characters, strings and regular expressions."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from gvpo.errors import ConfigError
from gvpo.sampling.exclusion.characters import check_characters

KINDS = ("token", "chars", "text", "regex")
"""Prefixes of an item, before a colon. An item without a prefix names characters."""


@dataclass(frozen=True)
class Exclusion:
    """Restriction of the contents of completions.

    Items of one field are alternatives; all fields must be satisfied. The text of a completion is its whole text
    without the stop token. Stop tokens are allowed wherever the text may end, unless they are in `ban_tokens`.

    Args:
        allow_tokens: Only these token ids are allowed.
        ban_tokens: Banned token ids, which may include stop tokens.
        allow_characters: The text consists only of these characters: names such as "digits", Unicode scripts and
            categories, or classes such as "[a-z]" (`gvpo.sampling.exclusion.characters`).
        ban_characters: The text contains none of these characters.
        allow_strings: The text is one of these strings.
        ban_strings: The text contains none of these strings, in any tokenization.
        allow_regex: The whole text matches one of these expressions (Rust syntax without look-around).
        ban_regex: No part of the text matches any of these expressions.

    Raises:
        ConfigError: If characters are unknown, a banned string is empty, or a token id is negative.
    """

    allow_tokens: tuple[int, ...] = ()
    ban_tokens: tuple[int, ...] = ()
    allow_characters: tuple[str, ...] = ()
    ban_characters: tuple[str, ...] = ()
    allow_strings: tuple[str, ...] = ()
    ban_strings: tuple[str, ...] = ()
    allow_regex: tuple[str, ...] = ()
    ban_regex: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, tuple(getattr(self, field.name)))  # lists come from JSON and TOML
        check_characters((*self.allow_characters, *self.ban_characters))
        if "" in (*self.ban_strings, *self.ban_regex):
            raise ConfigError("an empty string is in every text; write the text to ban")
        if any(token < 0 for token in (*self.allow_tokens, *self.ban_tokens)):
            raise ConfigError("token ids must be 0 or more")

    def __bool__(self) -> bool:
        """Return whether anything is excluded."""
        return self != Exclusion()


def parse_exclusion(allow: str | Sequence[str] = (), ban: str | Sequence[str] = ()) -> Exclusion:
    """Parse the items of a command line or a recipe.

    | Item | Means |
    |---|---|
    | `Hangul, digits, [.,!?]` | characters: names, scripts, categories or classes, one or several |
    | `text:no` | a string, taken literally to its end |
    | `regex:[0-9]+` | a regular expression |
    | `token:5,7` | token ids |

    Args:
        allow: Items that a completion may consist of.
        ban: Items that a completion must not contain.

    Raises:
        ConfigError: If an item is empty or unknown.
    """
    fields: dict[str, list[str | int]] = {}
    for verb, items in (("allow", allow), ("ban", ban)):
        for item in [items] if isinstance(items, str) else items:
            name, values = _parsed(item)
            fields.setdefault(f"{verb}_{name}", []).extend(values)
    return Exclusion(**{name: tuple(values) for name, values in fields.items()})  # type: ignore[arg-type]


def _parsed(item: str) -> tuple[str, Sequence[str | int]]:
    """Return the field of an item, without its verb, and its values."""
    kind, colon, value = item.partition(":")
    if not colon or kind not in KINDS:
        kind, value = "chars", item
    if not value.strip() and kind != "text":
        raise ConfigError(f"the item {item!r} is empty; write 'digits', 'text:no', 'regex:[0-9]+' or 'token:5'")
    if kind == "token":
        return "tokens", _token_ids(value)
    if kind == "chars":
        return "characters", _names(value)
    return {"text": "strings", "regex": "regex"}[kind], [value]


def _token_ids(value: str) -> list[int]:
    parts = [part.strip() for part in value.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ConfigError(f"token:{value} is not a list of token ids; write token:5 or token:5,7")
    return [int(part) for part in parts]


def _names(value: str) -> list[str]:
    """Split names at commas. A class in brackets keeps its commas."""
    names, depth = [""], 0
    for place, letter in enumerate(value):
        escaped = place > 0 and value[place - 1] == "\\"
        depth += 0 if escaped else (letter == "[") - (letter == "]")
        if letter == "," and depth == 0:
            names.append("")
        else:
            names[-1] += letter
    return [name.strip() for name in names]
