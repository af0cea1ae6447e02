"""Dead groups by reward and by accuracy."""

import pytest

from gvpo.rollout.collect import Rollout
from gvpo.rollout.dynamic.dead import DeadGroups
from gvpo.types import Completion, Group, Problem, Verdict


def judged(rewards, rights):
    rows = [Completion([1], reward) for reward in rewards]
    return Group([1], rows), [Verdict(reward, {"right": part}) for reward, part in zip(rewards, rights, strict=True)]


@pytest.mark.parametrize(
    ("rewards", "rights", "by_reward", "by_accuracy"),
    [
        ([1.0, 0.0], [1.0, 0.0], False, False),
        ([1.0, 1.0], [1.0, 1.0], True, True),
        ([0.9, 1.0], [1.0, 1.0], False, True),  # a penalty for length: DAPO judges accuracy
        ([0.5, 0.5], [1.0, 0.0], True, False),
        ([1.0, None], [1.0, 0.0], True, True),  # one reward alone has no difference
        ([None, None], [None, None], True, True),
    ],
)
def test_a_group_is_dead_by_its_rewards_or_by_its_accuracy(rewards, rights, by_reward, by_accuracy):
    group, verdicts = judged(rewards, rights)
    assert DeadGroups("reward", "right").is_dead(group, verdicts) == by_reward
    assert DeadGroups("accuracy", "right").is_dead(group, verdicts) == by_accuracy


def test_the_dead_groups_of_a_rollout_are_found_by_their_positions():
    made = [judged([1.0, 0.0], [1, 0]), judged([1.0, 1.0], [1, 1]), judged([0.0, 0.0], [0, 0])]
    rollout = Rollout([g for g, _ in made], [v for _, v in made], [Problem("p", "p")] * 3)
    assert DeadGroups("reward", "right").of(rollout) == {1, 2}
