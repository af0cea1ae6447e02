"""Tests of the allowed next tokens: ids, strings, characters, expressions, split characters, ends, control tokens.

The independent check throughout: a token may come next if and only if some text that it leads to is allowed.
"""

import itertools
import re
import sys
import unicodedata

import pytest
from tokenizers import decoders

from gvpo.errors import ConfigError, ModelError
from gvpo.sampling.exclusion.characters import CharacterSet
from gvpo.sampling.exclusion.exclusion import CompiledExclusion
from gvpo.sampling.exclusion.spec import Exclusion
from gvpo.sampling.exclusion.vocabulary import Vocabulary
from tests.sampling.exclusion.world import (
    compiled,
    pieces_tokenizer,
    random_completions,
    readable,
    trained_tokenizer,
    vocabulary,
)

BYTES = vocabulary(*(bytes([byte]) for byte in range(256)))
WORDS = vocabulary("a", "b", "ab", "ba", "abc", "c", "cab", None)
PUNCTUATION = {"Pc", "Pd", "Pe", "Pf", "Pi", "Po", "Ps"}
KOREAN = ("Hangul", "digits", "punctuation")


@pytest.fixture(scope="module")
def trained():
    tokenizer = trained_tokenizer()
    return tokenizer, Vocabulary.of(tokenizer, len(tokenizer) + 3, [tokenizer.eos_token_id])


def is_korean(letter):
    """Decide by the names of characters, not by the code's tables, which are newer, so some have no name here."""
    return "HANGUL" in unicodedata.name(letter, "HANGUL?") or unicodedata.category(letter) in {"Nd", *PUNCTUATION}


def texts_of(rows, words):
    return [b"".join(words.tokens[token] or b"" for token in row) for row in rows]


def test_only_token_ids_are_allowed_and_banned():
    assert readable(compiled(WORDS, allow_tokens=(1, 2))) == {0, b"a", b"b"}
    assert readable(compiled(WORDS, ban_tokens=(1, 2, 8))) == {0, b"ab", b"ba", b"abc", b"c", b"cab"}
    assert readable(compiled(WORDS, allow_tokens=(1, 2), ban_tokens=(2, 0))) == {b"a"}


def test_a_banned_string_is_excluded_in_any_tokenization():
    """The sequences of 4 tokens that the rule allows step by step are exactly those without the strings."""
    exclusion = compiled(WORDS, ban_strings=("abc", "bb"))
    for row in itertools.product(range(1, 8), repeat=4):
        text = b"".join(WORDS.tokens[token] for token in row)
        good = b"abc" not in text and b"bb" not in text
        state, allowed = exclusion.start, True
        for token in row:
            if not exclusion.allowed(state)[token]:
                allowed = False
                break
            state = exclusion.advance(state, token)
        assert allowed == good, text


def test_a_banned_string_within_a_character_is_bytes():
    exclusion = compiled(BYTES, ban_strings=("한",))
    first, second, last = (byte + 1 for byte in "한".encode())
    assert exclusion.allowed(exclusion.after([first, second])).sum() == 256
    assert not exclusion.allowed(exclusion.after([first, second]))[last]
    assert not exclusion.allowed(exclusion.after([first, first, second]))[last]


def test_allowed_strings_allow_each_of_them():
    exclusion = compiled(WORDS, allow_strings=("ab", "abc", "ba"))
    assert readable(exclusion) == {b"a", b"ab", b"abc", b"b", b"ba"}
    assert readable(exclusion, 3) == {0, b"c"}  # "ab" is complete, "abc" is not
    assert readable(exclusion, 5) == {0}


def test_rules_of_several_kinds_must_all_be_satisfied():
    exclusion = compiled(WORDS, allow_strings=("ab", "abc", "ba"), ban_strings=("bc",), ban_tokens=(3,))
    assert readable(exclusion) == {b"a", b"b", b"ba"}
    assert readable(exclusion, 1) == {b"b"}
    assert readable(exclusion, 1, 2) == {0}


@pytest.mark.parametrize("text", ["한", "힣", "ㄱ", "9", "。"])
def test_a_character_can_be_written_byte_by_byte(text):
    exclusion = compiled(BYTES, allow_characters=KOREAN)
    written = []
    for byte in text.encode():
        state = exclusion.after(written)
        assert exclusion.allowed(state)[byte + 1]
        assert exclusion.allowed(state)[0] == (not written)  # no end within a character
        written.append(byte + 1)
    assert exclusion.allowed(exclusion.after(written))[0]


