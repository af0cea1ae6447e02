import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from gvpo.report.data import load_run
from gvpo.report.tokens import Pieces, byte_alphabet
from gvpo.training.checkpoint.run_directory import RunDirectory

TEXT = 'The "naïve" sum\n of 𝛑 and 漢字 is 7 🙂!'


def byte_level(merges: list[tuple[str, str]] = ()) -> Tokenizer:
    vocabulary = {token: index for index, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<eos>", special=True)])
    tokenizer.add_tokens([AddedToken("\\boxed{", special=False)])
    return tokenizer


def sentencepiece() -> Tokenizer:
    """Return a tokenizer like that of Llama: a mark for spaces, bytes for unknown text, and no first space."""
    pieces = ["<unk>", "▁", "▁the", "▁sum", "e", "!", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def units(text: str) -> int:
    return len(text.encode("utf-16-le")) // 2


def cut(text: str, lengths: list[int]) -> list[str]:
    """Return the text in pieces, as the page's script cuts it."""
    data, at, pieces = text.encode("utf-16-le"), 0, []
    for length in lengths:
        pieces.append(data[2 * at : 2 * (at + length)].decode("utf-16-le"))
        at += length
    assert at == units(text)
    return pieces


def test_the_byte_alphabet_is_the_librarys():
    assert byte_alphabet().keys() == set(pre_tokenizers.ByteLevel.alphabet())
    encoded = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(TEXT)[0][0]
    assert bytes(byte_alphabet()[character] for character in encoded) == TEXT.encode()


def test_byte_level_pieces():
    tokenizer = byte_level([("t", "h"), ("th", "e")])
    tokens = tokenizer.encode("in the \\boxed{7}<eos>").ids
    text = tokenizer.decode(tokens)
    pieces = cut(text, Pieces(tokenizer).lengths(tokens, text))
    assert pieces == ["i", "n", " ", "the", " ", "\\boxed{", "7", "}", ""]


def test_a_split_character_belongs_to_its_last_token():
    tokenizer = byte_level()
    tokens = tokenizer.encode("é🙂").ids
    assert len(tokens) == 6
    assert Pieces(tokenizer).lengths(tokens, "é🙂") == [0, 1, 0, 0, 0, 2]


@pytest.mark.parametrize("text", [TEXT, "", "plain", "ends in space ", "\u2028 \t"])
def test_pieces_make_up_the_text(text):
    tokenizer = byte_level([("t", "h"), (" ".replace(" ", "Ġ"), "i")])
    tokens = tokenizer.encode(text).ids
    pieces = cut(text, Pieces(tokenizer).lengths(tokens, text))
    assert "".join(pieces) == text
    assert len(pieces) == len(tokens)


def test_sentencepiece_pieces():
    tokenizer = sentencepiece()
    tokens = [tokenizer.token_to_id(piece) for piece in ("▁the", "▁sum", "<0xC3>", "<0xA9>", "!")]
    text = tokenizer.decode(tokens)
    assert text == "the sumé!"
    assert cut(text, Pieces(tokenizer).lengths(tokens, text)) == ["the", " sum", "", "é", "!"]


def test_nothing_is_claimed_about_texts_that_are_not_their_tokens():
    tokenizer = byte_level()
    pieces = Pieces(tokenizer)
    assert pieces.lengths(tokenizer.encode("abc").ids, "abd") is None
    cut_off = tokenizer.encode("é").ids[:1]
    assert tokenizer.decode(cut_off) == "\ufffd"
    assert pieces.lengths(cut_off, "\ufffd") is None
    assert pieces.lengths([10**6], "a") is None


def test_the_newest_checkpoints_tokenizer_is_used(tmp_path):
    run = RunDirectory.create(tmp_path / "run", config="{}")
    assert Pieces.of(load_run(run.path)) is None
    for step, merges in ((9, []), (10, [("a", "b")])):
        run.checkpoint_path(step).mkdir(parents=True)
        byte_level(merges).save(str(run.checkpoint_path(step) / "tokenizer.json"))
    tokens = byte_level([("a", "b")]).encode("abc").ids
    assert Pieces.of(load_run(run.path)).lengths(tokens, "abc") == [2, 1]


def test_the_starting_models_tokenizer_is_used_without_a_checkpoint(tmp_path):
    byte_level().save(str(tmp_path / "tokenizer.json"))
    config = f'{{"model": {{"path": "{tmp_path.as_posix()}"}}}}'
    run = RunDirectory.create(tmp_path / "run", config=config)
    assert Pieces.of(load_run(run.path)).lengths(byte_level().encode("ab").ids, "ab") == [1, 1]


def test_a_broken_tokenizer_is_none(tmp_path):
    run = RunDirectory.create(tmp_path / "run", config="{}")
    run.checkpoint_path(1).mkdir(parents=True)
    (run.checkpoint_path(1) / "tokenizer.json").write_text("{}")
    assert Pieces.of(load_run(run.path)) is None


def test_random_bytes_never_misplace_a_token():
    tokenizer, rng = byte_level(), np.random.default_rng(0)
    alphabet = {byte: tokenizer.token_to_id(character) for character, byte in byte_alphabet().items()}
    pieces, valid = Pieces(tokenizer), 0
    for _ in range(100):
        data = bytes(rng.integers(0, 256 if rng.random() < 0.5 else 128, size=4).tolist())
        tokens = [alphabet[byte] for byte in data]
        lengths = pieces.lengths(tokens, tokenizer.decode(tokens))
        if data.decode(errors="replace").encode() == data:
            valid += 1
            assert sum(lengths) == units(data.decode())
        else:
            assert lengths is None
    assert 40 < valid < 90
