"""Tokenizers of small models that are trained from scratch."""

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer
from transformers.utils import logging as transformers_logging

from gvpo.errors import ConfigError
from gvpo.model.fresh_tokenizer import fresh_tokenizer
from gvpo.model.model import load_model, save_model
from gvpo.model.tokenizer import TokenizerWarning, load_tokenizer

WORDS = [*"0123456789+=", "\n", "\\boxed{", "}", "ab", "abc", "bcd", " ", "."]
TEXTS = ["12+3=\n\\boxed{15}", "abcbcd abab\n\n", "...  1", "<eos>12<pad>"]
SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture
def said() -> Iterator[list[str]]:
    """Return the list that the messages of transformers are appended to."""
    messages: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    keep = Keep(logging.WARNING)
    transformers_logging.add_handler(keep)
    yield messages
    transformers_logging.remove_handler(keep)


def saved(place: Path, words: list[str], architecture: str = "qwen2") -> Path:
    """Save a small model with a tokenizer of these words."""
    tokenizer = fresh_tokenizer(words)
    sizes = {"architecture": architecture, "vocab_size": len(tokenizer), "num_key_value_heads": 2, **SIZES}
    special = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    save_model(load_model(init={**sizes, **special}), tokenizer, place)
    return place


def test_tokens_are_the_given_strings_with_the_longest_match_first():
    tokenizer = fresh_tokenizer(WORDS)
    pieces = tokenizer.convert_ids_to_tokens(tokenizer("abcbcd ab\\boxed{1}?").input_ids)
    assert pieces == ["abc", "bcd", " ", "ab", "\\boxed{", "1", "}", "<unk>"]
    assert [tokenizer.convert_tokens_to_ids(word) for word in WORDS] == list(range(3, 3 + len(WORDS)))
    assert len(tokenizer) == 3 + len(WORDS)
    assert tokenizer.decode(tokenizer(TEXTS[0]).input_ids, skip_special_tokens=True) == TEXTS[0]


@pytest.mark.parametrize("architecture", ["qwen2", "llama", "qwen3"])
def test_a_plain_autotokenizer_reads_it_without_a_warning(architecture: str, tmp_path: Path, said: list[str]):
    tokenizer = fresh_tokenizer(WORDS)
    place = saved(tmp_path / "model", WORDS, architecture)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = AutoTokenizer.from_pretrained(place)
        ours = load_tokenizer(place)
    assert isinstance(loaded, Qwen2Tokenizer) == (architecture == "qwen2")
    for text in TEXTS:
        ids = tokenizer(text).input_ids
        assert loaded(text).input_ids == ours(text).input_ids == ids
        assert loaded.decode(ids) == text
    assert said == []
    assert ours("1?").input_ids == [4, tokenizer.unk_token_id]  # text that no token covers is not dropped


def test_a_pipeline_of_transformers_runs_it(tmp_path: Path):
    place = saved(tmp_path / "model", WORDS)
    written = pipeline("text-generation", model=str(place))("12+3=\n", do_sample=False, max_new_tokens=4)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(place), fresh_tokenizer(WORDS)
    ids = torch.tensor([tokenizer("12+3=\n").input_ids])
    wanted = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=4)[0]
    assert written[0]["generated_text"] == tokenizer.decode(wanted, skip_special_tokens=True)


def test_letters_that_autotokenizer_would_decode_differently_are_a_warning(tmp_path: Path):
    place = saved(tmp_path / "model", [*"0123456789", "é"])
    with pytest.warns(TokenizerWarning, match="Qwen2Tokenizer"):
        tokenizer = load_tokenizer(place)
    assert tokenizer.decode(tokenizer("1é").input_ids) == "1é"


@pytest.mark.parametrize("words", [[], ["a", ""], ["a", "a"]])
def test_tokens_that_are_empty_or_repeated_are_an_error(words: list[str]):
    with pytest.raises(ConfigError, match="needs tokens that are neither empty nor repeated"):
        fresh_tokenizer(words)
