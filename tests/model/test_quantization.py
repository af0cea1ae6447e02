"""Tests of QLoRA: a base in 4 bits under an adapter in float32. The real path runs if bitsandbytes is installed."""

import functools
import importlib.util
import warnings

import peft
import pytest
import torch

from gvpo.errors import ConfigError, ModelError
from gvpo.model import lora
from gvpo.model.model import load_model, save_model
from gvpo.model.quantization import quantization_config
from gvpo.model.reference import make_reference
from gvpo.objectives import gvpo
from gvpo.update.group_backward import group_backward
from tests.fakes import byte_tokenizer, tiny_model
from tests.model.test_lora import IDS, config, logits, move
from tests.naive import gradients, naive_update, random_groups, relative_error
from tests.training.toy import model, trainer

THERE = importlib.util.find_spec("bitsandbytes") is not None
needs_bitsandbytes = pytest.mark.skipif(not THERE, reason="bitsandbytes is not installed")


@pytest.fixture
def quantised(tmp_path):
    tiny_model("llama", hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # bitsandbytes warns about the hardware
        return load_model(tmp_path / "base", quantization="4bit")


def test_none_needs_no_config():
    assert quantization_config("none") is None


def test_another_kind_is_an_error():
    with pytest.raises(ModelError, match="quantization is '8bit'; use 'none' or '4bit'"):
        quantization_config("8bit")


def test_a_missing_bitsandbytes_names_the_package_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"needs bitsandbytes; pip install 'gvpo\[qlora\]'"):
        quantization_config("4bit")


def test_a_loaded_model_cannot_be_quantized():
    with pytest.raises(ConfigError, match="this model is loaded; pass its path or ID"):
        trainer(None, lora_quantization="4bit", lora_rank=2)


@needs_bitsandbytes
def test_the_adapter_learns_on_four_bits_exactly(quantised, tmp_path):
    lora.add_adapter(quantised, config("all linear"))
    assert {p.dtype for _, p in lora.trainable(quantised)} == {torch.float32}
    assert sum(type(module.base_layer).__name__ == "Linear4bit" for module in lora._layers(quantised)) == 14
    reference, start = make_reference(quantised), logits(quantised)
    assert reference.state_dict() == {}
    move(quantised)
    with reference.scoring() as scored:
        assert torch.equal(logits(scored), start)
    with torch.no_grad():
        quantised.eval()(input_ids=IDS)  # like a sampler; changes by bitsandbytes must not persist
    groups = random_groups(((7, (5, 9, 3)), (4, (6, 6))))
    objective = functools.partial(gvpo, beta=0.1)
    quantised.train()
    true = naive_update(quantised, groups, objective)
    group_backward(quantised, groups, objective, tokens_per_microbatch=1)
    assert relative_error(gradients(quantised), true.gradients) < 1e-4
    save_model(quantised, byte_tokenizer(), tmp_path / "adapter")
    again = load_model(tmp_path / "adapter", quantization="4bit")
    assert torch.equal(logits(again), logits(quantised.eval()))


@needs_bitsandbytes
def test_four_bit_weights_need_an_adapter(quantised):
    with pytest.raises(ConfigError, match=r"quantised weights cannot be trained; set lora\.rank"):
        trainer(None, policy=quantised)


@needs_bitsandbytes
def test_a_quantized_run_trains_its_adapter(tmp_path):
    model(architecture="llama", hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "base")
    run = trainer(tmp_path / "run", policy=tmp_path / "base", lora_rank=4, lora_quantization="4bit")
    assert run.model.is_quantized
    assert run.train()["steps"] == 3
    assert peft.PeftConfig.from_pretrained(str(tmp_path / "run/checkpoints/step-000003")).r == 4
