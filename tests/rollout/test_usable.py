"""Selection of the rows of a rollout that can be trained on."""

import pytest

from gvpo.rollout.usable import usable
from gvpo.types import FINISH_REASONS, Completion, Group


def group(*rewards: float | None) -> Group:
    return Group([1], [Completion([index], reward) for index, reward in enumerate(rewards)], id="g")


def test_rows_without_a_reward_and_groups_left_too_small_are_dropped():
    kept = usable(
        [group(1.0, None, 0.0), group(None, 1.0), group(0.0, 0.0), group(None, None)], rewarded=True, at_least=2
    )
    assert [(entry.index, entry.rows) for entry in kept] == [(0, (0, 2)), (2, (0, 1))]
    assert [row.tokens for row in kept[0].group.completions] == [[0], [2]]


def test_an_objective_that_compares_nothing_keeps_groups_of_one():
    assert [entry.rows for entry in usable([group(None, 1.0)], rewarded=True, at_least=1)] == [(1,)]


def test_without_rewards_every_row_is_used():
    assert [entry.rows for entry in usable([group(None)], rewarded=False, at_least=1)] == [(0,)]


@pytest.mark.parametrize("rewarded", [True, False])
def test_an_aborted_row_is_never_trained_on_regardless_of_its_reward(rewarded: bool):
    rows = [Completion([place], 1.0, finish_reason=reason) for place, reason in enumerate(FINISH_REASONS)]
    (kept,) = usable([Group([1], rows)], rewarded=rewarded, at_least=1)
    assert [row.finish_reason for row in kept.group.completions] == [
        "stop",
        "length",
        "turns",
        "context",
        "environment",
    ]
    aborted = Group([1], [rows[-1], rows[-1], rows[0]])
    assert usable([aborted], rewarded=rewarded, at_least=2) == []
