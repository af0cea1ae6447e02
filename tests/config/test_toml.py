"""TOML text of settings: what is written is what the standard library reads."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from gvpo.config.toml import WIDTH, toml_key, toml_lines, toml_value

VALUES: list[Any] = [
    *(True, False, 0, -3, 1.0, 1e-6, 1e16, float("inf"), "", 'a"b\\c\n\t\x00\x7fé', [], ["a", 1], {}, [[1], [2, 3]]),
    *({"a": 1, "b c": {"d": [True]}}, {"é.f": "="}, [{"x": "y"}]),
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_is_read_back(value: Any):
    assert tomllib.loads(f"x = {toml_value(value)}") == {"x": value}
    assert tomllib.loads("\n".join(toml_lines("x y", value))) == {"x y": value}


def test_a_path_is_text():
    assert toml_value(Path("a/b")) == '"a/b"'


def test_a_key_has_quotes_only_if_toml_requires_them():
    assert (toml_key("a-b_1"), toml_key("a.b"), toml_key("")) == ("a-b_1", '"a.b"', '""')


def test_a_long_list_has_lines_of_its_own_and_whole_items():
    value = ["a long item with spaces", "second\n item"] * 6
    lines = toml_lines("key", value)
    assert len(lines) > 3
    assert max(map(len, lines)) <= WIDTH
    assert tomllib.loads("\n".join(lines)) == {"key": value}
