"""Tests that every generation config that transformers loads can be saved."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

from gvpo.errors import GvpoWarning
from gvpo.model.generation_config import savable, settle
from gvpo.model.model import load_model, save_model
from tests.fakes import byte_tokenizer, tiny_model

ENDS = {"eos_token_id": [1, 7], "pad_token_id": 0}


def made(settings: dict[str, Any]) -> GenerationConfig:
    """Return a config as read from a file, with unchecked values."""
    config = GenerationConfig()
    for name, value in {**ENDS, **settings}.items():
        setattr(config, name, value)
    return config


def saved(config: GenerationConfig, directory: Path) -> dict[str, Any]:
    config.save_pretrained(str(directory))
    found = json.loads((directory / "generation_config.json").read_text())
    return {name: value for name, value in found.items() if name != "transformers_version"}


@pytest.mark.parametrize(
    ("settings", "kept", "named"),
    [
        # sampling is implied but not set, as in Llama 2's config
        ({"temperature": 0.7}, {"temperature": 0.7, "do_sample": True}, "temperature set do_sample to true"),
        ({"top_p": 0.9}, {"top_p": 0.9, "do_sample": True}, "top_p set do_sample"),
        ({"top_k": 20, "min_p": 0.1}, {"top_k": 20, "min_p": 0.1, "do_sample": True}, "top_k and min_p set do_sample"),
        # greedy is set explicitly or implied
        ({"temperature": 0.7, "do_sample": False}, {"do_sample": False}, "temperature is removed"),
        ({"temperature": 0.0}, {}, "temperature is removed"),
        ({"temperature": 0.0, "top_p": 0.9}, {}, "top_p is removed"),
        # settings of beams and of several sequences without them
        ({"early_stopping": True}, {}, "early_stopping is removed"),
        ({"length_penalty": 2.0, "max_length": 30}, {"max_length": 30}, "length_penalty is removed"),
        ({"num_return_sequences": 3}, {}, "num_return_sequences is removed"),
        # values that are out of range or not JSON
        ({"pad_token_id": -1}, {"pad_token_id": None}, "pad_token_id is removed"),
        ({"max_new_tokens": 0}, {}, "max_new_tokens is removed"),
        ({"cache_implementation": "none"}, {}, "cache_implementation is removed"),
        ({"watermark": object()}, {}, "watermark is removed"),
        ({"temperature": "hot"}, {}, "temperature is removed"),
        # two problems together
        (
            {"temperature": 0.7, "early_stopping": True},
            {"temperature": 0.7, "do_sample": True},
            "early_stopping is removed",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else None,
)
def test_a_config_that_cannot_be_saved_is_repaired_with_a_warning(
    tmp_path: Path, settings: dict[str, Any], kept: dict[str, Any], named: str
):
    with pytest.warns(GvpoWarning, match=named):
        repaired = savable(made(settings))
    expected = {name: value for name, value in {**ENDS, **kept}.items() if value is not None}
    assert saved(repaired, tmp_path) == expected


@pytest.mark.parametrize(
    "settings", [{}, {"do_sample": True, "temperature": 0.6, "top_p": 0.9}, {"num_beams": 3, "early_stopping": True}]
)
def test_a_config_that_can_be_saved_is_unchanged(settings: dict[str, Any]):
    config = made(settings)
    assert savable(config) is config


@pytest.mark.parametrize(
    ("known", "stops", "expected"),
    [
        (None, (5,), 5),
        (1, (1,), 1),
        (1, (7, 1, 5), [1, 5, 7]),
        ([9, 1], (1,), [9, 1]),
        (-1, (5,), 5),
        ([-1, 4], (5,), [4, 5]),
        (None, (), None),
    ],
)
def test_end_tokens_are_added_after_the_existing_ones(known: Any, stops: tuple[int, ...], expected: Any):
    model = tiny_model()
    model.generation_config.eos_token_id = known
    settle(model, stops)
    assert model.generation_config.eos_token_id == expected


def test_weights_are_saved_with_any_generation_config(tmp_path: Path):
    model = tiny_model()
    model.generation_config.temperature = 0.7
    with pytest.warns(GvpoWarning, match="temperature set do_sample to true"):
        save_model(model, byte_tokenizer(), tmp_path)
    again = load_model(tmp_path).generation_config
    assert (again.temperature, again.do_sample) == (0.7, True)
