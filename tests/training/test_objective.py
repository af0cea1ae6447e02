"""Building an objective from settings."""

import pytest

from gvpo.config import OBJECTIVES
from gvpo.training.objective import build_objective
from tests.training.toy import config

NEEDED = {
    "gsspo": {"segment_at": "1"},
    "constrained_grpo": {"costs": {"share": 0.1}},
    "distill": {"teacher": "somewhere"},
}
"""Settings that an objective needs."""


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_every_objective_builds_from_its_name_and_the_settings_it_needs(name: str):
    built = build_objective(config(objective=name, **NEEDED.get(name, {})))
    assert built.name == name
    assert built.spec.min_group == (1 if name in ("sft", "poft") else 2)
    with_reference = ("gvpo", "regression", "pmd_mean", "dpo", "epa")
    assert built.needs_reference == (name in with_reference)
    assert built.needs_old == (name not in (*with_reference, "distill", "sft", "poft"))


def test_keywords_are_bound_and_omitted_ones_keep_the_objectives_default():
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


@pytest.mark.parametrize("name", ["sft", "poft"])
def test_written_answers_are_groups_of_one(name: str):
    assert build_objective(config(objective=name, group_size=1)).spec.min_group == 1
