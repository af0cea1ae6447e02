"""Tests of items as written on a command line, and of the names of characters."""

import pytest

from gvpo.errors import ConfigError
from gvpo.sampling.exclusion.characters import CharacterSet, check_characters, decode
from gvpo.sampling.exclusion.spec import Exclusion, parse_exclusion


@pytest.mark.parametrize(
    ("allow", "ban", "expected"),
    [
        ("Hangul, digits,punctuation", (), Exclusion(allow_characters=("Hangul", "digits", "punctuation"))),
        (["[a,b]", "Lu, [\\],]"], (), Exclusion(allow_characters=("[a,b]", "Lu", "[\\],]"))),
        ("text:yes, no", "text:a:b", Exclusion(allow_strings=("yes, no",), ban_strings=("a:b",))),
        (
            "regex:[0-9]+,",
            ["regex:a", "text: "],
            Exclusion(("",)[:0], allow_regex=("[0-9]+,",), ban_regex=("a",), ban_strings=(" ",)),
        ),
        ("token:5, 7", ["token:1", "token:2"], Exclusion(allow_tokens=(5, 7), ban_tokens=(1, 2))),
        ((), (), Exclusion()),
        ("[a:z]", (), Exclusion(allow_characters=("[a:z]",))),
        ("text:", (), Exclusion(allow_strings=("",))),
    ],
)
def test_items_become_fields(allow, ban, expected):
    assert parse_exclusion(allow, ban) == expected


@pytest.mark.parametrize(
    ("allow", "ban", "message"),
    [
        ("Hangull", (), "no characters called 'Hangull'"),
        ("digitss", (), "did you mean 'digits'"),
        ("", (), "is empty"),
        ("regex:", (), "is empty"),
        ("token:a", (), "not a list of token ids"),
        ("[a", (), "not a class"),
        ("digits,,Latin", (), "no characters called ''"),
        ((), "text:", "empty string is in every text"),
        ("token:-5", (), "not a list of token ids"),
    ],
)
def test_the_error_names_a_wrong_item(allow, ban, message):
    with pytest.raises(ConfigError, match=message):
        parse_exclusion(allow, ban)


def test_exclusions_are_values():
    made = Exclusion(allow_characters=["digits"])
    assert made == parse_exclusion(allow="digits")
    assert hash(made) == hash(parse_exclusion(allow=["digits"]))
    with pytest.raises(ConfigError, match="0 or more"):
        Exclusion(ban_tokens=(-1,))


@pytest.mark.parametrize(
    ("names", "inside", "outside"),
    [
        (("Hangul",), "한ㄱᄀ", "漢aあ"),
        (("digits",), "09٣", "½aⅧ"),
        (("numbers",), "0½Ⅷ", "a"),
        (("punctuation",), ".,!?-「」", "+$a"),
        (("symbols",), "+$©", ".a"),
        (("spaces",), " \n\t\u3000", "a_"),
        (("letters", "marks"), "aéЖ한\u0301", "1."),
        (("Lu", "[x-z]"), "AÉx", "ab1"),
        (("emoji",), "\U0001f600", "a"),
        (("ascii",), "a~\x00", "é"),
    ],
)
def test_names_select_their_characters(names, inside, outside):
    characters = CharacterSet(names)
    assert characters.holds(inside)
    assert not any(characters.holds(letter) for letter in outside)
    assert not CharacterSet((), names).holds(inside)
    assert CharacterSet((), names).holds(outside)


def test_names_are_checked_without_a_model():
    check_characters(["Hangul", "P", "[^a]"])
    with pytest.raises(ConfigError, match="'Klingon'"):
        Exclusion(ban_characters=("Klingon",))


def test_invalid_utf8_bytes_are_not_characters():
    assert decode(b"a\xed\x95") == ("a", b"\xed\x95")
    text, tail = decode(b"a\x80\xc0\xaf")
    assert tail == b""
    assert not CharacterSet().holds(text)
    assert CharacterSet().holds("any text at all, 한")
