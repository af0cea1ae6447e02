"""Settings that cannot be exact are refused in one line, before anything is loaded or trained."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset
from peft import LoraConfig
from trl import GRPOConfig, GRPOTrainer

from gvpo.errors import ConfigError, GvpoWarning
from gvpo.integrations.trl import GVPOConfig, GVPOTrainer, engines, surface
from tests.integrations.trl.by_hand import OFFLINE, digits, save_model, tokenizer
from tests.training import toy


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("model"))


def build(directory: Path, model: Any, **settings: Any) -> GVPOTrainer:
    named = {name: settings.pop(name) for name in ("peft_config",) if name in settings}
    args = GVPOConfig(str(directory), **{**OFFLINE, **settings})
    data = Dataset.from_list([{"prompt": "1"}] * 8)
    return GVPOTrainer(model, digits, args, data, processing_class=tokenizer(), **named)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gvpo_beta": 0.0}, "gvpo_beta is 0.0; use a value above 0"),
        ({"reference": "first"}, "reference is 'first'; use 'previous' or 'initial'"),
        ({"engine": "fast"}, "engine is 'fast'; use 'auto', 'gvpo' or 'trl'"),
        ({"beta": 0.04}, "beta=0.04 is the weight of GRPO's KL term"),
        ({"multi_objective_aggregation": "normalize_then_sum"}, "gives no reward; GVPO needs the default"),
        ({"tokens_per_microbatch": 0}, "tokens_per_microbatch is 0; use at least 1, or None"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ConfigError, match=message):
        GVPOConfig("somewhere", **OFFLINE, **settings)


def test_settings_of_grpos_loss_have_no_effect():
    with pytest.warns(GvpoWarning, match="no loss_type, epsilon;"):
        GVPOConfig("somewhere", **OFFLINE, loss_type="grpo", epsilon=0.1)


def test_a_configuration_of_trl_is_refused(tmp_path, model):
    with pytest.raises(ConfigError, match="needs a GVPOConfig, not a GRPOConfig"):
        GVPOTrainer(model, digits, GRPOConfig(str(tmp_path), **OFFLINE), Dataset.from_list([{"prompt": "1"}] * 8))


def test_groups_over_steps_are_refused_with_numbers_that_fit(tmp_path, model):
    numbers = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3, "steps_per_generation": 2}
    with pytest.raises(ConfigError, match="use gradient_accumulation_steps=2 and steps_per_generation=2"):
        build(tmp_path, model, **numbers)


def test_the_initial_model_must_have_a_name(tmp_path):
    with pytest.raises(ConfigError, match="loads the model again by its name, and this one has none"):
        build(tmp_path, toy.model(), reference="initial")


def test_an_adapter_with_dropout_is_refused(tmp_path, model):
    with pytest.raises(ConfigError, match=r"dropout 0\.1 and updates need exact forwards; set lora_dropout=0"):
        build(tmp_path, model, peft_config=LoraConfig(r=2, target_modules=["q_proj"], lora_dropout=0.1))


def test_fp16_is_left_to_trls_forward(tmp_path, model, monkeypatch):
    trainer = build(tmp_path, model)
    assert trainer.engine == "gvpo"
    monkeypatch.setattr(trainer.accelerator, "scaler", object())
    with pytest.warns(GvpoWarning, match="engine='trl' is used, because gvpo's update does not work with fp16"):
        assert engines.choose(trainer, "auto") == "trl"
    assert engines.choose(trainer, "trl") == "trl"
    with pytest.raises(ConfigError, match="engine='gvpo' does not work with fp16"):
        engines.choose(trainer, "gvpo")


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"is_deepspeed_enabled": True}, "DeepSpeed"),
        ({"is_fsdp_enabled": True}, "FSDP1"),
        ({"_is_vlm": True}, "models for images"),
    ],
)
def test_other_owners_of_the_backward_pass_are_left_to_trls_forward(tmp_path, model, attributes, reason):
    trainer = build(tmp_path, model)
    for name, value in attributes.items():
        setattr(trainer, name, value)
    trainer.accelerator.state.fsdp_plugin = SimpleNamespace(fsdp_version=1)
    assert engines.why_not_fast(trainer, "auto").startswith(reason)
    if reason == "FSDP1":
        trainer.accelerator.state.fsdp_plugin.fsdp_version = 2
        assert engines.why_not_fast(trainer, "auto").startswith("FSDP2")
        assert engines.why_not_fast(trainer, "gvpo") == ""


def test_lomo_is_refused(tmp_path, model):
    trainer = build(tmp_path, model)
    trainer.args.optim = "lomo"
    with pytest.raises(ConfigError, match="changes weights during the backward pass"):
        engines.choose(trainer, "trl")


def test_unsloth_is_refused(tmp_path, model, monkeypatch):
    monkeypatch.setitem(sys.modules, "unsloth", object())
    with pytest.raises(ConfigError, match="do not import unsloth"):
        build(tmp_path, model)


@pytest.mark.parametrize("name", [*surface.METHODS])
def test_a_missing_method_of_trl_is_named(tmp_path, model, monkeypatch, name):
    monkeypatch.setattr(surface, "GRPOTrainer", _without(name))
    with pytest.raises(ConfigError, match=f"lacks GRPOTrainer.{name}, which gvpo needs; pip install 'trl=="):
        build(tmp_path, model)


def _without(name: str) -> Any:
    """Return a class with the methods of GRPOTrainer except for one."""
    methods = {each: getattr(GRPOTrainer, each) for each in surface.METHODS if each != name}
    return type("GRPOTrainer", (), {**methods, "__module__": "trl.trainer"})


def test_a_missing_parameter_attribute_and_key_are_named(monkeypatch):
    other = _without("_prepare_inputs")
    other._prepare_inputs = GRPOTrainer._prepare_inputs
    other._save_rng_state = lambda self, folder: None
    monkeypatch.setattr(surface, "GRPOTrainer", other)
    with pytest.raises(ConfigError, match=r"lacks the parameter output_dir of GRPOTrainer\._save_rng_state"):
        surface.check_classes()
    with pytest.raises(ConfigError, match=r"lacks GRPOTrainer\._step"):
        surface.check_trainer(object())
    with pytest.raises(ConfigError, match="lacks the key 'prompt_ids' in its batches"):
        surface.check_keys({})
