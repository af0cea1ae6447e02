"""The table of defaults of reference and beta: which row a run gets, what it prints, and what a resumed run keeps."""

from typing import Any

import pytest

from gvpo.config import Given, TrainConfig, resolve

MODEL, PAIRS = Given(model=True), Given(model=True, train="pairs")
SEVERAL = [{"passes": 2}, {"groups_per_update": 8}, {"groups_per_update": 15}]
"""Settings with several updates per rollout of 16 groups."""


def resolved(settings: dict[str, Any], given: Given = MODEL) -> tuple[str, float | None]:
    plan = resolve(TrainConfig(**settings), given)
    return plan.settings.reference, plan.settings.beta


@pytest.mark.parametrize(
    ("settings", "given", "expected"),
    [
        ({}, MODEL, ("initial", 0.1)),
        ({"groups_per_update": 16}, MODEL, ("initial", 0.1)),
        *((several, MODEL, ("sampler", 0.3)) for several in SEVERAL),
        ({"rollout_staleness": 4}, MODEL, ("sampler", 0.3)),
        ({"rollout_reuse": 2}, MODEL, ("sampler", 0.3)),
        ({"rollout_reuse": 2, "passes": 2}, MODEL, ("sampler", 0.3)),
        ({"rollout_history": 2}, MODEL, ("initial", 0.1)),
        ({"rollout_history": 2, "rollout_reuse": 2, "passes": 2}, MODEL, ("initial", 0.1)),
        ({"groups_data": "g.jsonl"}, MODEL, ("initial", 0.2)),
        ({"groups_data": "g.jsonl", "passes": 3}, MODEL, ("initial", 0.2)),
        ({"sample_groups": 40}, MODEL, ("initial", 0.2)),
        ({}, PAIRS, ("initial", 0.2)),
    ],
)
def test_the_regime_decides_gvpos_reference_and_beta(
    settings: dict[str, Any], given: Given, expected: tuple[str, float]
):
    assert resolved(settings, given) == expected


@pytest.mark.parametrize("settings", [{}, {"passes": 2}, {"groups_data": "g.jsonl"}])
@pytest.mark.parametrize("objective", ["regression", "pmd_mean"])
def test_gvpos_family_has_its_defaults_of_reference_and_beta(settings: dict[str, Any], objective: str):
    assert resolved({**settings, "objective": objective}) == resolved(settings)


@pytest.mark.parametrize(
    ("settings", "given", "expected"),
    [
        ({"objective": "dpo"}, PAIRS, ("initial", 0.1)),
        ({"objective": "epa"}, PAIRS, ("initial", 0.1)),
        ({"objective": "grpo", "kl_coef": 0.1, "passes": 4}, MODEL, ("initial", None)),
        ({"objective": "rloo", "kl_in_reward": 0.1}, MODEL, ("initial", None)),
        ({"objective": "rloo", "kl_in_reward": 0.1, "passes": 4}, MODEL, ("initial", None)),
        ({"kl_in_reward": 0.1, "passes": 4}, MODEL, ("initial", 0.3)),  # relative to "previous" the penalty is 0
    ],
)
def test_other_objectives_have_their_own_defaults(
    settings: dict[str, Any], given: Given, expected: tuple[str, float | None]
):
    assert resolved(settings, given) == expected
    assert not [notice for notice in resolve(TrainConfig(**settings), given).notices if "changes nothing" in notice]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"passes": 2, "beta": 0.7}, ("sampler", 0.7)),
        ({"passes": 2, "reference": "every:3"}, ("every:3", 0.3)),
        ({"reference": "previous", "beta": 0.1}, ("previous", 0.1)),
    ],
)
def test_what_is_set_is_kept(settings: dict[str, Any], expected: tuple[str, float]):
    assert resolved(settings) == expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, None),
        ({"passes": 4}, None),
        ({"rollout_history": 2}, None),
        ({"sample_groups": 9}, None),
        ({"rollout_staleness": 4}, 0.1),
        ({"rollout_reuse": 2}, 0.1),
        ({"rollout_staleness": 4, "anchor": 0.0}, 0.0),
        ({"rollout_staleness": 4, "reference": "initial"}, None),  # there an anchor would move the optimum
        ({"rollout_staleness": 4, "kl_in_reward": 0.1}, None),
        ({"rollout_staleness": 4, "objective": "regression"}, None),
    ],
)
def test_old_groups_have_an_anchor_at_the_policy_that_sampled_them(settings: dict[str, Any], expected: float | None):
    assert resolve(TrainConfig(**settings), MODEL).settings.anchor == expected


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({}, "reference initial, beta 0.1 (one update per rollout; `gvpo docs objectives`)"),
        ({"passes": 2}, "reference sampler, beta 0.3 (several updates per rollout; `gvpo docs objectives`)"),
        (
            {"rollout_staleness": 2},
            "reference sampler, beta 0.3, anchor 0.1 (stale or reused groups; `gvpo docs objectives`)",
        ),
        ({"beta": 0.5, "sample_groups": 9}, "reference initial (logged or frozen groups; `gvpo docs objectives`)"),
        ({"reference": "initial"}, "beta 0.1 (one update per rollout; `gvpo docs objectives`)"),
        ({"reference": "initial", "beta": 0.1}, None),
        ({"objective": "rloo"}, None),
        (
            {"objective": "grpo", "kl_coef": 0.1},
            "reference initial (one update per rollout; `gvpo docs objectives`)",
        ),
    ],
)
def test_one_line_introduces_what_was_resolved(settings: dict[str, Any], line: str | None):
    assert resolve(TrainConfig(**settings), MODEL).introduction == line


@pytest.mark.parametrize("settings", [{"passes": 5}, {"passes": 3, "groups_per_update": 8}])
def test_many_updates_on_a_rollout_with_a_small_beta_are_doubted(settings: dict[str, Any]):
    (notice,) = resolve(TrainConfig(beta=0.1, **settings), MODEL).notices
    assert "updates on the same rollout with objective.beta=0.1 often make all log-probs fall" in notice
    assert not resolve(TrainConfig(**settings), MODEL).notices
    assert not resolve(TrainConfig(beta=0.1, passes=4), MODEL).notices


@pytest.mark.parametrize("reference", ["previous", "sampler"])
def test_references_that_are_the_policy_itself_are_rloo_with_one_update(reference: str):
    (notice,) = resolve(TrainConfig(reference=reference), MODEL).notices
    assert f"GVPO with objective.reference={reference!r} and one update per rollout is beta times RLOO" in notice


def test_gvpo_without_settings_is_not_rloo():
    assert resolve(TrainConfig(), MODEL).notices == ()


def test_a_resumed_run_keeps_what_it_resolved_and_nothing_else():
    plan = resolve(TrainConfig(seed=3, beta=0.4), MODEL)
    kept = plan.started_as(TrainConfig(seed=5, beta=0.2, reference="previous")).settings
    assert (kept.seed, kept.beta, kept.reference) == (3, 0.4, "previous")
