"""GRPO and its presets: by hand, against a loop, their relations, their degenerate cases, and that they learn."""

import functools
import math
import statistics

import pytest
import torch

from gvpo.errors import GroupTooSmall, MissingLogprobs, ObjectiveError, ShapeError
from gvpo.objectives import dapo, dr_grpo, grpo, rloo
from tests.objectives.batches import gradient, grpo_inputs, make_batch, rows_of
from tests.objectives.tabular import COMPLETIONS, MASK, TabularPolicy

CLIP = {"clip_low": 0.1, "clip_high": 0.15}  # narrow enough that a batch has clipped tokens on both sides


def naive(batch, *, low, high, scale=True, leave_one_out=False, reduction="sequence_mean", length=None, kl=0.0):
    """Compute the formula in plain Python, token by token."""
    advantage = [0.0] * len(batch["rewards"])
    rewards = batch["rewards"].tolist()
    for rows in rows_of(batch["group"]):
        for i in rows:
            others = [rewards[j] for j in rows if j != i] if leave_one_out else [rewards[j] for j in rows]
            advantage[i] = rewards[i] - statistics.fmean(others)
            if scale:
                advantage[i] /= statistics.stdev(rewards[j] for j in rows) + 1e-4
    sums, means, tokens = [], [], 0
    for i, a in enumerate(advantage):
        values = []
        for t in range(batch["mask"].shape[1]):
            if not batch["mask"][i, t]:
                continue
            p, old, ref = (batch[name][i, t].item() for name in ("logprobs", "old_logprobs", "ref_logprobs"))
            ratio = math.exp(p - old)
            clipped = min(max(ratio, 1 - low), 1 + high)
            values.append(-min(ratio * a, clipped * a) + kl * (math.exp(ref - p) - (ref - p) - 1))
        sums.append(sum(values))
        means.append(sum(values) / len(values) if values else 0.0)
        tokens += len(values)
    if reduction == "sequence_mean":
        return statistics.fmean(means)
    return sum(sums) / tokens if reduction == "token_mean" else statistics.fmean(sums) / length


def pair(ratios, rewards, **changes):
    """Return a group of rows of one token each with these probability ratios."""
    logprobs = torch.tensor(ratios, dtype=torch.float64).log()[:, None] - 1
    return {
        "logprobs": logprobs,
        "old_logprobs": torch.full_like(logprobs, -1.0),
        "rewards": torch.tensor(rewards, dtype=torch.float64),
        "group": torch.zeros(len(rewards), dtype=torch.int64),
        "mask": torch.ones_like(logprobs),
        **changes,
    }


# Worked arithmetic


def test_a_pair_has_hand_computed_values():
    # R = [2, 0]: mean 1, std sqrt 2, A = +-1/(sqrt 2 + 1e-4). Ratios [1.5, 1.1] in [0.8, 1.2]:
    # min(1.5 A, 1.2 A) = 1.2 A and min(-1.1 A, -1.1 A) = -1.1 A; loss = -(1.2 - 1.1) A / 2.
    a = 1 / (math.sqrt(2) + 1e-4)
    output = grpo(**pair([1.5, 1.1], [2.0, 0.0]))
    assert output.loss.item() == pytest.approx(-0.05 * a)
    expected = {
        "grpo/ratio_mean": 1.3,
        "grpo/clip_fraction": 0.5,
        "grpo/clip_fraction_low": 0.0,
        "grpo/clip_fraction_high": 0.5,
        "grpo/advantage_abs_mean": a,
    }
    assert {key: value.item() for key, value in output.metrics.items()} == pytest.approx(expected)


def test_presets_has_hand_computed_values():
    # Without std A = [1, -1]; ratios [1.25, 0.75].
    inputs = pair([1.25, 0.75], [2.0, 0.0])
    # Dr.GRPO, clip 0.2: min(1.25, 1.2) = 1.2, min(-0.75, -0.8) = -0.8; mean over 2 rows, over a length of 4.
    assert dr_grpo(**inputs, max_length=4).loss.item() == pytest.approx(-(1.2 - 0.8) / 2 / 4)
    # RLOO: A = [2, -2], no clip, sum over tokens, mean over rows.
    assert rloo(**inputs).loss.item() == pytest.approx(-(1.25 * 2 - 0.75 * 2) / 2)
    # DAPO: upper bound 1.28, so the first is not clipped; A over std.
    assert dapo(**inputs).loss.item() == pytest.approx(-(1.25 - 0.8) / 2 / (math.sqrt(2) + 1e-4))


