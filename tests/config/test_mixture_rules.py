"""Rules of groups with given rows (rollout.live, history, logged, expert)."""

from typing import Any

import pytest

from gvpo.config import TrainConfig, resolve
from gvpo.config.plan import Given
from gvpo.errors import ConfigError

BASE: dict[str, Any] = {"model_path": "models/a", "train_data": "a.jsonl", "reward_funcs": ["exact"], "group_size": 8}
LOGGED = {"rollout_logged": 2, "rollout_logged_path": "b.jsonl"}
EXPERT = {"rollout_expert": 1, "rollout_expert_url": "http://localhost:1/v1", "rollout_expert_model": "big"}


@pytest.mark.parametrize(
    "settings",
    [
        {"rollout_history": 4},
        {"rollout_live": 4, "rollout_history": 4},
        {"rollout_live": 8},
        {"rollout_history": 8},
        {"rollout_live": 3, "rollout_history": 2, **LOGGED, **EXPERT},
        {**LOGGED, "objective": "grpo"},
        {"rollout_history": 4, "objective": "grpo"},
    ],
)
def test_groups_whose_rows_add_up_are_accepted(settings: dict[str, Any]):
    resolve(TrainConfig(**{**BASE, **settings}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rollout_live": 4}, r"rollout\.live are 4 completions per group, but sampling\.group_size is 8; make them"),
        ({"rollout_live": 4, "rollout_history": 2}, r"rollout\.live \+ rollout\.history are 6 completions per group"),
        ({"rollout_history": 9}, r"rollout\.history are 9 completions per group, but sampling\.group_size is 8; raise"),
        ({"rollout_logged": 2}, r"rollout\.logged needs rollout\.logged_path, which is not set"),
        ({**EXPERT, "rollout_expert_url": None}, r"rollout\.expert needs rollout\.expert_url, which is not set"),
        ({**EXPERT, "rollout_expert_model": None}, r"rollout\.expert needs rollout\.expert_model, which is not set"),
        (
            {**EXPERT, "rollout_expert_url": "https://me:secret@host/v1"},
            r"rollout\.expert_url contains a password, which would be written to config\.json; name host alone",
        ),
        ({**EXPERT, "objective": "grpo"}, "grpo needs the log-probs of the policy that .* remove rollout.expert"),
        (
            {"rollout_history": 4, "train_data": None, "groups_data": "g.jsonl"},
            r"rollout\.history is for groups that are sampled in each step",
        ),
        ({**LOGGED, "sample_groups": 64}, r"rollout\.logged is for groups that are sampled in each step"),
        (
            {"rollout_history": 4, **EXPERT, "reference": "previous"},
            r"previous' is the policy .* not sample the rows of rollout\.history \+ rollout\.expert; set it",
        ),
        ({"rollout_history": 4, "reference": "every:1"}, r"every:1' is the policy at the start of the step"),
        (
            {**LOGGED, "objective": "constrained_grpo", "costs": {"exact": 0.1}},
            r"objective\.costs needs rates of the policy's own samples, which the rows of rollout\.logged would change",
        ),
    ],
)  # fmt: skip
def test_impossible_groups_are_refused_in_one_line(settings: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message) as error:
        resolve(TrainConfig(**{**BASE, **settings}))
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)


def test_the_reference_of_mixed_groups_is_the_initial_policy():
    several = {"passes": 2, "beta": None}
    assert resolve(TrainConfig(**BASE, **several)).settings.reference != "initial"
    assert resolve(TrainConfig(**BASE, **several, rollout_history=4)).settings.reference == "initial"


@pytest.mark.parametrize(
    ("settings", "notice"),
    [
        ({"rollout_live": 8, "sample_groups": 64}, "rollout.live has no effect: no group is sampled in a step"),
        ({"rollout_logged_path": "b.jsonl"}, "rollout.logged_path has no effect: rollout.logged is 0"),
        (
            {"rollout_expert_model": "big", "rollout_expert_url": "http://a/v1"},
            "rollout.expert_url, rollout.expert_model have no effect: rollout.expert is 0",
        ),
        (
            {"rollout_max_age": 3},
            "rollout.max_age has no effect: no completion is kept (rollout.history, rollout.reuse)",
        ),
    ],
)
def test_companions_of_sources_that_are_off_have_no_effect(settings: dict[str, Any], notice: str):
    assert notice in resolve(TrainConfig(**BASE, **settings)).notices
    assert not any("rollout" in each for each in resolve(TrainConfig(**BASE, **LOGGED, **EXPERT)).notices)


def test_groups_without_a_live_row_are_doubtful():
    (found,) = (n for n in resolve(TrainConfig(**BASE, rollout_history=8)).notices if "rollout.live" in n)
    assert "no completion" in found


@pytest.mark.parametrize(
    ("settings", "notice"),
    [
        ({"rollout_staleness": 5}, "not below train.steps=5, so the starting policy samples all groups"),
        ({"rollout_reuse": 6}, "more than train.steps=5, so no group is trained on that often"),
    ],
)
def test_groups_older_than_the_run_are_doubtful(settings: dict[str, int], notice: str):
    less = {name: value - 1 for name, value in settings.items()}
    assert any(notice in each for each in resolve(TrainConfig(**BASE, steps=5, **settings)).notices)
    assert not any("train.steps" in each for each in resolve(TrainConfig(**BASE, steps=5, **less)).notices)


def test_a_given_objective_may_weigh_old_rows_itself():
    """It then names `sampler_logprobs`, so that the trainer's old log-probs are not the only ones that it sees."""

    def weighing(logprobs: Any, *, old_logprobs: Any, sampler_logprobs: Any, rewards: Any, group: Any, mask: Any): ...

    def plain(logprobs: Any, *, old_logprobs: Any, rewards: Any, group: Any, mask: Any): ...

    stale = TrainConfig(**BASE, rollout_staleness=1, rollout_old_logprobs="trainer")
    assert resolve(stale, Given(objective=weighing)).settings.rollout_old_logprobs == "trainer"
    with pytest.raises(ConfigError, match=r"old_logprobs='trainer' needs .* which python:plain does not have"):
        resolve(stale, Given(objective=plain))
