"""CISPO by hand, against a loop, in its limits, and as it learns."""

import math
import statistics

import pytest
import torch

from gvpo.errors import GroupTooSmall, MissingLogprobs, ObjectiveError
from gvpo.objectives import cispo, dapo, grpo
from tests.objectives.batches import gradient, grpo_inputs, make_batch, rows_of
from tests.objectives.tabular import MASK, TabularPolicy


def naive_gradient(batch, *, low=1.0, high=4.0):
    """Return - clip(r) A / (all tokens) of each scored token, in plain Python."""
    slope = torch.zeros_like(batch["logprobs"])
    for rows in rows_of(batch["group"]):
        rewards = [batch["rewards"][row].item() for row in rows]
        for row, reward in zip(rows, rewards, strict=True):
            advantage = (reward - statistics.fmean(rewards)) / (statistics.stdev(rewards) + 1e-4)
            for t in range(batch["mask"].shape[1]):
                ratio = math.exp(batch["logprobs"][row, t] - batch["old_logprobs"][row, t])
                weight = min(max(ratio, 1 - low), 1 + high)
                slope[row, t] = -batch["mask"][row, t] * weight * advantage / batch["mask"].sum()
    return slope


def test_worked_example():
    # Rewards 1 and 0: A = +-0.5 / (sqrt(1/2) + 1e-4). Ratios e^2 = 7.39 and 1, of which the first is cut to 5.
    logprobs = torch.tensor([[-1.0], [-2.0]], dtype=torch.float64)
    old = torch.tensor([[-3.0], [-2.0]], dtype=torch.float64)
    inputs = {
        "logprobs": logprobs,
        "old_logprobs": old,
        "rewards": torch.tensor([1.0, 0.0]),
        "group": torch.tensor([0, 0]),
        "mask": torch.ones(2, 1),
    }
    a = 0.5 / (math.sqrt(0.5) + 1e-4)
    output = cispo(**inputs)
    assert output.loss.item() == pytest.approx(-(5 * a * -1.0 + 1 * -a * -2.0) / 2, rel=1e-12)
    torch.testing.assert_close(gradient(cispo, inputs), torch.tensor([[-5 * a / 2], [a / 2]]).double())
    assert output.metrics["cispo/clip_fraction_high"] == 0.5
    assert output.metrics["cispo/clip_fraction_low"] == 0
    assert output.metrics["cispo/ratio_mean"].item() == pytest.approx((math.exp(2) + 1) / 2)


@pytest.mark.parametrize(("low", "high"), [(1.0, 4.0), (0.1, 0.15), (math.inf, math.inf)])
def test_the_gradient_is_that_of_a_loop(low, high):
    batch = make_batch()
    slope = gradient(lambda **given: cispo(**given, clip_low=low, clip_high=high), grpo_inputs(batch))
    torch.testing.assert_close(slope, naive_gradient(batch, low=low, high=high))


def test_at_the_old_policy_its_gradient_is_dapos():
    inputs = grpo_inputs(make_batch())
    inputs["old_logprobs"] = inputs["logprobs"]
    torch.testing.assert_close(gradient(cispo, inputs), gradient(dapo, inputs))


def test_a_token_keeps_its_gradient_where_grpo_clips_it():
    inputs = grpo_inputs(make_batch(spread=2.0))
    clipped, kept = gradient(grpo, inputs), gradient(cispo, inputs)
    stopped = (clipped == 0) & (inputs["mask"] != 0)
    assert stopped.sum() > 3
    assert (kept[stopped] != 0).all()


def test_with_the_samplers_log_probs_it_is_truncated_importance_sampling():
    inputs = grpo_inputs(make_batch(spread=1.0))
    sampler, policy = inputs["old_logprobs"], inputs["logprobs"]
    by_cispo = gradient(lambda **given: cispo(**given, clip_high=1.0), inputs)
    at_start = {**inputs, "old_logprobs": policy}
    by_weight = gradient(lambda **given: dapo(**given, is_cap=2.0, sampler_logprobs=sampler), at_start)
    torch.testing.assert_close(by_cispo, by_weight)
    assert cispo(**inputs, clip_high=1.0).metrics["cispo/clip_fraction_high"] > 0


def test_a_weight_for_the_sampler_multiplies_the_clipped_ratio():
    inputs = grpo_inputs(make_batch())
    sampler = inputs["old_logprobs"] + 0.25 * torch.linspace(-2, 2, 5)
    slope = gradient(lambda **given: cispo(**given, is_cap=1.2, sampler_logprobs=sampler), inputs)
    weight = (inputs["old_logprobs"] - sampler).exp().clamp(max=1.2)
    torch.testing.assert_close(slope, weight * gradient(cispo, inputs))


def test_a_ratio_of_any_size_gives_finite_numbers():
    inputs = grpo_inputs(make_batch())
    inputs["old_logprobs"] = inputs["old_logprobs"] - 1e4
    output = cispo(**inputs, clip_high=math.inf)
    assert output.loss.isfinite()
    assert all(value.isfinite() for value in output.metrics.values())


def test_errors():
    inputs = grpo_inputs(make_batch())
    with pytest.raises(ObjectiveError, match="clip_low is -1"):
        cispo(**inputs, clip_low=-1.0)
    with pytest.raises(ObjectiveError, match="clip_high is -1"):
        cispo(**inputs, clip_high=-1.0)
    with pytest.raises(MissingLogprobs, match=r"is_cap is 2.0 and sampler_logprobs are missing"):
        cispo(**inputs, is_cap=2.0)
    with pytest.raises(GroupTooSmall, match="cispo compares"):
        cispo(**{**inputs, "group": torch.arange(9)})


def test_it_learns_from_another_policys_samples():
    policy, sampler = TabularPolicy(1), TabularPolicy(2)
    rewards = torch.linspace(0, 1, 15, dtype=torch.float64)
    old = sampler.logprobs().detach()
    drawn = torch.multinomial(old.sum(1).exp(), 512, replacement=True, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam([policy.logits], lr=0.03)
    before = (policy.log_distribution().exp() @ rewards).item()
    group = torch.arange(512) // 8
    for _ in range(200):
        output = cispo(
            policy.logprobs()[drawn], old_logprobs=old[drawn], rewards=rewards[drawn], group=group, mask=MASK[drawn]
        )
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    assert (policy.log_distribution().exp() @ rewards).item() > before + 0.2
