"""Checks before training: lengths to the token, and settings that fit are accepted."""

import re
from pathlib import Path
from typing import Any

import peft
import pytest

from gvpo.config import Given, TrainConfig, resolve
from gvpo.errors import ConfigError, DataError, ModelError, RewardError
from gvpo.model import lora
from gvpo.model.fresh_tokenizer import fresh_tokenizer
from gvpo.rollout.collect import EncodedProblem
from gvpo.rollout.sampling_params import sampling_params
from gvpo.training.checks import (
    check_columns,
    check_fit,
    rate_notices,
    sampling_notices,
)
from gvpo.training.warm_start import train_recipe
from gvpo.types import Problem
from tests.training.toy import config, model, tokenizer

CONTEXT = 64


def prompt(length: int, name: str = "p") -> EncodedProblem:
    return EncodedProblem(Problem("x", name), (3,) * length)


def test_the_settings_and_the_tokenizer_fit_the_model():
    check_fit(config(max_tokens=CONTEXT - 1, stop_token_ids=[0, 12]), model(), tokenizer())
    check_fit(config(max_tokens=CONTEXT), model(), tokenizer(), samples=False)
    with pytest.raises(ConfigError, match=r"sampling\.max_tokens=64 leaves no room"):
        check_fit(config(max_tokens=CONTEXT), model(), tokenizer())
    with pytest.raises(ConfigError, match=r"sampling\.stop_token_ids contains 13, .* 0 to 12"):
        check_fit(config(stop_token_ids=[1, 13]), model(), tokenizer())
    with pytest.raises(ModelError, match="has token ids up to 13 but the model's embedding has only 13 rows"):
        check_fit(config(), model(), fresh_tokenizer(list("0123456789+")))


@pytest.mark.parametrize(
    ("adapted", "rate", "notice"),
    [
        (True, 1e-6, "train.learning_rate=1e-06 is low for an adapter; 1e-5 to 1e-4 is usual"),
        (True, 1e-5, None),
        (True, 1e-2, None),
        (False, 2e-4, "train.learning_rate=0.0002 is high for all weights of a pretrained model"),
        (False, 5e-5, None),
        (False, 1e-6, None),
    ],
)
def test_a_rate_that_is_far_off_gets_a_notice(
    monkeypatch: pytest.MonkeyPatch, adapted: bool, rate: float, notice: str | None
):
    policy = model()
    if adapted:
        lora.add_adapter(policy, peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear"))
    monkeypatch.setattr("gvpo.training.checks.PRETRAINED_SIZE", policy.num_parameters())
    found = list(rate_notices(config(learning_rate=rate), policy))
    assert [each.partition(" (`")[0].partition("; 1e-6")[0] for each in found] == ([notice] if notice else [])


def test_a_small_model_or_a_new_one_may_have_a_high_rate(monkeypatch: pytest.MonkeyPatch):
    policy = model()
    assert not list(rate_notices(config(learning_rate=3e-3), policy))
    monkeypatch.setattr("gvpo.training.checks.PRETRAINED_SIZE", policy.num_parameters())
    assert not list(rate_notices(config(learning_rate=3e-3, model_init={"architecture": "qwen2"}), policy))


def test_a_column_that_some_problems_have_is_enough():
    def judge(completions, answer):
        return [1.0] * len(completions)

    having = EncodedProblem(Problem("x", "a", {"answer": "1"}), (3,))
    check_columns({"judge": judge}, [prompt(1), having], episodes=False)
    check_columns({"judge": judge}, [], episodes=False)
    with pytest.raises(RewardError, match="reward 'judge' needs a column 'answer'"):
        check_columns({"judge": judge}, [prompt(1)], episodes=False)


@pytest.mark.parametrize("key", ["groups_data", "train_data", "eval_data"])
def test_a_missing_file_is_found_before_the_model_is_loaded(key: str):
    with pytest.raises(DataError, match=r"there is no file nowhere\.jsonl; check the path"):
        train_recipe(
            config(run_dir=Path("nowhere"), model_path="no-such-model", vocabulary=None, **{key: "nowhere.jsonl"})
        )


@pytest.mark.parametrize("objective", ["grpo", "dr_grpo", "dapo", "rloo", "gspo", "gspo_token"])
@pytest.mark.parametrize(("cut", "named"), [({"top_p": 0.9}, "top_p=0.9"), ({"top_k": 5}, "top_k=5")])
def test_a_truncated_distribution_causes_a_notice_about_biased_ratios(objective: str, cut: dict[str, Any], named: str):
    (text,) = of_sampling(config(objective=objective, **cut))
    assert re.search(f"{named}.* {objective} compares with, so its gradient is biased", text)
    assert of_sampling(config(objective=objective)) == []
    assert of_sampling(config(objective=objective, sampling_ban=["digits"])) == []  # nobody bans tokens by accident
    assert of_sampling(config(objective="sft", **cut)) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_p": 0.9}, "top_p=0.9 never samples some tokens"),
        ({"sampling_allow": ["digits"]}, "an exclusion .* never samples some tokens"),
    ],
)
def test_excluded_tokens_cause_a_notice_if_the_optimum_needs_them(settings: dict[str, Any], message: str):
    (text,) = of_sampling(config(**settings))
    assert re.search(message, text)


def test_truncated_sampling_biases_ratios_to_the_trainers_log_probs_only():
    (text,) = of_sampling(config(objective="grpo", top_p=0.9))
    assert "compares with, so its gradient is biased; set rollout.old_logprobs='sampler', or" in text
    assert not of_sampling(config(objective="grpo", top_p=0.9, rollout_old_logprobs="sampler"))
    assert not of_sampling(config(objective="grpo", top_p=0.9, sample_groups=4))
    assert not of_sampling(config(objective="grpo", top_p=0.9, is_cap=2.0))


def of_sampling(settings: TrainConfig) -> list[str]:
    return list(sampling_notices(resolve(settings, Given(model=True)), sampling_params(settings)))