def test_the_kl_term_has_hand_computed_values():
    # Reference log-prob above the policy's by ln 2: k3 = 2 - ln 2 - 1. Equal rewards: nothing else is left.
    inputs = pair([1.0, 1.0], [1.0, 1.0])
    inputs["ref_logprobs"] = inputs["logprobs"] + math.log(2)
    output = grpo(**inputs, kl_coef=0.5)
    assert output.loss.item() == pytest.approx(0.5 * (1 - math.log(2)))
    assert output.metrics["grpo/kl"].item() == pytest.approx(1 - math.log(2))


def test_without_a_kl_term_the_reference_does_not_matter():
    inputs = pair([1.0, 1.0], [1.0, 0.0])
    output = grpo(**inputs, ref_logprobs=inputs["logprobs"] + math.log(2))
    assert output.loss.item() == grpo(**inputs).loss.item()
    assert "grpo/kl" not in output.metrics


def test_metrics_count_scored_tokens_only():
    # Row 0 has two scored tokens, row 1 one of three: ratios 1.5, 1 and 0.5, A = [+, -]; k3 at d = ln 2 is 1 - ln 2.
    logprobs = torch.tensor([[1.5, 1.0, 9.0], [0.5, 9.0, 9.0]]).double().log()
    inputs = pair([1.0, 1.0], [2.0, 0.0], logprobs=logprobs, old_logprobs=torch.zeros(2, 3).double())
    inputs["mask"] = torch.tensor([[1, 1, 0], [1, 0, 0]])
    ref = logprobs + math.log(2) * torch.tensor([[1, 0, 5], [0, 5, 5]])
    metrics = grpo(**inputs, ref_logprobs=ref, kl_coef=0.1).metrics
    expected = {
        "grpo/ratio_mean": (1.5 + 1.0 + 0.5) / 3,
        "grpo/clip_fraction": 2 / 3,
        "grpo/clip_fraction_low": 1 / 3,
        "grpo/clip_fraction_high": 1 / 3,
        "grpo/advantage_abs_mean": 1 / (math.sqrt(2) + 1e-4),
        "grpo/kl": (1 - math.log(2)) / 3,
    }
    assert {key: value.item() for key, value in metrics.items()} == pytest.approx(expected)


# Agreement with the loop


@pytest.mark.parametrize(
    ("objective", "settings"),
    [
        (functools.partial(grpo, **CLIP), {"low": 0.1, "high": 0.15}),
        (functools.partial(grpo, **CLIP, kl_coef=0.3), {"low": 0.1, "high": 0.15, "kl": 0.3}),
        (functools.partial(grpo, baseline="leave_one_out"), {"low": 0.2, "high": 0.2, "leave_one_out": True}),
        (dapo, {"low": 0.2, "high": 0.28, "reduction": "token_mean"}),
        (
            functools.partial(dr_grpo, max_length=7),
            {"low": 0.2, "high": 0.2, "scale": False, "reduction": "constant", "length": 7},
        ),
        (
            rloo,
            {
                "low": math.inf,
                "high": math.inf,
                "scale": False,
                "leave_one_out": True,
                "reduction": "constant",
                "length": 1,
            },
        ),
    ],
    ids=["grpo", "kl", "leave-one-out", "dapo", "dr_grpo", "rloo"],
)
def test_losses_equal_a_loop_on_unequal_groups_and_rows(objective, settings):
    batch = make_batch(1)
    loss = objective(**grpo_inputs(batch), ref_logprobs=batch["ref_logprobs"]).loss.item()
    assert loss == pytest.approx(naive(batch, **settings), rel=1e-12)


# Relations and limits


def test_with_equal_lengths_the_three_reductions_are_proportional():
    batch = make_batch(2)
    batch["mask"] = torch.ones_like(batch["mask"])
    inputs = grpo_inputs(batch)
    sequence, token, constant = (
        gradient(functools.partial(grpo, reduction=name, max_length=20), inputs)
        for name in ("sequence_mean", "token_mean", "constant")
    )
    torch.testing.assert_close(sequence, token)
    torch.testing.assert_close(sequence, constant * 20 / 5)


