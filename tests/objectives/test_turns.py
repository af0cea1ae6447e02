"""Credit to turns: by hand, against the exact gradient of a game that the policy may end, and its degenerate cases.

The game: in turn 1 the policy stops, or plays on safely or boldly. Whoever plays on sees a coin, and chooses once more.
The rewards of turns are paid when they are earned, and a reward of the whole episode is added at its end.
"""

import itertools

import pytest
import torch

from gvpo.errors import GroupTooSmall, ShapeError
from gvpo.objectives import grpo
from gvpo.objectives.turns import turn_advantages

STOP, SAFE, BOLD = 0, 1, 2
EPISODES = [
    (STOP, None, None),
    *((first, coin, second) for first in (SAFE, BOLD) for coin in (0, 1) for second in (0, 1)),
]
COIN = (0.25, 0.75)
EARNED = {STOP: 0.3, SAFE: 0.5, BOLD: -0.4}
"""Reward of turn 1 by its action."""
AT_END = {(SAFE, 0): 0.1, (SAFE, 1): -0.2, (BOLD, 0): 2.0, (BOLD, 1): 0.4}
"""Reward of turn 2 by the first action and whether the second one is what the coin shows."""
BONUS = 0.7
"""Reward of a reward function for episodes that end with action 1."""


def paid(episode):
    first, coin, second = episode
    return [EARNED[first], *([AT_END[first, int(coin == second)]] if first != STOP else [])]


def reward(episode):
    return sum(paid(episode)) + BONUS * (episode[2] == 1)


def places(episode):
    """Return the row of the table and the column of each action of an episode."""
    first, coin, second = episode
    return [(0, first), *([(1 + 2 * (first - 1) + coin, second)] if first != STOP else [])]


PAID = torch.tensor([[*paid(each), torch.nan][:2] for each in EPISODES], dtype=torch.float64)
REWARDS = torch.tensor([reward(each) for each in EPISODES], dtype=torch.float64)
TURNS = torch.tensor([len(places(each)) for each in EPISODES])
MASK = (torch.arange(2) < TURNS[:, None]).double()
CHANCE = torch.tensor([1.0 if coin is None else COIN[coin] for _, coin, _ in EPISODES], dtype=torch.float64)
"""Probability of what the environment did in each episode."""


