"""What a completion may consist of, as plain data: by token ids, characters, strings and regular expressions."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from gvpo.errors import ConfigError
from gvpo.sampling.exclusion.characters import check_characters

KINDS = ("token", "chars", "text", "regex")
"""What an item may begin with, before a colon; without any it names characters."""


@dataclass(frozen=True)
class Exclusion:
    """What a completion may consist of.

    Items of one field add up; the fields are all to be satisfied. The text of a completion is all of it, without its
    stop token. Stop tokens stay allowed wherever the text may end, unless `ban_tokens` has them.

    Args:
        allow_tokens: only these token ids.
        ban_tokens: none of these token ids, stop tokens included.
        allow_characters: the text consists of these alone: names as "digits", Unicode scripts and categories, or
            classes as "[a-z]" (`gvpo.sampling.exclusion.characters`).
        ban_characters: the text has none of these.
        allow_strings: the text is one of these.
        ban_strings: the text contains none of these, however it is cut into tokens.
        allow_regex: the whole text matches one of these (Rust syntax; no look-around).
        ban_regex: no part of the text matches any of these.

    Raises:
        ConfigError: unknown characters, an empty string, or a negative token id.
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
            raise ConfigError("an empty string is in every text; name what is banned")
        if any(token < 0 for token in (*self.allow_tokens, *self.ban_tokens)):
            raise ConfigError("token ids are 0 or more")

    def __bool__(self) -> bool:
        """Whether anything is excluded."""
        return self != Exclusion()


def parse_exclusion(allow: str | Sequence[str] = (), ban: str | Sequence[str] = ()) -> Exclusion:
    """The exclusion that some items describe, as they stand on a command line or in a recipe.

    | Item | Means |
    |---|---|
    | `Hangul, digits, [.,!?]` | characters: names, scripts, categories or classes, one or several |
    | `text:no` | a string, taken literally to its end |
    | `regex:[0-9]+` | a regular expression |
    | `token:5,7` | token ids |

    Args:
        allow: items of which a completion consists.
        ban: items that it has none of.

    Raises:
        ConfigError: an item that is empty or that nothing is known of.
    """
    fields: dict[str, list[str | int]] = {}
    for verb, items in (("allow", allow), ("ban", ban)):
        for item in [items] if isinstance(items, str) else items:
            name, values = _parsed(item)
            fields.setdefault(f"{verb}_{name}", []).extend(values)
    return Exclusion(**{name: tuple(values) for name, values in fields.items()})  # type: ignore[arg-type]


def _parsed(item: str) -> tuple[str, Sequence[str | int]]:
    """The field that an item belongs to, without its verb, and its values."""
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
    """Names between commas; a class in brackets keeps its own commas."""
    names, depth = [""], 0
    for place, letter in enumerate(value):
        escaped = place > 0 and value[place - 1] == "\\"
        depth += 0 if escaped else (letter == "[") - (letter == "]")
        if letter == "," and depth == 0:
            names.append("")
        else:
            names[-1] += letter
    return [name.strip() for name in names]
