"""GSPO and GSPO-token: by hand, against a loop, equal to each other, degenerate cases, and that they learn."""

import functools
import math
import statistics

import pytest
import torch

from gvpo.errors import GroupTooSmall
from gvpo.objectives import grpo, gspo, gspo_token
from tests.objectives.batches import gradient, grpo_inputs, make_batch, rows_of
from tests.objectives.tabular import COMPLETIONS, MASK, TabularPolicy

WIDE = {"clip_low": 0.05, "clip_high": 0.08}  # about half of a batch's rows lie outside


def naive(batch, low, high):
    """Compute the formula in plain Python, row by row; rows without a scored token add 0."""
    rewards = batch["rewards"].tolist()
    total = 0.0
    for rows in rows_of(batch["group"]):
        members = [rewards[j] for j in rows]
        for i in rows:
            scored = batch["mask"][i].bool()
            if not scored.any():
                continue
            advantage = (rewards[i] - statistics.fmean(members)) / (statistics.stdev(members) + 1e-4)
            ratio = math.exp((batch["logprobs"][i] - batch["old_logprobs"][i])[scored].mean().item())
            total -= min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)
    return total / len(rewards)


def two_rows(log_ratios, rewards, mask):
    """Return two rows of two tokens with these log-ratios."""
    return {
        "logprobs": torch.tensor(log_ratios, dtype=torch.float64) - 1,
        "old_logprobs": torch.full((2, 2), -1.0, dtype=torch.float64),
        "rewards": torch.tensor(rewards, dtype=torch.float64),
        "group": torch.tensor([3, 3]),
        "mask": torch.tensor(mask),
    }


def test_hand_computed_values():
    # Mean log-ratios ln 1.2 (of two tokens) and ln 0.5 (of one); A = +-1/(sqrt 2 + 1e-4); clip [0.9, 1.1]:
    # min(1.2 A, 1.1 A) = 1.1 A and min(-0.5 A, -0.9 A) = -0.9 A; the mean over rows of minus these.
    a = 1 / (math.sqrt(2) + 1e-4)
    inputs = two_rows([[2 * math.log(1.2), 0.0], [math.log(0.5), 9.0]], [2.0, 0.0], [[1, 1], [1, 0]])
    output = gspo(**inputs, clip_low=0.1, clip_high=0.1)
    assert output.loss.item() == pytest.approx(-(1.1 - 0.9) * a / 2)
    expected = {
        "gspo/ratio_mean": 0.85,
        "gspo/clip_fraction": 1.0,
        "gspo/clip_fraction_low": 0.5,
        "gspo/clip_fraction_high": 0.5,
        "gspo/advantage_abs_mean": a,
    }
    assert {key: value.item() for key, value in output.metrics.items()} == pytest.approx(expected)


def test_the_gradient_of_an_unclipped_row_has_hand_computed_values():
    # s = 1.05 over two tokens: d loss / d logprob = -s A / 2 tokens / 2 rows on each of its tokens.
    a = 1 / (math.sqrt(2) + 1e-4)
    inputs = two_rows([[2 * math.log(1.05), 0.0], [0.0, 0.0]], [2.0, 0.0], [[1, 1], [1, 1]])
    slope = gradient(functools.partial(gspo, clip_low=0.1, clip_high=0.1), inputs)
    assert slope[0].tolist() == pytest.approx([-1.05 * a / 4] * 2)
    assert slope[1].tolist() == pytest.approx([a / 4] * 2)


def test_the_default_range_clips_what_grpo_does_not():
    metrics = gspo(**two_rows([[0.001, 0.0], [-0.001, 0.0]], [1.0, 0.0], [[1, 1], [1, 1]])).metrics
    assert metrics["gspo/clip_fraction"].item() == 1.0


