"""The reward of an episode from those of its turns."""

import pytest

from gvpo.environments import EnvironmentSpec
from gvpo.environments.reward import EnvironmentReward
from gvpo.types import EpisodeTurn, Verdict


def turn(reward=None, outcome="ok", stop=2):
    return EpisodeTurn(0, stop, stop, reward=reward, outcome=outcome, detail="gone")


def verdict(*turns, of="sum", **spec):
    (found,) = EnvironmentReward(EnvironmentSpec("game", object, **{"worst": -1.0, **spec}), of).verdicts([turns])
    return found


@pytest.mark.parametrize(
    ("rewards", "total", "last"),
    [
        ([0.25, 0.5], 0.75, 0.5),
        ([0.25, None, 0.5, None], 0.75, 0.5),
        ([0.0], 0.0, 0.0),
        ([2.0, -3.0], -1.0, -3.0),
        ([None, None], -1.0, -1.0),  # no reward at all: the worst one, so that never finishing does not pay
    ],
)
def test_the_sum_or_the_last_of_the_rewards_of_turns(rewards, total, last):
    turns = [turn(reward) for reward in rewards]
    assert verdict(*turns) == Verdict(total)
    assert verdict(*turns, of="last") == Verdict(last)


def test_an_environment_that_fails_gives_the_worst_reward_or_none():
    assert verdict(turn(5.0), turn(outcome="lost")) == Verdict(-1.0)
    assert verdict(turn(5.0), turn(outcome="lost"), blames="environment") == Verdict(None, reason="lost: gone")
    assert verdict(turn(outcome="lost", stop=0)) == Verdict(None, reason="lost: gone")  # it never began


@pytest.mark.parametrize("outcome", ["timeout", "died"])
def test_a_last_turn_without_an_answer_cannot_avoid_a_bad_reward(outcome):
    assert verdict(turn(5.0), turn(outcome=outcome)) == Verdict(-1.0)
    assert verdict(turn(5.0), turn(outcome=outcome), blames="environment").reward is None
    assert verdict(turn(outcome=outcome), turn(5.0), blames="environment") == Verdict(5.0)


@pytest.mark.parametrize("outcome", ["timeout", "died"])
@pytest.mark.parametrize("of", ["sum", "last"])
def test_an_earlier_turn_without_an_answer_costs_the_episode_its_reward(outcome, of):
    assert verdict(turn(outcome=outcome), turn(5.0), of=of) == Verdict(-1.0)
    assert verdict(turn(-0.5), turn(-0.75), turn(outcome=outcome), turn(-0.25), of=of) == Verdict(-1.5)


def test_an_episode_that_is_gone_because_of_another_one_has_no_reward():
    assert verdict(turn(5.0), turn(outcome="gone")) == Verdict(None, reason="gone: gone")


def test_an_environment_without_rewards_abstains():
    assert verdict(turn(5.0), pays=False) == Verdict(None)
    assert verdict(turn(outcome="timeout"), turn(5.0), pays=False) == Verdict(None)
    assert verdict(turn(outcome="lost"), pays=False) == Verdict(None)


def test_episodes_that_failed_have_no_reward_from_functions_either():
    assert verdict(turn(outcome="lost", stop=0), pays=False) == Verdict(None, reason="lost: gone")
    assert verdict(turn(outcome="gone"), pays=False) == Verdict(None, reason="gone: gone")
    assert verdict(turn(outcome="timeout"), pays=False, blames="environment") == Verdict(None, reason="timeout: gone")
