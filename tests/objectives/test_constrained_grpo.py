"""Constrained GRPO: advantages by hand, its limits, the multipliers' ascent, and that limits are met."""

import functools
import math

import pytest
import torch

from gvpo.errors import GroupTooSmall, ObjectiveError, ShapeError
from gvpo.objectives import constrained_grpo, grpo
from gvpo.objectives.constrained_grpo import updated_multipliers
from tests.objectives.batches import gradient, grpo_inputs, make_batch, rows_of
from tests.objectives.tabular import COMPLETIONS, MASK, TabularPolicy


def standardised(values, group):
    """Compute it per row, in a loop."""
    found = torch.zeros_like(values)
    for rows in rows_of(group):
        found[rows] = (values[rows] - values[rows].mean()) / (values[rows].std() + 1e-4)
    return found


def test_hand_computed_values():
    # Rewards 1, 0: Z_R = (a, -a) with a = 0.5 / (sqrt 0.5 + 1e-4). Costs 0, 2: Z_C = (-b, b), b = 1 / (sqrt 2 + 1e-4).
    # A = 2 a + 3 b on row 0, the negative on row 1; at ratio 1 the gradient of the loss is -A / 2 rows.
    a, b = 0.5 / (math.sqrt(0.5) + 1e-4), 1 / (math.sqrt(2) + 1e-4)
    tokens = torch.zeros(2, 1, dtype=torch.float64)
    inputs = {
        "logprobs": tokens,
        "old_logprobs": tokens,
        "rewards": torch.tensor([1.0, 0.0], dtype=torch.float64),
        "costs": torch.tensor([[0.0], [2.0]], dtype=torch.float64),
        "group": torch.tensor([0, 0]),
        "mask": torch.ones(2, 1),
    }
    objective = functools.partial(constrained_grpo, multipliers=[3.0], reward_multiplier=2.0)
    assert objective(**inputs).metrics["grpo/advantage_abs_mean"].item() == pytest.approx(2 * a + 3 * b)
    assert gradient(objective, inputs)[:, 0].tolist() == pytest.approx([-(2 * a + 3 * b) / 2, (2 * a + 3 * b) / 2])


