"""FastGRPOTrainer has the gradients of TRL's GRPOTrainer."""

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from gvpo.errors import ConfigError, GvpoWarning
from gvpo.integrations.trl import FastGRPOConfig, FastGRPOTrainer
from gvpo.integrations.trl.grpo_loss import SUPPORTED
from tests.integrations.trl.by_hand import OFFLINE, PROMPTS, digits, save_model, tokenizer
from tests.naive import relative_error

OFF_POLICY: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "num_iterations": 2,
    "learning_rate": 0.02,
    "max_steps": 2,
}


class Gradients(TrainerCallback):
    """Gradients before each optimizer step."""

    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.found.append({name: each.grad.clone() for name, each in model.named_parameters()})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("model"))


def build(kind: type, directory: Path, model: str, config: type = GRPOConfig, **settings: Any) -> Any:
    named = {name: settings.pop(name) for name in ("peft_config", "callbacks") if name in settings}
    data = Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS * 4])
    args = config(str(directory), **{**OFFLINE, **settings})
    return kind(model, digits, args, data, processing_class=tokenizer(), **named)


def run(kind: type, directory: Path, model: str, **settings: Any) -> tuple[Any, list[dict[str, Any]]]:
    gradients = Gradients()
    trainer = build(kind, directory, model, callbacks=[gradients], **settings)
    trainer.train()
    return trainer, gradients.found


def assert_same(directory: Path, model: str, **settings: Any) -> tuple[Any, Any]:
    theirs, expected = run(GRPOTrainer, directory, model, **settings)
    ours, found = run(FastGRPOTrainer, directory, model, **settings)
    assert ours.engine == "gvpo"
    errors = [relative_error(one, other) for one, other in zip(found, expected, strict=True)]
    assert max(errors) < 1e-5
    return theirs, ours


@pytest.mark.parametrize(
    "loss_type",
    [name if name in ("dapo", "grpo") else pytest.param(name, marks=pytest.mark.slow) for name in SUPPORTED],
)
def test_the_gradient_is_trls(tmp_path, model, loss_type):
    level = "sequence" if loss_type == "luspo" else "token"
    settings = {**OFF_POLICY, "loss_type": loss_type, "importance_sampling_level": level, "beta": 0.04}
    theirs, ours = assert_same(tmp_path, model, **settings, logging_strategy="steps", logging_steps=1)
    for expected, found in zip(theirs.state.log_history[:2], ours.state.log_history[:2], strict=True):
        assert found.keys() == expected.keys()
        for name in ("loss", "grad_norm"):
            assert found[name] == pytest.approx(expected[name], rel=5e-3, abs=2e-4), name


@pytest.mark.parametrize("loss_type", ["luspo", *(pytest.param(n, marks=pytest.mark.slow) for n in SUPPORTED[:4])])
def test_the_metrics_are_trls(tmp_path, model, loss_type):
    """In one micro-batch they are the same numbers; over several, TRL logs the mean of the micro-batches' means."""
    level = "sequence" if loss_type == "luspo" else "token"
    settings = {"loss_type": loss_type, "importance_sampling_level": level, "beta": 0.04, "logging_strategy": "steps"}
    whole = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "logging_steps": 1}
    theirs, ours = assert_same(tmp_path, model, **{**OFF_POLICY, **settings, **whole})
    expected, found = theirs.state.log_history[1], ours.state.log_history[1]
    names = [name for name in expected if name.startswith("clip_ratio/") or name in ("kl", "entropy")]
    assert {"kl", "entropy", "clip_ratio/region_mean"} <= {*names}
    for name in names:
        assert found[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-5), name


def test_the_gradient_of_split_groups_and_truncated_rows_is_trls(tmp_path, model):
    settings = {"steps_per_generation": 4, "mask_truncated_completions": True, "max_completion_length": 12}
    assert_same(tmp_path, model, **{**OFF_POLICY, **settings})


@pytest.mark.slow
def test_gspo_is_trls(tmp_path, model):
    settings = {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.05, "epsilon_high": 0.1}
    assert_same(tmp_path, model, **OFF_POLICY, **settings)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"loss_type": "vespo"}, "loss_type='vespo'"),
        ({"entropy_coef": 0.1}, "an entropy bonus"),
        ({"top_entropy_quantile": 0.5}, "top_entropy_quantile"),
        ({"peft_config": LoraConfig(r=2, target_modules=["q_proj"], lora_dropout=0.1)}, "dropout of an adapter"),
    ],
)
def test_other_losses_are_left_to_trl(tmp_path, model, settings, reason):
    with pytest.warns(GvpoWarning, match=reason):
        trainer = build(FastGRPOTrainer, tmp_path, model, **settings)
    assert trainer.engine == "trl"


def test_trls_update_runs_where_gvpos_cannot(tmp_path, model):
    with pytest.warns(GvpoWarning, match="vespo"):
        trainer, gradients = run(FastGRPOTrainer, tmp_path, model, loss_type="vespo", max_steps=1)
    assert trainer._step == 1
    assert len(gradients) == 1


def test_an_engine_that_was_asked_for_is_not_replaced(tmp_path, model):
    with pytest.raises(ConfigError, match="engine='gvpo' does not compute loss_type='vespo'"):
        build(FastGRPOTrainer, tmp_path, model, FastGRPOConfig, loss_type="vespo", engine="gvpo")


def test_the_budget_of_a_forward_does_not_change_the_gradient(tmp_path, model):
    expected = run(FastGRPOTrainer, tmp_path, model, max_steps=1)[1]
    found = run(FastGRPOTrainer, tmp_path, model, config=FastGRPOConfig, tokens_per_microbatch=12, max_steps=1)[1]
    assert 0 < relative_error(found[0], expected[0]) < 1e-5