def test_with_unequal_lengths_they_are_not():
    inputs = grpo_inputs(make_batch(2))
    sequence, token = (
        gradient(functools.partial(grpo, reduction=name), inputs) for name in ("sequence_mean", "token_mean")
    )
    both = (sequence != 0) & (token != 0)
    assert (sequence[both] / token[both]).std() > 0.1


def test_on_policy_the_gradient_is_the_policy_gradient():
    # Ratios are exactly 1, nothing is clipped, and d loss / d logprob = -A / (rows * tokens of the row).
    batch = make_batch(4)
    inputs = grpo_inputs(batch, old_logprobs=batch["logprobs"])
    metrics = grpo(**inputs).metrics
    assert metrics["grpo/ratio_mean"].item() == 1.0
    assert metrics["grpo/clip_fraction"].item() == 0.0
    slope = gradient(grpo, inputs)
    for rows in rows_of(batch["group"]):
        rewards = batch["rewards"][rows]
        advantage = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
        expected = -advantage[:, None] * batch["mask"][rows] / batch["mask"][rows].sum(dim=1, keepdim=True) / 9
        torch.testing.assert_close(slope[rows], expected)


def test_clipped_tokens_carry_no_gradient():
    # A > 0 above the range and A < 0 below it stop; A < 0 above it continues.
    inputs = pair([1.5, 0.5, 1.5], [3.0, 0.0, 0.0])
    slope = gradient(grpo, inputs)[:, 0]
    assert slope[:2].tolist() == [0.0, 0.0]
    assert slope[2] > 0


def test_scale_and_offset_of_rewards_do_not_matter_with_std():
    batch = make_batch()
    once, other = (grpo(**grpo_inputs(batch, rewards=r)).loss for r in (batch["rewards"], 1e4 * batch["rewards"] - 3e5))
    torch.testing.assert_close(once, other, rtol=2e-3, atol=1e-4)  # 1e-4 in the denominator


def test_given_advantages_replace_the_computed_ones():
    batch = make_batch()
    advantages = torch.randn(9, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    nonsense = grpo_inputs(batch, rewards=torch.full((9,), torch.nan), group=torch.arange(9))
    ratio = (batch["logprobs"] - batch["old_logprobs"]).exp()
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages) * batch["mask"]
    expected = -(surrogate.sum(dim=1) / batch["mask"].sum(dim=1)).mean()
    torch.testing.assert_close(grpo(**nonsense, advantages=advantages).loss, expected)


def test_rows_of_constant_given_advantages_equal_the_computed_ones():
    batch = make_batch()
    rows = torch.zeros(9, dtype=torch.float64)
    for members in rows_of(batch["group"]):
        rewards = batch["rewards"][members]
        rows[members] = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
    given = grpo(**grpo_inputs(batch), advantages=rows[:, None].expand(9, 5))
    computed = grpo(**grpo_inputs(batch))
    torch.testing.assert_close(given.loss, computed.loss)
    torch.testing.assert_close(given.metrics, computed.metrics)


# Degenerate cases


def test_degenerate_group_of_one_raises_unless_advantages_are_given():
    inputs = pair([1.0, 1.0, 1.1], [1.0, 0.0, 0.0], group=torch.tensor([0, 0, 6]))
    for objective in (grpo, dapo, rloo):
        with pytest.raises(GroupTooSmall, match="group 6 has one"):
            objective(**inputs)
    assert grpo(**inputs, advantages=torch.ones(3, 1)).loss.item() == pytest.approx(-3.1 / 3)


@pytest.mark.parametrize("objective", [grpo, dapo, functools.partial(dr_grpo, max_length=8), rloo])
def test_degenerate_equal_rewards_teach_nothing(objective):
    inputs = pair([1.3, 0.9, 0.5], [0.1, 0.1, 0.1])
    single = {key: value.float() if value.is_floating_point() else value for key, value in inputs.items()}
    assert objective(**single).loss.item() == 0.0
    assert gradient(objective, single).abs().max().item() == 0.0


def test_degenerate_empty_mask_is_a_row_whose_reward_counts():
    # R = [2, 0]: the empty row's reward is in the mean, its mean over tokens is 0.
    inputs = pair([1.0, 1.0], [2.0, 0.0], mask=torch.tensor([[1.0], [0.0]]))
    assert grpo(**inputs).loss.item() == pytest.approx(-1 / (math.sqrt(2) + 1e-4) / 2)


