"""Values and lists of settings as TOML text, which Python's standard library can only read."""

import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

WIDTH = 80
"""Maximum number of characters per line of a list."""
_BARE = re.compile(r"[A-Za-z0-9_-]+")


def toml_value(value: Any) -> str:
    """Return a setting's value as TOML on one line.

    Args:
        value: Text, a number, a truth value, or lists and tables of them. Any other value becomes text, such as a path.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)  # also inf and nan
    if isinstance(value, Mapping):
        inside = ", ".join(f"{toml_key(key)} = {toml_value(item)}" for key, item in value.items())
        return f"{{ {inside} }}" if inside else "{}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(map(toml_value, value))}]"
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def toml_key(key: Any) -> str:
    """Return a key, in quotes if TOML requires them."""
    return str(key) if _BARE.fullmatch(str(key)) else toml_value(str(key))


def toml_lines(key: str, value: Any) -> list[str]:
    """Return the lines `key = value`; a long list has its items on lines of their own."""
    line = f"{toml_key(key)} = {toml_value(value)}"
    if len(line) <= WIDTH or not isinstance(value, list):
        return [line]
    items = [f"{toml_value(item)}," for item in value]
    marked = " ".join(item.replace(" ", "\0") for item in items)  # a line is not broken inside of an item
    wrapped = textwrap.wrap(marked, WIDTH - 4, break_long_words=False, break_on_hyphens=False)
    return [f"{toml_key(key)} = [", *(f"    {row}".replace("\0", " ") for row in wrapped), "]"]
