"""From settings to a plan: resolved values, errors and notices."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gvpo.config import OBJECTIVES, Given, TrainConfig, resolve, updates_per_step
from gvpo.config.plan import SHARED, WARM_START, warm_start_settings
from gvpo.errors import ConfigError
from tests.training.toy import config

MODEL = Given(model=True)
NEEDED = {
    "gsspo": {"segment_at": "1"},
    "constrained_grpo": {"costs": {"share": 0.1}},
    "distill": {"teacher": "somewhere"},
}
"""Settings without which an objective cannot start."""


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_every_objective_has_a_plan(name: str):
    given = Given(model=True, train="pairs" if name in ("dpo", "epa") else None)
    plan = resolve(config(objective=name, **NEEDED.get(name, {})), given)
    assert plan.objective is OBJECTIVES[name]
    assert plan.source == {"groups": "live", "pairs": "logged", "answers": "written"}[plan.objective.learns_from]


@pytest.mark.parametrize(
    ("settings", "given", "source", "reference"),
    [
        ({}, MODEL, "live", "initial"),
        ({"groups_data": "x.jsonl"}, MODEL, "logged", "initial"),
        ({"sample_groups": 3}, MODEL, "sampled once", "initial"),
        ({"groups_data": "x.jsonl", "reference": "every:2"}, MODEL, "logged", "every:2"),
        ({}, Given(train="groups", model=True), "logged", "initial"),
        ({}, Given(train="pairs", model=True), "logged", "initial"),
        ({}, Given(train="problems", model=True), "live", "initial"),
        ({"objective": "sft"}, Given(train="pairs", model=True), "written", "initial"),
    ],
)
def test_the_source_of_groups_decides_the_reference(
    settings: dict[str, Any], given: Given, source: str, reference: str
):
    plan = resolve(TrainConfig(**settings), given)
    assert (plan.source, plan.settings.reference) == (source, reference)
    assert plan.samples == (source in ("live", "sampled once"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "gpo"}, r"objective.name='gpo' does not exist; choose one of .*gvpo"),
        ({"objective": "rloo", "beta": 0.1}, "objective.beta is not a keyword of rloo; it accepts"),
        ({"objective": "sft", "clip_low": 0.1}, "objective.clip_low is not a keyword of sft; it accepts reduction"),
        ({"objective": "gspo", "group_size": 1}, "gspo compares .* set sampling.group_size to 2 or more"),
        ({"objective": "sft", "kl_in_reward": 0.1}, "kl_in_reward changes rewards, but sft has none"),
        ({"objective": "dpo", "weak_weight": 0.5}, "objective.weak_weight is not a keyword of dpo; it accepts beta"),
        ({"objective": "dpo"}, "dpo learns from preferences, not from live samples: set data.groups"),
        ({"objective": "gsspo"}, "gsspo needs segments: set objective.segment_at"),
        ({"segment_at": "1"}, "objective.segment_at is not for gvpo, which uses no segments; remove it"),
        ({"groups_per_update": 32}, "train.groups_per_update=32 is larger than train.prompts_per_step=4"),
        ({"reward_funcs": ["a", "b"], "reward_weights": [1.0]}, "rewards.weights has 1 values for 2"),
        ({"vocabulary": ["a"]}, "also set model.init"),
        ({"model_path": "m", "model_init": {}}, "set model.path or model.init, not both"),
        ({"warm_start_steps": 3}, "warm_start needs data.task"),
        ({"groups_data": "g.jsonl", "reference": "previous"}, "set it to 'initial' or 'every:N'"),
        ({"sample_groups": 2, "reference": "previous"}, "set it to 'initial' or 'every:N'"),
        ({"groups_data": "g.jsonl", "sample_groups": 2}, "data.groups or data.sample_groups, not both"),
        ({"groups_data": "g.jsonl", "train_data": "t.jsonl"}, "data.groups or data.train, not both"),
        ({"groups_data": "g.jsonl", "objective": "sft"}, "sft learns from answers, not from groups"),
        ({"lora_rank": 2, "lora_path": "a"}, r"set lora.rank \(a new adapter\) or lora.path, not both"),
    ],
)
def test_error_about_impossible_settings_names_the_key(settings: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message) as caught:
        resolve(config(**settings), MODEL)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "given", "message"),
    [
        ({}, Given(), "there is no model: set model.path"),
        ({"model_init": {"architecture": "llama"}}, Given(), "model.init needs a tokenizer: set model.vocabulary"),
        ({"groups_data": "a.jsonl"}, Given(model=True, train="groups"), "set data.groups or pass train_dataset, not"),
        ({"reference": "previous"}, Given(model=True, train="groups"), "offline training does not sample"),
        ({"objective": "sft"}, Given(model=True, train="groups"), "sft learns from answers, not from groups"),
        (
            {"objective": "constrained_grpo", "costs": {"share": 0.1}},
            Given(model=True, train="groups"),
            "objective.costs needs live samples",
        ),
    ],
)
def test_rules_apply_to_passed_arguments_as_well(settings: dict[str, Any], given: Given, message: str):
    with pytest.raises(ConfigError, match=message):
        resolve(TrainConfig(**settings), given)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reference": "previous"}, "GVPO .* is beta times RLOO"),
        ({"objective": "rloo", "kl_in_reward": 0.1, "reference": "previous"}, "kl_in_reward .* changes nothing"),
        ({"groups_data": "g.jsonl"}, "logged groups are finite"),
        ({"sample_groups": 4}, "logged groups are finite"),
    ],
)
def test_settings_with_an_unexpected_effect_give_one_notice(settings: dict[str, Any], message: str):
    plan = resolve(TrainConfig(**settings), MODEL)
    (notice,) = [each for each in plan.notices if "no effect" not in each]
    assert re.search(message, notice)


@pytest.mark.parametrize(
    "settings",
    [{"groups_per_update": 2}, {"reference": "initial"}, {"objective": "sft"}, {"objective": "rloo", "passes": 1}],
)
def test_other_settings_give_no_notice(settings: dict[str, Any]):
    assert resolve(TrainConfig(**settings), MODEL).notices == ()


@pytest.mark.parametrize(
    ("settings", "updates"),
    [
        ({}, 1),
        ({"groups_per_update": 2}, 2),
        ({"groups_per_update": 3}, 2),  # 4 prompts: 3 and 1
        ({"groups_per_update": 1, "passes": 3}, 12),
    ],
)
def test_updates_per_step(settings: dict[str, int], updates: int):
    assert updates_per_step(config(**settings)) == updates


def test_a_warm_start_has_its_own_settings_some_shared_ones_and_defaults_otherwise():
    given = {"task": "addition", "train_data": "own.jsonl", "beta": 0.3, "passes": 2, "seed": 3, "adam_beta2": 0.95}
    run = TrainConfig(**given, warm_start_steps=4, warm_start_batch=8, warm_start_learning_rate=0.5)
    stage = warm_start_settings(run)
    own = {"objective": "sft", "eval_problems": 0, "rollouts_every": 0}
    own |= {"steps": 4, "prompts_per_step": 8, "learning_rate": 0.5, "checkpoint_verify": False}
    shared = {name: getattr(run, name) for name in SHARED}
    assert {"seed": 3, "adam_beta2": 0.95, "task": "addition"}.items() <= shared.items()
    assert stage == TrainConfig(**own, **shared)


def test_a_plan_has_the_warm_start_as_a_stage_inside_the_run_directory():
    run = TrainConfig(task="gsm8k", model_path="m", warm_start_steps=1)
    plan = resolve(run).at(Path("here"), "there/m")
    assert plan.warm_start is not None
    assert (plan.settings.run_dir, plan.warm_start.settings.run_dir) == (Path("here"), Path("here") / WARM_START)
    assert plan.settings.model_path == plan.warm_start.settings.model_path == "there/m"
    assert (plan.warm_start.source, plan.warm_start.notices) == ("written", ())
    assert resolve(run, MODEL).warm_start is None


def test_resolving_does_not_import_torch():
    code = "import sys; from gvpo.config import TrainConfig, resolve; resolve(TrainConfig(model_path='m'))"
    subprocess.run([sys.executable, "-c", f"{code}; assert 'torch' not in sys.modules"], check=True)


def test_steps_and_epochs_are_not_both_set():
    with pytest.raises(ConfigError, match=r"set train\.steps or train\.epochs, not both \(they are 3 and 2\)"):
        resolve(TrainConfig(steps=3, epochs=2), Given(model=True, rewards=True))
    assert resolve(config(epochs=2), Given(model=True, rewards=True)).settings.epochs == 2
