"""Tests of parameter counts from configurations against the models themselves."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from gvpo import model_config
from gvpo.errors import ModelError
from gvpo.planning import read_architecture
from gvpo.planning.files import local_config
from gvpo.update.choose_path import _fusable
from gvpo.update.layouts.packed import Trees

SIZES = {
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 128,
}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
MODELS = {
    "gemma": {},
    "gemma2": {},
    "gemma3_text": {},
    "gpt2": {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 128},
    "granite": {"logits_scaling": 8.0},
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"sliding_window": 32},
    "mixtral": {"num_local_experts": 4},
    "olmo2": {"head_dim": 16},
    "olmoe": {**EXPERTS, "head_dim": 16},
    "phi3": {"head_dim": 16, "pad_token_id": 0},
    "qwen2": {"head_dim": 16},
    "qwen2_moe": {**EXPERTS, "head_dim": 16, "shared_expert_intermediate_size": 80},
    "qwen3": {},
    "qwen3_moe": EXPERTS,
    "smollm3": {"head_dim": 16, "pad_token_id": 0},
}


def built(kind, **keys):
    config = AutoConfig.for_model(kind, **{**({} if kind == "gpt2" else SIZES), **MODELS[kind], **keys})
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", MODELS)
def test_the_parameter_count_equals_the_models(kind, tied):
    model = built(kind, tie_word_embeddings=tied)
    found = read_architecture(model.config.to_dict())
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert found.notes == ()


@pytest.mark.parametrize("kind", MODELS)
def test_shared_prompts_and_fused_head_agree_with_the_update(kind):
    model = built(kind)
    found = read_architecture(model.config.to_dict())
    assert found.shares_prompts == (Trees().why_not(model) == "")
    assert found.fused_head == _fusable(model)


def test_an_unknown_type_is_planned_as_a_llama_with_a_note():
    llama = read_architecture({**SIZES, "model_type": "llama"})
    other = read_architecture({**SIZES, "model_type": "zebra"})
    assert other.parameters == llama.parameters
    assert "'zebra' is unknown" in other.notes[0]


def test_only_the_language_part_of_a_vision_model_counts():
    text = {**SIZES, "model_type": "llama"}
    found = read_architecture({"model_type": "llava", "text_config": text, "tie_word_embeddings": False})
    assert found.parameters == read_architecture({**text, "tie_word_embeddings": False}).parameters
    assert "language part" in found.notes[0]


@pytest.mark.parametrize("missing", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"])
def test_error_names_the_missing_size(missing):
    with pytest.raises(ModelError, match=f"has no {missing}"):
        read_architecture({name: value for name, value in SIZES.items() if name != missing})


def test_local_configurations(tmp_path):
    assert local_config(tmp_path / "org/model") is None
    with pytest.raises(ModelError, match=r"has no config\.json"):
        local_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="is not readable JSON"):
        local_config(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ModelError, match="is a list"):
        local_config(tmp_path)
    (tmp_path / "config.json").write_text('{"hidden_size": 8}')
    assert local_config(tmp_path) == local_config(tmp_path / "config.json") == {"hidden_size": 8}


@pytest.mark.parametrize(
    ("keys", "shares", "linear"),
    [
        ({}, True, True),
        ({"attn_logit_softcapping": 50.0}, False, True),
        ({"layer_types": ["full_attention", "chunked_attention", "full_attention"]}, False, True),
        ({"attention_chunk_size": 8192}, False, True),
        ({"logit_scale": 0.25}, True, False),
        ({"final_logit_softcapping": 30.0}, True, False),
        ({"lm_head_multiplier": 1.0}, True, True),
    ],
)
def test_a_config_json_agrees_with_the_loaded_configuration(keys, shares, linear):
    found = read_architecture({**SIZES, "model_type": "llama", **keys})
    assert (found.shares_prompts, found.fused_head) == (shares, linear)
    loaded = AutoConfig.for_model("llama", **SIZES, **keys)
    assert (not model_config.why_not_shared(loaded), model_config.logits_are_linear(loaded)) == (shares, linear)