@pytest.mark.parametrize("text", ["漢", "a", "é", "\U0001f600", "Ж"])
def test_another_character_is_stopped_at_its_first_distinguishing_byte(text):
    exclusion = compiled(BYTES, allow_characters=KOREAN)
    state, stopped = exclusion.start, False
    for byte in text.encode():
        stopped = not exclusion.allowed(state)[byte + 1]
        if stopped:
            break
        state = exclusion.advance(state, byte + 1)
    assert stopped


@pytest.mark.parametrize(
    ("allow", "ban"), [(KOREAN, ()), ((), ("Han",)), (("letters", "spaces"), ("Latin", "[가-힇]")), (("ascii",), ())]
)
def test_after_each_beginning_of_a_character_exactly_its_possible_continuations_are_allowed(allow, ban):
    """Compare with every Unicode character, by its UTF-8 form."""
    characters = CharacterSet(allow, ban)
    everything = (chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000)
    good = {letter.encode() for letter in everything if characters.holds(letter)}
    beginnings = {form[:length] for form in good for length in range(1, len(form))}
    exclusion = compiled(BYTES, allow_characters=allow, ban_characters=ban)
    for beginning in [b"", *sorted(beginnings)[::211]]:
        state = exclusion.after([byte + 1 for byte in beginning])
        expected = {byte for byte in range(256) if (form := beginning + bytes([byte])) in good or form in beginnings}
        assert {token - 1 for token in range(1, 257) if exclusion.allowed(state)[token]} == expected


def test_only_korean_with_a_trained_tokenizer(trained):
    """Tokens of this tokenizer begin and end within characters. Only allowed characters are written."""
    tokenizer, words = trained
    partial = [data for data in words.tokens if data and not is_utf8(data)]
    assert len([data for data in partial if len(data) > 1]) > 10
    exclusion = compiled(words, allow_characters=KOREAN)
    rows = random_completions(exclusion, 40, 12)
    ended = [row for row in rows if row[-1] == tokenizer.eos_token_id]
    texts = [text.decode() for text in texts_of(ended, words)]
    assert len(ended) > 20
    assert all(is_korean(letter) for text in texts for letter in text)
    assert any(is_within_character(words.tokens[token]) for row in ended for token in row[:-1])
    assert [tokenizer.decode(row, skip_special_tokens=True) for row in ended] == texts
    for text in texts_of(rows, words):
        assert not text or is_korean_so_far(text)


def is_utf8(data):
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def is_within_character(data):
    return bool(data) and not is_utf8(data)


def is_korean_so_far(text):
    """Return whether a text is Korean; its last character may be incomplete."""
    return all(is_korean(letter) for letter in text.decode(errors="ignore"))


def test_every_korean_text_can_be_written_by_its_own_tokens(trained):
    tokenizer, words = trained
    exclusion = compiled(words, allow_characters=(*KOREAN, "spaces"))
    for text in ("한국어 문장은 이렇게 쓴다.", "2024년 3월 14일, 서울!"):
        state = exclusion.start
        for token in [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]:
            assert exclusion.allowed(state)[token]
            state = exclusion.advance(state, token)
        assert state is None


def test_a_script_can_be_banned_and_the_rest_stays_allowed(trained):
    tokenizer, words = trained
    exclusion = compiled(words, ban_characters=("Han",))
    allowed = exclusion.allowed(exclusion.start)
    for token, data in enumerate(words.tokens):
        if data and is_utf8(data):
            assert allowed[token] == (not re.search("[\u4e00-\u9fff]", data.decode()))
    assert allowed[tokenizer.convert_tokens_to_ids("<|im_end|>")], "control tokens have no script"


