"""Every shipped recipe loads, its objective builds, and the names in it exist."""

import re
from pathlib import Path

import pytest

from gvpo.cli.shipped import find_recipe, shipped
from gvpo.config import Given, TrainConfig, find_objective, resolve, updates_per_step
from gvpo.config.plan import warm_start_settings
from gvpo.config.recipe import dump_config, load_config, restore_config
from gvpo.data import TASKS
from gvpo.model.fresh_tokenizer import fresh_tokenizer
from gvpo.rewards import load
from gvpo.rollout.problems import demonstrations, encode, held_out_problems, training_problems
from gvpo.training.objective import build_objective


def recipe(name: str) -> TrainConfig:
    return load_config(find_recipe(name))


@pytest.mark.parametrize("name", shipped())
def test_it_survives_a_run_directory(name: str):
    config = recipe(name)
    assert restore_config(dump_config(config)).to_recipe() == config.to_recipe()


@pytest.mark.parametrize("name", shipped())
def test_its_objective_builds_without_a_warning(name: str):
    config = recipe(name)
    build_objective(config)
    if config.warm_start_steps:
        assert build_objective(warm_start_settings(config)).name == "sft"


@pytest.mark.parametrize("name", shipped())
def test_its_rewards_and_its_task_exist(name: str):
    config = recipe(name)
    assert config.task is None or config.task in TASKS
    assert all(callable(load(reward)) for reward in config.reward_funcs)
    if config.reward_weights is not None:
        assert len(config.reward_weights) == len(config.reward_funcs)


@pytest.mark.parametrize("name", [name for name in shipped() if recipe(name).vocabulary and recipe(name).task])
def test_a_new_tokenizer_can_encode_its_prompts_and_answers_and_they_fit(name: str):
    config = recipe(name).replace(train_problems=200, warm_start_demonstrations=200)
    tokenizer = fresh_tokenizer(config.vocabulary or [])
    problems = [*training_problems(config, None), *held_out_problems(config, None)]
    prompts = encode(config, tokenizer, problems)
    written = demonstrations(config, tokenizer, None)
    for ids in [item.prompt for item in prompts] + [answer.tokens for _, answer in written]:
        assert tokenizer.unk_token_id not in ids
    assert max(len(answer.tokens) for _, answer in written) <= config.max_tokens
    room = (config.model_init or {})["max_position_embeddings"] - config.max_tokens
    assert max(len(item.prompt) for item in prompts) <= room


def test_a_recipe_names_files_in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The base recipe's files are in its own folder, and other paths are left as they are."""
    (tmp_path / "arms").mkdir()
    base, arm = tmp_path / "base.toml", tmp_path / "arms/arm.toml"
    base.write_text('[data]\ntrain = "{recipe}/train.jsonl"\neval = "held-out.jsonl"\n')
    arm.write_text('extends = "../base.toml"\n[rewards]\nfuncs = ["{recipe}/own.py:f", "gsm8k"]\n')
    config = load_config(arm)
    assert (config.train_data, config.eval_data) == (f"{tmp_path}/arms/../train.jsonl", "held-out.jsonl")
    assert config.reward_funcs == [f"{tmp_path}/arms/own.py:f", "gsm8k"]
    monkeypatch.chdir(tmp_path)
    assert load_config(Path("base.toml")).train_data == "./train.jsonl"


def test_the_demo_is_real_gvpo_and_rloo_differs_only_in_the_objective():
    """With reference "previous" and one update per rollout GVPO would be RLOO."""
    demo, rival = recipe("demo"), recipe("demo/rloo")
    assert demo.objective == "gvpo"
    assert demo.reference != "previous" or updates_per_step(demo) > 1
    assert rival.objective == "rloo"
    differing = [section for section, table in demo.to_recipe().items() if table != rival.to_recipe()[section]]
    assert differing == ["objective"]


@pytest.mark.parametrize("arm", ["grpo", "tis", "gspo", "anchor"])
def test_the_offline_arms_use_the_same_samples_and_differ_in_the_objective_and_its_settings(arm):
    gvpo, rival = recipe("demo/offline"), recipe(f"demo/offline-{arm}")
    assert gvpo.sample_groups == rival.sample_groups == 1920
    differing = {section for section, table in gvpo.to_recipe().items() if table != rival.to_recipe()[section]}
    assert "objective" in differing <= {"objective", "rollout", "train"}
    assert gvpo.replace(learning_rate=rival.learning_rate).to_recipe()["train"] == rival.to_recipe()["train"]


def test_the_arms_of_the_mixture_differ_in_the_objective_and_the_routing():
    base = recipe("moe")
    arms = {name: recipe(f"moe/{name}") for name in ("grpo", "grpo-replay", "gvpo")}
    assert (base.objective, base.routing, updates_per_step(base)) == ("gspo", "watch", 2)
    assert base.model_init is not None
    assert base.model_init["num_experts"] >= 16
    assert {name: (arm.objective, arm.routing) for name, arm in arms.items()} == {
        "grpo": ("grpo", "watch"),
        "grpo-replay": ("grpo", "replay"),
        "gvpo": ("gvpo", "watch"),
    }
    for arm in arms.values():
        differing = [section for section, table in base.to_recipe().items() if table != arm.to_recipe()[section]]
        assert set(differing) <= {"objective", "train"}
        assert arm.replace(routing="watch").to_recipe()["train"] == base.to_recipe()["train"]


def test_a_cost_has_a_limit_and_no_weight():
    constrained = recipe("constrained")
    weights = dict(zip(constrained.reward_funcs, constrained.reward_weights or [], strict=True))
    assert constrained.costs is not None
    assert all(weights[name] == 0 for name in constrained.costs)


def test_the_exclusion_allows_worked_answers():
    config = recipe("exclusion").replace(warm_start_demonstrations=200)
    (item,) = config.sampling_allow
    tokenizer = fresh_tokenizer(config.vocabulary or [])
    texts = [str(answer.text) for _, answer in demonstrations(config, tokenizer, None)]
    assert len(texts) == 200
    assert all(re.fullmatch(item.removeprefix("regex:"), text) for text in texts)


@pytest.mark.parametrize("name", shipped())
def test_all_its_settings_have_an_effect(name: str):
    """Assume the data that a recipe expects from its user."""
    config = recipe(name)
    learns_from = find_objective(config.objective).learns_from
    held_out = "pairs" if learns_from != "groups" else "problems"
    given = Given(
        train="pairs" if learns_from == "pairs" and config.groups_data is None else None,
        held_out=None if config.eval_data or config.eval_groups else held_out,
        model=True,
    )
    notices = resolve(config.replace(warm_start_steps=0), given).notices
    assert not [text for text in notices if " no effect: " in text and not text.startswith("warm_start.")]