def test_degenerate_all_negative_rewards_push_the_least_bad_up():
    slope = gradient(grpo, pair([1.0, 1.0], [-1.0, -5.0]))[:, 0]
    assert slope[0] < 0 < slope[1]


def test_degenerate_one_truncated_row_is_dropped_as_a_row():
    full = pair([1.0, 1.0, 1.0], [1.0, 0.0, 0.0])
    dropped = gradient(grpo, {key: value[:2] for key, value in full.items()})
    assert dropped[:, 0].tolist() == pytest.approx(
        [-0.5 / (math.sqrt(0.5) + 1e-4) / 2, 0.5 / (math.sqrt(0.5) + 1e-4) / 2]
    )


# What users get wrong


def test_a_kl_term_needs_a_reference():
    with pytest.raises(MissingLogprobs, match=r"kl_coef is 0\.1 and ref_logprobs is missing"):
        grpo(**pair([1.0, 1.0], [1.0, 0.0]), kl_coef=0.1)


def test_dr_grpo_needs_a_length():
    with pytest.raises(ObjectiveError, match="divides by max_length; pass it"):
        dr_grpo(**pair([1.0, 1.0], [1.0, 0.0]))


@pytest.mark.parametrize(
    ("keyword", "message"),
    [
        ({"baseline": "median"}, "choose mean or leave_one_out"),
        ({"reduction": "sum"}, "choose one of sequence_mean"),
        ({"clip_high": -0.1}, "clip_high is -0.1"),
        ({"kl_coef": -1.0}, "kl_coef is -1.0"),
    ],
)
def test_keywords_out_of_range(keyword, message):
    with pytest.raises(ObjectiveError, match=message):
        grpo(**pair([1.0, 1.0], [1.0, 0.0]), **keyword)


# Truncated importance sampling


def with_sampler(**changes):
    """Return a batch whose sampler is neither the policy nor the old policy."""
    batch = make_batch(spread=0.6)
    sampler = batch["ref_logprobs"]
    return batch, sampler, grpo_inputs(batch, **changes)


@pytest.mark.parametrize(
    "objective", [grpo, dapo, functools.partial(dr_grpo, max_length=8), rloo, functools.partial(grpo, **CLIP)]
)
def test_a_cap_weights_each_token_by_its_truncated_ratio_to_the_sampler(objective):
    _, sampler, inputs = with_sampler()
    weight = (inputs["old_logprobs"] - sampler).exp()
    capped = functools.partial(objective, is_cap=1.3, sampler_logprobs=sampler)
    assert ((weight > 1.3) & (inputs["mask"] != 0)).sum() > 3
    torch.testing.assert_close(gradient(capped, inputs), weight.clamp(max=1.3) * gradient(objective, inputs))


def test_in_the_first_update_its_gradient_is_that_of_truncated_importance_sampling():
    batch, sampler, inputs = with_sampler()
    inputs["old_logprobs"] = batch["logprobs"]
    slope = gradient(functools.partial(grpo, is_cap=2.0, sampler_logprobs=sampler), inputs)
    for rows in rows_of(batch["group"]):
        rewards = batch["rewards"][rows].tolist()
        for i in rows:
            advantage = (batch["rewards"][i].item() - statistics.fmean(rewards)) / (statistics.stdev(rewards) + 1e-4)
            tokens = batch["mask"][i].sum().item()
            for t in range(5):
                weight = min(math.exp(batch["logprobs"][i, t] - sampler[i, t]), 2.0)
                expected = -batch["mask"][i, t].item() * weight * advantage / tokens / 9
                assert slope[i, t].item() == pytest.approx(expected, abs=1e-12)


def test_old_log_probs_of_the_sampler_have_the_weight_1():
    _, _, inputs = with_sampler()
    plain, capped = grpo(**inputs), grpo(**inputs, is_cap=1.0, sampler_logprobs=inputs["old_logprobs"])
    assert torch.equal(plain.loss, capped.loss)
    assert capped.metrics["grpo/is_weight_mean"] == 1
    assert capped.metrics["grpo/is_capped_fraction"] == 0


def test_the_weight_does_not_reach_the_kl_term():
    batch, sampler, inputs = with_sampler()
    inputs |= {"rewards": torch.zeros(9), "ref_logprobs": batch["old_logprobs"], "kl_coef": 0.5}  # advantages are 0
    assert torch.equal(grpo(**inputs).loss, grpo(**inputs, is_cap=1.3, sampler_logprobs=sampler).loss)


