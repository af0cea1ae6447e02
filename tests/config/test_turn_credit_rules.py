"""Settings that allow credit to turns, and the errors about others."""

from typing import Any

import pytest

from gvpo.config import Given, TrainConfig, resolve
from gvpo.config.objectives import OBJECTIVES, crediting_turns
from gvpo.errors import ConfigError

WITH = Given(model=True, environment=True)


def config(**settings: Any) -> TrainConfig:
    return TrainConfig(environment_turn_credit="to_go", **settings)


@pytest.mark.parametrize("name", crediting_turns())
def test_objectives_with_advantages_accept_it(name: str):
    assert resolve(config(objective=name), WITH).objective.token_advantages


OTHERS = sorted(name for name, spec in OBJECTIVES.items() if not spec.token_advantages and spec.learns_from == "groups")


@pytest.mark.parametrize("name", OTHERS)
def test_other_objectives_refuse_it_in_one_line(name: str):
    needed = {"constrained_grpo": {"costs": {"a": 0.1}}, "distill": {"teacher": "t"}}
    message = f"environment.turn_credit='to_go' is not for {name}, which has no advantage per turn .* grpo, dr_grpo"
    with pytest.raises(ConfigError, match=message) as caught:
        resolve(config(objective=name, **needed.get(name, {})), WITH)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "given", "message"),
    [
        ({"environment_turn_rewards": "last"}, WITH, "needs environment.turn_rewards='sum'"),
        ({"kl_in_reward": 0.1}, WITH, "set it to 0, or use objective.kl_coef"),
        ({"group_size": 1}, WITH, "set sampling.group_size to 2 or more"),
    ],
)
def test_impossible_combinations_say_what_to_set(settings: dict[str, Any], given: Given, message: str):
    with pytest.raises(ConfigError, match=message):
        resolve(config(objective="grpo", **settings), given)


def test_a_baseline_has_no_effect_and_turns_are_the_segments_of_gsspo():
    plan = resolve(config(objective="grpo", baseline="leave_one_out", environment="e.py:E"), Given(model=True))
    assert any(note.startswith("objective.baseline has no effect") for note in plan.notices)
    assert resolve(TrainConfig(objective="gsspo", environment_tools=["t.py:add"]), Given(model=True)).notices == ()
    with pytest.raises(ConfigError, match="gsspo needs segments: set"):
        resolve(TrainConfig(objective="gsspo"), Given(model=True))