def logits():
    table = torch.randn(5, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    table[0] = torch.tensor([0.8, 0.3, 0.0])  # it stops in 48 % of the episodes
    table[1:, 2] = -torch.inf  # two actions in turn 2
    return table.requires_grad_()


def logprobs_of(table):
    """[9, 2] log-probs of every episode's actions, 0 after its end."""
    chosen = table.log_softmax(dim=1)
    rows = [[chosen[place] for place in places(each)] + [chosen.new_zeros(())] for each in EPISODES]
    return torch.stack([torch.stack(row[:2]) for row in rows])


def exact_gradient():
    table = logits()
    (logprobs_of(table).sum(dim=1).exp() * CHANCE * REWARDS).sum().backward()
    return table.grad


def expected_gradient(advantages_of, size):
    """Return the mean over all groups of a size of the gradient of `grpo` with token sums, ratio 1 and no std."""
    table = logits()
    logprobs = logprobs_of(table)
    chances = (logprobs.sum(dim=1).exp() * CHANCE).detach()
    members = torch.tensor(list(itertools.product(range(len(EPISODES)), repeat=size)))
    rows, group = members.flatten(), torch.arange(len(members)).repeat_interleave(size)
    advantages = advantages_of(rows, group)
    weight = chances[members].prod(dim=1).repeat_interleave(size)[:, None] * len(members)
    output = grpo(
        logprobs[rows],
        old_logprobs=logprobs[rows].detach(),
        rewards=REWARDS[rows],
        group=group,
        mask=MASK[rows],
        advantages=advantages * weight,  # a group counts as often as it is drawn
        reduction="constant",
        max_length=1,
    )
    (-output.loss).backward()
    return table.grad


def to_go(rows, group, *, scale=False):
    return turn_advantages(REWARDS[rows], PAID[rows], turns=TURNS[rows], group=group, scale_rewards=scale)


def per_turn_index(rows, group):
    """Center the return to go of each turn over the rows that have this turn, the row itself included."""
    given = PAID[rows].nan_to_num()
    returns = REWARDS[rows][:, None] - (given.cumsum(dim=1) - given)
    sums = torch.zeros(int(group.max()) + 1, 2, dtype=torch.float64).index_add(0, group, returns * MASK[rows])
    counts = torch.zeros_like(sums).index_add(0, group, MASK[rows])
    return (returns - (sums / counts.clamp(min=1))[group]) * MASK[rows]


@pytest.mark.parametrize("size", [2, 3])
def test_the_expected_gradient_is_that_of_the_expected_reward(size):
    # Also with a coin in the environment: the baseline does not depend on what a row does or meets.
    torch.testing.assert_close(expected_gradient(to_go, size), exact_gradient(), rtol=1e-12, atol=1e-12)


def error_of(advantages_of, size):
    """Return how far the expected gradient is from the exact one, as a fraction of it, after the best rescaling."""
    found, exact = expected_gradient(advantages_of, size).flatten(), exact_gradient().flatten()
    return float((found * (found @ exact) / (found @ found) - exact).norm() / exact.norm())


@pytest.mark.parametrize("size", [2, 3])
def test_a_mean_per_turn_index_is_biased_whatever_the_scale(size):
    assert error_of(per_turn_index, size) > 0.1
    assert error_of(to_go, size) < 1e-12


def test_the_scale_of_a_group_is_a_heuristic():
    # The std of a group depends on all of its rows: GRPO has the same bias, also on single answers.
    assert error_of(lambda rows, group: to_go(rows, group, scale=True), 2) > 0.1


def test_hand_computed_values():
    # Group 5: R = 3 (1, then 1, then 1 more at the end), R = 1 in one turn, R = 0 in two turns that pay 2 and -2.
    rewards = torch.tensor([3.0, 9.0, 1.0, 0.0, 9.0])
    given = torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, torch.nan], [2.0, -2.0], [0.0, 0.0]])
    rest = {"turns": torch.tensor([2, 1, 1, 2, 1]), "group": torch.tensor([5, 1, 5, 5, 1])}
    found = turn_advantages(rewards, given, **rest)
    expected = [[3 - 0.5, 2 - (0 - 2) / 2], [0, 0], [1 - 1.5, 0], [0 - 2, -2 - (2 + 0) / 2], [0, 0]]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    std = torch.tensor([3.0, 1.0, 0.0]).double().std() + 1e-4
    scaled = turn_advantages(rewards, given, **rest, scale_rewards=True)
    torch.testing.assert_close(scaled[[0, 2, 3]], torch.tensor(expected)[[0, 2, 3]].double() / std)
    assert (scaled[[1, 4]] == 0).all()


def test_one_turn_per_row_is_a_leave_one_out_baseline_and_equal_rewards_give_exactly_0():
    rewards, one = torch.tensor([0.1, 0.7, 0.4]), {"turns": torch.ones(3).long(), "group": torch.zeros(3).long()}
    found = turn_advantages(rewards, torch.rand(3, 4), **one)[:, 0]
    torch.testing.assert_close(found, 1.5 * (rewards - rewards.mean()).double())
    assert (turn_advantages(rewards[:1].expand(3) + 1e9, torch.rand(3, 1), **one) == 0).all()


def test_groups_of_one_and_other_shapes_are_refused():
    two = {"turns": torch.tensor([1, 1]), "group": torch.tensor([0, 1])}
    with pytest.raises(GroupTooSmall, match="turn_advantages compares the rows of a group, and group 0 has one"):
        turn_advantages(torch.zeros(2), torch.zeros(2, 1), **two)
    with pytest.raises(ShapeError, match=r"shapes \(2,\), \(2,\) and \(2,\); expected \[B\], \[B, M\] and \[B\]"):
        turn_advantages(torch.zeros(2), torch.zeros(2), **two)