def test_weights_have_metrics_over_scored_tokens():
    old = torch.tensor([[-1.0, -1.0], [-1.0, 0.0]], dtype=torch.float64)
    sampler = torch.tensor([[-2.0, -1.0], [-1.0 + math.log(2), 9.0]], dtype=torch.float64)
    given = {"old_logprobs": old, "rewards": torch.tensor([1.0, 0.0]), "group": torch.tensor([0, 0])}
    mask = torch.tensor([[1, 1], [1, 0]])
    metrics = grpo(old, **given, mask=mask, is_cap=2.0, sampler_logprobs=sampler).metrics
    assert metrics["grpo/is_weight_mean"].item() == pytest.approx((2 + 1 + 0.5) / 3)
    assert metrics["grpo/is_capped_fraction"].item() == pytest.approx(1 / 3)
    assert not any("is_" in key for key in grpo(old, **given, mask=mask).metrics)


def test_only_the_policys_log_probs_carry_a_gradient_under_a_cap():
    _, sampler, inputs = with_sampler()
    old, sampler = (value.clone().requires_grad_() for value in (inputs["old_logprobs"], sampler))
    policy = inputs["logprobs"].clone().requires_grad_()
    grpo(**{**inputs, "logprobs": policy, "old_logprobs": old}, is_cap=2.0, sampler_logprobs=sampler).loss.backward()
    assert policy.grad.abs().sum() > 0
    assert old.grad is None
    assert sampler.grad is None


def test_a_cap_needs_the_samplers_log_probs_and_a_positive_value():
    _, sampler, inputs = with_sampler()
    with pytest.raises(MissingLogprobs, match=r"is_cap is 2.0 and sampler_logprobs are missing: set Completion\."):
        grpo(**inputs, is_cap=2.0)
    with pytest.raises(ObjectiveError, match=r"is_cap is 0\.0;"):
        grpo(**inputs, is_cap=0.0, sampler_logprobs=sampler)
    with pytest.raises(ShapeError, match="sampler_logprobs has shape"):
        grpo(**inputs, is_cap=2.0, sampler_logprobs=sampler[:, :2])


def test_weights_remove_the_bias_of_another_policys_samples():
    # One token per completion, so that the token's weight is the completion's. With a cap above all ratios the expected
    # gradient over the sampler's rows is the policy gradient; without weights it is not.
    policy = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64).log().requires_grad_()
    sampler = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64).log()
    worth = torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64)

    def slope(**weights):
        at = policy.detach().clone().requires_grad_()
        logprobs = at.log_softmax(0)[:, None]
        terms = {"advantages": 3 * (sampler.exp() * worth)[:, None], "rewards": torch.zeros(3)}  # the loss is a mean
        rest = {"group": torch.zeros(3, dtype=torch.int64), "mask": torch.ones(3, 1)}
        return torch.autograd.grad(rloo(logprobs, old_logprobs=logprobs, **terms, **rest, **weights).loss, at)[0]

    truth = torch.autograd.grad(-(policy.softmax(0) @ worth), policy)[0]
    torch.testing.assert_close(slope(is_cap=10.0, sampler_logprobs=sampler[:, None]), truth)
    assert (slope() - truth).abs().max() > 0.1


# It learns


@pytest.mark.parametrize("objective", [grpo, dapo, functools.partial(dr_grpo, max_length=3), rloo])
def test_it_learns(objective):
    # One group a step, drawn from the live policy; reward 1 for completions that end in token 0 after a 2.
    rewards = torch.tensor([float(tokens[-2:] == (2, 0)) for tokens in COMPLETIONS], dtype=torch.float64)
    policy, generator = TabularPolicy(seed=0, scale=0.0), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam([policy.logits], lr=0.1)
    start = (policy.log_distribution().exp() @ rewards).item()
    for _ in range(80):
        table = policy.logprobs()
        rows = torch.multinomial(table.detach().sum(dim=1).exp(), 32, replacement=True, generator=generator)
        inputs = {"old_logprobs": table[rows], "rewards": rewards[rows], "mask": MASK[rows]}
        optimizer.zero_grad()
        objective(table[rows], **inputs, group=torch.zeros(32, dtype=torch.int64)).loss.backward()
        optimizer.step()
    assert start < 0.3
    assert (policy.log_distribution().exp() @ rewards).item() > 0.9