@pytest.mark.parametrize("seed", range(3))
def test_the_loss_equals_a_loop_on_unequal_groups_and_rows(seed):
    batch = make_batch(seed)
    batch["mask"][3] = 0
    assert gspo(**grpo_inputs(batch), **WIDE).loss.item() == pytest.approx(naive(batch, 0.05, 0.08), rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_gspo_token_equals_gspo_in_value_clipping_and_gradient(seed):
    # Unequal lengths, ratios away from 1, one row without a scored token.
    batch = make_batch(seed)
    batch["mask"][3] = 0
    inputs = grpo_inputs(batch)
    whole, token = gspo(**inputs, **WIDE), gspo_token(**inputs, **WIDE)
    torch.testing.assert_close(token.loss, whole.loss)
    torch.testing.assert_close(token.metrics, whole.metrics)
    assert 0 < whole.metrics["gspo/clip_fraction"] < 1
    slopes = [gradient(functools.partial(objective, **WIDE), inputs) for objective in (gspo_token, gspo)]
    torch.testing.assert_close(*slopes)
    assert slopes[0].abs().sum() > 0


def test_per_token_advantages_choose_a_branch_per_token():
    # s = 1.2 above the range: the token with A > 0 is clipped, its neighbour with A < 0 is not.
    inputs = two_rows([[2 * math.log(1.2), 0.0], [0.0, 0.0]], [0.0, 0.0], [[1, 1], [1, 1]])
    advantages = torch.tensor([[1.0, -1.0], [0.0, 0.0]])
    output = gspo_token(**inputs, clip_low=0.1, clip_high=0.1, advantages=advantages)
    assert output.loss.item() == pytest.approx(-(1.1 - 1.2) / 2 / 2)
    slope = gradient(functools.partial(gspo_token, clip_low=0.1, clip_high=0.1, advantages=advantages), inputs)
    assert slope[0].tolist() == pytest.approx([0.0, 1.2 / 4])
    assert output.metrics["gspo/clip_fraction_high"].item() == 0.25


def test_one_token_a_row_is_grpo():
    batch = make_batch()
    batch["mask"] = torch.zeros_like(batch["mask"])
    batch["mask"][:, 1] = 1
    torch.testing.assert_close(gspo(**grpo_inputs(batch), **WIDE).loss, grpo(**grpo_inputs(batch), **WIDE).loss)


@pytest.mark.parametrize("objective", [gspo, gspo_token])
def test_on_policy_every_ratio_is_one_and_the_gradient_is_grpos(objective):
    batch = make_batch(dtype=torch.float32)
    inputs = grpo_inputs(batch, old_logprobs=batch["logprobs"])
    metrics = objective(**inputs).metrics
    assert metrics["gspo/ratio_mean"].item() == 1.0
    assert metrics["gspo/clip_fraction"].item() == 0.0
    torch.testing.assert_close(gradient(objective, inputs), gradient(grpo, inputs))


# Degenerate cases


@pytest.mark.parametrize("objective", [gspo, gspo_token])
def test_degenerate_group_of_one_raises(objective):
    inputs = grpo_inputs(make_batch(), group=torch.tensor([0, 0, 0, 0, 0, 0, 0, 0, 5]))
    with pytest.raises(GroupTooSmall, match=f"{objective.__name__} compares the rows of a group, and group 5 has one"):
        objective(**inputs)


def test_degenerate_group_of_one_is_fine_with_given_advantages():
    inputs = grpo_inputs(make_batch(), group=torch.arange(9), advantages=torch.ones(9, 5))
    assert gspo_token(**inputs).loss.item() < 0


@pytest.mark.parametrize("objective", [gspo, gspo_token])
def test_degenerate_equal_rewards_teach_nothing(objective):
    inputs = grpo_inputs(make_batch(dtype=torch.float32), rewards=torch.full((9,), 0.1))
    assert objective(**inputs).loss.item() == 0.0
    assert gradient(objective, inputs).abs().max().item() == 0.0


@pytest.mark.parametrize("objective", [gspo, gspo_token])
def test_degenerate_empty_mask_adds_nothing_and_its_reward_counts(objective):
    inputs = two_rows([[0.0, 0.0], [0.0, 0.0]], [2.0, 0.0], [[1, 1], [0, 0]])
    assert objective(**inputs).loss.item() == pytest.approx(-1 / (math.sqrt(2) + 1e-4) / 2)


@pytest.mark.parametrize("objective", [gspo, gspo_token])
def test_degenerate_all_negative_rewards_push_the_least_bad_up(objective):
    slope = gradient(objective, two_rows([[0.0, 0.0], [0.0, 0.0]], [-1.0, -5.0], [[1, 1], [1, 0]]))
    assert slope[0].max() < 0 < slope[1, 0]


def test_degenerate_one_truncated_row_is_dropped_as_a_row():
    batch = make_batch()
    kept = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7])
    dropped = {key: value[kept] for key, value in batch.items()}
    assert gspo(**grpo_inputs(dropped), **WIDE).loss.item() == pytest.approx(naive(dropped, 0.05, 0.08), rel=1e-12)


@pytest.mark.parametrize("objective", [gspo, gspo_token])
def test_it_learns(objective):
    # Four updates per rollout: reward 1 for completions that end in token 0 after a 2.
    rewards = torch.tensor([float(tokens[-2:] == (2, 0)) for tokens in COMPLETIONS], dtype=torch.float64)
    policy, generator = TabularPolicy(seed=0, scale=0.0), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam([policy.logits], lr=0.05)
    start = (policy.log_distribution().exp() @ rewards).item()
    for _ in range(60):
        old = policy.logprobs().detach()
        rows = torch.multinomial(old.sum(dim=1).exp(), 32, replacement=True, generator=generator)
        inputs = {"old_logprobs": old[rows], "rewards": rewards[rows], "mask": MASK[rows]}
        for _ in range(4):
            optimizer.zero_grad()
            objective(policy.logprobs()[rows], **inputs, group=torch.zeros(32, dtype=torch.int64)).loss.backward()
            optimizer.step()
    assert start < 0.3
    assert (policy.log_distribution().exp() @ rewards).item() > 0.9