@pytest.mark.parametrize("seed", range(3))
def test_it_is_grpo_with_the_advantages_of_a_loop(seed):
    batch = make_batch(seed)
    parts = [standardised(column, batch["group"]) for column in batch["costs"].unbind(1)]
    advantage = 0.7 * standardised(batch["rewards"], batch["group"]) - 0.5 * parts[0] - 2.0 * parts[1]
    inputs = grpo_inputs(batch)
    mine = functools.partial(
        constrained_grpo, costs=batch["costs"], multipliers=[0.5, 2.0], reward_multiplier=0.7, clip_high=0.1
    )
    other = functools.partial(grpo, advantages=advantage[:, None].expand(9, 5), clip_high=0.1)
    capped = {"is_cap": 1.1, "sampler_logprobs": inputs["old_logprobs"] - 0.1 * batch["rewards"][:, None]}
    for weights in ({}, capped):
        one, two = functools.partial(mine, **weights), functools.partial(other, **weights)
        torch.testing.assert_close(one(**inputs).loss, two(**inputs).loss, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(gradient(one, inputs), gradient(two, inputs), rtol=1e-12, atol=1e-12)
    assert not torch.equal(mine(**inputs).loss, mine(**inputs, **capped).loss)


def test_without_costs_it_is_grpo():
    inputs = grpo_inputs(make_batch())
    found = constrained_grpo(**inputs, costs=torch.zeros(9, 0), multipliers=[])
    torch.testing.assert_close(found.loss, grpo(**inputs).loss, rtol=1e-12, atol=1e-12)


def test_the_scale_of_a_cost_does_not_matter_and_that_of_the_sum_would():
    """Standardised first, costs of 1 and of 1000 weigh the same; subtracted from the reward they would not."""
    batch = make_batch()
    inputs = grpo_inputs(batch)
    cost = batch["costs"][:, :1]
    small, large = (constrained_grpo(**inputs, costs=c, multipliers=[1.0]).loss for c in (cost, 1000 * cost))
    torch.testing.assert_close(small, large, rtol=1e-3, atol=1e-4)  # 1e-4 is added to each std
    summed = [grpo(**inputs | {"rewards": batch["rewards"] - c[:, 0]}).loss for c in (cost, 1000 * cost)]
    assert abs(float(summed[0] - summed[1])) > 10 * abs(float(small - large))


def test_degenerate_a_cost_that_all_have_teaches_nothing():
    batch = make_batch()
    constant = torch.ones(9, 1)
    inputs = grpo_inputs(batch)
    assert torch.equal(constrained_grpo(**inputs, costs=constant, multipliers=[9.0]).loss, grpo(**inputs).loss)


def test_degenerate_group_of_one_raises():
    inputs = grpo_inputs(make_batch(), group=torch.tensor([0, 0, 0, 0, 0, 0, 0, 0, 5]))
    with pytest.raises(GroupTooSmall, match="constrained_grpo compares the rows of a group, and group 5 has one"):
        constrained_grpo(**inputs, costs=torch.zeros(9, 1), multipliers=[1.0])


def test_inputs_of_wrong_shape_are_rejected():
    inputs = grpo_inputs(make_batch())
    with pytest.raises(ShapeError, match=r"costs has shape \(9,\); expected \(9, 1\), \[B, K\]"):
        constrained_grpo(**inputs, costs=torch.zeros(9), multipliers=[1.0])
    with pytest.raises(ShapeError, match=r"expected \(9, 2\)"):
        constrained_grpo(**inputs, costs=torch.zeros(9, 1), multipliers=[1.0, 1.0])
    with pytest.raises(ObjectiveError, match=r"multipliers is -1\.0; set it to at least 0"):
        constrained_grpo(**inputs, costs=torch.zeros(9, 1), multipliers=[-1.0])
    with pytest.raises(ObjectiveError, match=r"reward_multiplier is -1\.0"):
        constrained_grpo(**inputs, costs=torch.zeros(9, 1), multipliers=[1.0], reward_multiplier=-1.0)


def test_multipliers_rise_over_the_limit_and_fall_to_zero_under_it():
    # 0.5 + 2 (0.6 - 0.1) = 1.5; 0.5 + 2 (0 - 0.1) = 0.3; 0.1 + 2 (0 - 0.1) = -0.1, so 0.
    moved = updated_multipliers([0.5, 0.5, 0.1], rates=[0.6, 0.0, 0.0], limits=[0.1, 0.1, 0.1], rate=2.0)
    assert moved == pytest.approx([1.5, 0.3, 0.0])
    with pytest.raises(ObjectiveError, match="2 multipliers, 1 rates and 2 limits"):
        updated_multipliers([0.0, 0.0], rates=[0.0], limits=[0.1, 0.1], rate=1.0)


def learned(limit):
    """Reward 1 for a completion that starts with 2, half as much again if 1 or 2 follows; that is its cost."""
    costs = torch.tensor([float(len(tokens) > 1 and tokens[1] != 0) for tokens in COMPLETIONS], dtype=torch.float64)
    rewards = torch.tensor([float(tokens[0] == 2) for tokens in COMPLETIONS], dtype=torch.float64) + 0.5 * costs
    policy, generator, multipliers = TabularPolicy(seed=0, scale=0.0), torch.Generator().manual_seed(0), [0.0]
    optimizer = torch.optim.Adam([policy.logits], lr=0.05)
    for _ in range(80):
        old = policy.logprobs().detach()
        rows = torch.multinomial(old.sum(dim=1).exp(), 64, replacement=True, generator=generator)
        optimizer.zero_grad()
        constrained_grpo(
            policy.logprobs()[rows],
            old_logprobs=old[rows],
            rewards=rewards[rows],
            costs=costs[rows, None],
            multipliers=multipliers,
            group=torch.arange(64) // 16,
            mask=MASK[rows],
        ).loss.backward()
        optimizer.step()
        multipliers = updated_multipliers(multipliers, rates=[float(costs[rows].mean())], limits=[limit], rate=0.5)
    distribution = policy.log_distribution().detach().exp()
    return float(distribution @ rewards), float(distribution @ costs), multipliers[0]


def test_it_learns_within_its_limit():
    reward, cost, multiplier = learned(limit=0.05)
    assert reward > 0.9
    assert cost < 0.1
    assert multiplier > 0.5
    free_reward, free_cost, free_multiplier = learned(limit=1.0)
    assert free_reward > 1.3
    assert free_cost > 0.9
    assert free_multiplier == 0.0