def test_control_tokens_and_unused_ids_are_not_text_and_stop_tokens_end_it(trained):
    tokenizer, words = trained
    control = [tokenizer.pad_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>"), words.size - 1]
    for fields in ({"allow_characters": ("ascii",)}, {"allow_strings": ("The",)}, {"allow_regex": ("[a-zA-Z<>]*",)}):
        allowed = compiled(words, **fields).allowed(compiled(words, **fields).start)
        assert not allowed[control].any()
    assert words.tokens[tokenizer.convert_tokens_to_ids("<think>")] == b"<think>"
    for fields in ({"ban_characters": ("Han",)}, {"ban_strings": ("The",)}, {"ban_regex": ("T+",)}):
        assert compiled(words, **fields).allowed(compiled(words, **fields).start)[control].all()
    several = compiled(Vocabulary(words.tokens, (tokenizer.eos_token_id, control[1])), allow_characters=("ascii",))
    assert several.allowed(several.start)[[tokenizer.eos_token_id, control[1]]].all()


def test_tokens_write_the_bytes_that_the_tokenizer_decodes(trained):
    for tokenizer in (trained[0], pieces_tokenizer()):
        words = Vocabulary.of(tokenizer, len(tokenizer), [1])
        texts = ["한국 the e", "th\u00e9 \U0001f600!"]
        for text in texts:
            ids = tokenizer(text, add_special_tokens=False).input_ids
            assert b"".join(words.tokens[token] for token in ids).decode() == text
        assert words.tokens[tokenizer.eos_token_id] is None


def test_a_tokenizer_with_unknown_bytes_is_rejected():
    tokenizer = trained_tokenizer()
    tokenizer.backend_tokenizer.decoder = decoders.WordPiece()
    with pytest.raises(ModelError, match="WordPiece"):
        Vocabulary.of(tokenizer, 10, [1])


@pytest.mark.parametrize("pattern", ["[0-9]{2,3}", "(ab|ba)*c?", "한+[.!]", "a/b\nc|\\/"])
def test_a_regular_expression_for_the_whole_text(pattern):
    pytest.importorskip("llguidance")
    exclusion = compiled(BYTES, allow_regex=(pattern,))
    ended = [row for row in random_completions(exclusion, 30, 12) if row[-1] == 0]
    texts = [text.decode() for text in texts_of(ended, BYTES)]
    assert len(set(texts)) > 1
    assert all(re.fullmatch(pattern, text) for text in texts)


def test_an_expression_allows_every_tokenization_of_a_text():
    """Allow all tokenizations, not only the tokenizer's own, even if the text has a single continuation."""
    pytest.importorskip("llguidance")
    exclusion = compiled(WORDS, allow_regex=("abcab",))
    assert readable(exclusion) == {b"a", b"ab", b"abc"}
    assert readable(exclusion, 1) == {b"b"}
    assert readable(exclusion, 3) == {b"c", b"cab"}
    assert readable(exclusion, 3, 7) == {0}


def test_a_regular_expression_for_no_part_of_the_text():
    """As with banned strings, the texts allowed step by step are exactly those without a match."""
    pytest.importorskip("llguidance")
    exclusion = compiled(WORDS, ban_regex=("ab+c", "bb"))
    for row in itertools.product(range(1, 8), repeat=3):
        text = b"".join(WORDS.tokens[token] for token in row).decode()
        state, allowed = exclusion.start, True
        for token in row:
            allowed = allowed and bool(exclusion.allowed(state)[token])
            state = exclusion.advance(state, token) if allowed else state
        assert allowed == (re.search("ab+c|bb", text) is None), text
        assert not allowed or exclusion.allowed(state)[0]


def test_both_kinds_of_expressions_and_characters_together():
    pytest.importorskip("llguidance")
    fields = {"allow_regex": ("[a-c]{1,4}", "[0-9]+"), "ban_regex": ("aa", "0"), "ban_characters": ("[b]",)}
    rows = random_completions(compiled(BYTES, **fields), 60, 8)
    texts = {text.decode() for row, text in zip(rows, texts_of(rows, BYTES), strict=True) if row[-1] == 0}
    assert any(text.isdigit() for text in texts)
    assert any(text.isalpha() for text in texts)
    assert all(re.fullmatch("[ac]{1,4}|[1-9]+", text) and "aa" not in text for text in texts)


def test_states_are_not_changed_in_place():
    """Beams share states."""
    pytest.importorskip("llguidance")
    exclusion = compiled(WORDS, allow_regex=("ab|ba",), ban_strings=("x",))
    start = exclusion.start
    before = exclusion.allowed(start).copy()
    exclusion.advance(start, 1)
    exclusion.advance(start, 2)
    assert (exclusion.allowed(start) == before).all()


def test_the_error_names_a_wrong_expression():
    pytest.importorskip("llguidance")
    with pytest.raises(ConfigError, match=r"'a\(' cannot be used: unclosed group"):
        compiled(WORDS, allow_regex=("ok", "a("))
    with pytest.raises(ConfigError, match="look-around"):
        compiled(WORDS, ban_regex=("a(?=b)",))


def test_without_the_library_the_message_names_the_package_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ConfigError, match=r"gvpo\[decoding\]"):
        compiled(WORDS, allow_regex=("a",))


def test_a_dead_end_is_an_empty_mask_and_after_the_end_every_token_is_allowed():
    exclusion = CompiledExclusion(Exclusion(allow_strings=("xyz",)), WORDS)
    assert not exclusion.allowed(exclusion.start).any()
    free = compiled(WORDS, ban_tokens=(1,))
    assert free.allowed(free.after([2, 0])).all()
    assert free.after([2, 0, 1]) is None
