"""Rules of the section [environment]."""

import pytest

from gvpo.config import Given, TrainConfig, resolve
from gvpo.errors import ConfigError

GIVEN = Given(train="problems", rewards=True, model=True)
PASSED = Given(train="problems", model=True, environment=True)


def config(**settings):
    return TrainConfig(**{"environment": "envs.py:Guess", **settings})


@pytest.mark.parametrize(
    ("settings", "given", "message"),
    [
        ({"environment_tools": ["a.py:add"]}, GIVEN, "environment.name and environment.tools both answer the policy"),
        (
            {"environment": None, "environment_tools": ["a.py:add"]},
            PASSED,
            "the environment that is passed and environment.tools both",
        ),
        ({"groups_data": "a.jsonl"}, Given(model=True), "this run trains on logged groups"),
        ({"sample_groups": 4}, GIVEN, r"this run trains on groups that it samples once \(data.sample_groups\)"),
        ({"objective": "sft"}, GIVEN, "this run trains on written answers"),
        ({"objective": "dpo", "groups_data": "a.jsonl"}, Given(model=True), "this run trains on logged groups"),
        ({"rollout_history": 2}, GIVEN, "rollout.history would add completions that no environment has answered"),
        (
            {"rollout_logged": 2, "rollout_logged_path": "a", "rollout_history": 1},
            GIVEN,
            r"rollout.history \+ rollout.logged would add",
        ),
        (
            {"rollout_expert": 2, "rollout_expert_url": "http://127.0.0.1:1", "rollout_expert_model": "m"},
            GIVEN,
            "rollout.expert would add",
        ),
        ({"environment_max_turns": 9, "max_tokens": 8}, GIVEN, "max_turns=9 does not fit into sampling.max_tokens=8"),
    ],
)
def test_impossible_settings_have_a_reason(settings, given, message):
    with pytest.raises(ConfigError, match=message):
        resolve(config(**settings), given)


@pytest.mark.parametrize(
    "settings",
    [
        {"rollout_staleness": 1},
        {"rollout_reuse": 2},
        {"rollout_asynchronous": True},
        {"rollout_curriculum": "accuracy"},
        {"rollout_dead_groups": "replace"},
        {"environment": None, "environment_tools": ["a.py:add"]},
    ],
)
def test_environments_work_with_every_live_source(settings):
    assert resolve(config(**settings), GIVEN).has_environment


def test_settings_of_no_environment_have_no_effect():
    plan = resolve(TrainConfig(environment_max_turns=3, environment_timeout=5.0), GIVEN)
    assert not plan.has_environment
    found = [text for text in plan.notices if "environment." in text]
    assert found == [
        "environment.max_turns, environment.timeout have no effect: there is no environment (environment.name, "
        "environment.tools)"
    ]


def test_a_passed_environment_replaces_the_named_one():
    plan = resolve(config(), PASSED)
    assert "environment.name has no effect: the environment that is passed is used instead" in plan.notices


def test_a_limit_of_a_turn_below_that_of_an_episode_has_an_effect():
    def notices(tokens):
        return [
            text for text in resolve(config(environment_turn_tokens=tokens), GIVEN).notices if "turn_tokens" in text
        ]

    assert notices(64) == []
    assert len(notices(512)) == 1


@pytest.mark.parametrize(
    ("settings", "given", "evaluates"),
    [
        ({}, Given(train="problems", held_out="problems", model=True), True),
        ({"environment": None}, Given(train="problems", held_out="problems", model=True, environment=True), True),
        ({"environment": None}, Given(train="problems", held_out="problems", model=True), False),
        (
            {"environment": None, "environment_tools": ["a.py:add"]},
            Given(train="problems", held_out="problems", model=True),
            False,
        ),
        ({}, Given(train="problems", model=True), False),
        ({"eval_problems": 0}, Given(train="problems", held_out="problems", model=True), False),
    ],
)
def test_an_environment_judges_held_out_problems_but_tools_do_not(settings, given, evaluates):
    assert resolve(config(**settings), given).evaluates is evaluates
