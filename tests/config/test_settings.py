"""Settings: recipes in sections, the flat TrainConfig, layers, and errors that suggest the nearest key."""

import json

import pytest

from gvpo.config import FIELDS, SECTIONS, TrainConfig
from gvpo.config.recipe import dump_config, flatten, layer, load_config, parse_overrides, read_recipe, restore_config
from gvpo.errors import ConfigError


def test_sections_and_flat_fields_map_one_to_one():
    assert len(set(FIELDS.values())) == len(FIELDS)
    assert set(FIELDS.values()) == set(TrainConfig.model_fields)
    assert {dotted.partition(".")[0] for dotted in FIELDS} == set(SECTIONS)


@pytest.mark.parametrize(
    "dotted",
    [
        "run.dir",
        "run.seed",
        "train.steps",
        "checkpoint.every",
        "objective.name",
        "objective.beta",
        "sampling.group_size",
    ],
)
def test_keys_that_other_code_uses(dotted):
    assert dotted in FIELDS


def test_every_setting_survives_the_run_directory():
    config = TrainConfig(
        run_dir="runs/a", beta=0.2, reference="every:5", model_init={"architecture": "qwen2"}, reward_weights=[1.0]
    )
    assert restore_config(dump_config(config)) == config
    assert json.loads(dump_config(config))["objective"]["reference"] == "every:5"


def test_overrides_are_toml_values_or_text():
    pairs = ["objective.beta=0.2", "run.dir=runs/a b", "eval.greedy=false", 'rewards.funcs=["gsm8k"]']
    assert parse_overrides(pairs) == {
        "beta": 0.2,
        "run_dir": "runs/a b",
        "eval_greedy": False,
        "reward_funcs": ["gsm8k"],
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"betta": 1}, "unknown setting 'betta'; did you mean 'beta'"),
        ({"beta": "much"}, r"objective.beta='much'.*valid number"),
        ({"beta": -1}, r"objective.beta=-1.*greater than 0"),
        ({"reference": "every:0"}, r"objective.reference='every:0'"),
        ({"temperature": 0}, r"sampling.temperature=0"),
    ],
)
def test_impossible_settings_name_the_key(settings, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**settings)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"objective": {"bata": 1}}, "'objective.bata'; did you mean 'objective.beta'"),
        ({"objectiv": {"beta": 1}}, "'objectiv'; did you mean 'objective'"),
        ({"steps": 3}, "unknown setting 'steps'"),
    ],
)
def test_error_about_an_unknown_key_suggests_the_nearest(recipe, message):
    with pytest.raises(ConfigError, match=message):
        flatten(recipe)


def test_error_about_an_override_without_a_value_shows_an_example():
    with pytest.raises(ConfigError, match=r"section\.key=value"):
        parse_overrides(["objective.beta"])


def test_a_recipe_extends_another(tmp_path):
    (tmp_path / "base.toml").write_text("[train]\nsteps = 7\nlearning_rate = 0.1\n")
    (tmp_path / "arm.toml").write_text('extends = "base.toml"\n[train]\nsteps = 9\n')
    config = load_config(tmp_path / "arm.toml", ["run.seed=3"])
    assert (config.steps, config.learning_rate, config.seed) == (9, 0.1, 3)


def test_a_number_of_steps_replaces_a_number_of_epochs_and_vice_versa():
    assert layer({"steps": 3, "seed": 1}, {"epochs": 2}) == {"epochs": 2, "seed": 1}
    assert layer({"epochs": 2, "seed": 1}, {"steps": 3}) == {"steps": 3, "seed": 1}
    assert layer({"epochs": 2}, {"seed": 1}) == {"epochs": 2, "seed": 1}


def test_another_objective_drops_the_keywords_of_the_first():
    below = {"objective": "gvpo", "beta": 0.2, "reference": "initial", "steps": 3}
    assert layer(below, {"objective": "rloo"}) == {"objective": "rloo", "reference": "initial", "steps": 3}
    assert layer(below, {"objective": "gvpo"})["beta"] == 0.2
    assert layer(below, {"steps": 4})["beta"] == 0.2
    assert layer(below, {"objective": "rloo", "clip_low": 0.1})["clip_low"] == 0.1


def test_errors_in_a_recipe_name_the_file(tmp_path):
    path = tmp_path / "recipe.toml"
    with pytest.raises(ConfigError, match=r"cannot read recipe .*recipe.toml"):
        read_recipe(path)
    path.write_text("[train\n")
    with pytest.raises(ConfigError, match="not valid TOML"):
        read_recipe(path)
    path.write_text("[train]\nstep = 3\n")
    with pytest.raises(ConfigError, match=r"recipe.toml: .*'train.step'; did you mean 'train.steps'"):
        read_recipe(path)


def test_replace_validates_again():
    config = TrainConfig(prompts_per_step=4)
    assert config.replace(steps=3).steps == 3
    with pytest.raises(ConfigError):
        config.replace(groups_per_update=0)


def test_a_single_value_for_a_list_is_a_list_of_one():
    pairs = ["rewards.funcs=math_answer", "rewards.weights=0.5", "sampling.allow=Hangul, digits"]
    found = parse_overrides(pairs)
    assert found == {"reward_funcs": ["math_answer"], "reward_weights": [0.5], "sampling_allow": ["Hangul, digits"]}
    assert parse_overrides(["rewards.weights=[1, 0.5]"]) == {"reward_weights": [1, 0.5]}
    assert parse_overrides(["data.train=a"]) == {"train_data": "a"}


def test_a_key_inside_a_table_sets_that_key_only(tmp_path):
    pairs = [
        "rewards.options.length_penalty.limit=9",
        "rewards.options.length_penalty.margin=1",
        "data.task_options.n=2",
    ]
    assert parse_overrides(pairs) == {
        "reward_options": {"length_penalty": {"limit": 9, "margin": 1}},
        "task_options": {"n": 2},
    }
    path = tmp_path / "recipe.toml"
    path.write_text('[rewards]\nfuncs = ["length_penalty"]\n[rewards.options.length_penalty]\nlimit = 5\nmargin = 4\n')
    assert load_config(path, pairs[:1]).reward_options == {"length_penalty": {"limit": 9, "margin": 4}}
    assert load_config(path).reward_options == {"length_penalty": {"limit": 5, "margin": 4}}


@pytest.mark.parametrize("pair", ["rewards.funcs.first=a", "rewards.options.=1", "rewards.optoins.a.b=1", "data=1"])
def test_a_key_inside_a_setting_that_is_not_a_table_is_unknown(pair):
    with pytest.raises(ConfigError, match="unknown setting"):
        parse_overrides([pair])
