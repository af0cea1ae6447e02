"""From settings to an objective."""

import warnings

import pytest

from gvpo.config import OBJECTIVES
from gvpo.errors import ConfigError, GvpoWarning
from gvpo.training.objective import build_objective, updates_per_step
from tests.training.toy import config

NEEDED = {"gsspo": {"segment_at": "1"}, "constrained_grpo": {"costs": {"share": 0.1}}}
"""Without these an objective has nothing to work on."""


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_every_objective_builds_from_its_name_and_what_it_needs(name: str):
    built = build_objective(config(objective=name, **NEEDED.get(name, {})))
    assert built.name == name
    assert built.spec.min_group == (1 if name in ("sft", "poft") else 2)
    assert built.needs_reference == (name in ("gvpo", "dpo", "epa"))
    assert built.needs_old == (name not in ("gvpo", "dpo", "epa", "sft", "poft"))


def test_keywords_are_bound_and_those_left_out_keep_the_objectives_default():
    built = build_objective(config(beta=0.25, variance_weight=0.5))
    assert built.function.keywords == {"beta": 0.25, "variance_weight": 0.5}
    assert built.beta == 0.25
    assert build_objective(config()).beta == 0.1


def test_grpo_with_a_kl_term_needs_the_reference():
    assert build_objective(config(objective="grpo", kl_coef=0.1)).needs_reference
    assert not build_objective(config(objective="grpo", kl_coef=0.0)).needs_reference


def test_a_kl_in_the_reward_needs_the_reference():
    assert build_objective(config(objective="rloo", kl_in_reward=0.1)).needs_reference


def test_a_constant_reduction_divides_by_the_maximum_length_of_sampling():
    built = build_objective(config(objective="dr_grpo", max_tokens=7))
    assert built.function.keywords["max_length"] == 7
    assert build_objective(config(objective="dr_grpo", max_length=5)).function.keywords["max_length"] == 5
    assert "max_length" not in build_objective(config(objective="rloo")).function.keywords  # its preset's own: 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "gpo"}, r"objective.name='gpo' does not exist; choose one of .*gvpo"),
        ({"objective": "rloo", "beta": 0.1}, "objective.beta is not a keyword of rloo; it takes"),
        ({"objective": "sft", "clip_low": 0.1}, "objective.clip_low is not a keyword of sft; it takes reduction"),
        ({"objective": "gspo", "group_size": 1}, "gspo compares .* set sampling.group_size to 2 or more"),
        ({"objective": "sft", "kl_in_reward": 0.1}, "kl_in_reward changes rewards and sft has none"),
        ({"sampling_ban": ["digitz"]}, "no characters called 'digitz'; did you mean 'digits'"),
        ({"objective": "dpo", "weak_weight": 0.5}, "objective.weak_weight is not a keyword of dpo; it takes beta"),
    ],
)
def test_what_cannot_work_is_an_error(settings: dict[str, object], message: str):
    with pytest.raises(ConfigError, match=message):
        build_objective(config(**settings))


@pytest.mark.parametrize("name", ["sft", "poft"])
def test_written_answers_are_groups_of_one(name: str):
    assert build_objective(config(objective=name, group_size=1)).spec.min_group == 1


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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reference": "previous"}, "beta times RLOO"),
        ({"objective": "rloo", "kl_in_reward": 0.1, "reference": "previous"}, "changes nothing"),
        ({"top_p": 0.9}, "top_p=0.9 never draws some tokens"),
        ({"sampling_allow": ["digits"]}, "an exclusion .* never draws some tokens"),
    ],
)
def test_settings_that_rarely_mean_what_they_say_warn(settings: dict[str, object], message: str):
    with pytest.warns(GvpoWarning, match=message):
        build_objective(config(**settings))


@pytest.mark.parametrize(
    "settings", [{"reference": "previous", "groups_per_update": 2}, {"objective": "sft", "top_k": 5}, {}]
)
def test_and_others_do_not(settings: dict[str, object]):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_objective(config(**settings))
