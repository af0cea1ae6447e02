"""GVPO's arithmetic: worked by hand, against a loop, its three forms, its identities and its degenerate cases."""

import functools
import math

import pytest
import torch

from gvpo.errors import GroupTooSmall, ObjectiveError
from gvpo.objectives import certificate, gvpo, gvpo_weights, rloo
from gvpo.objectives.groups import Groups
from tests.objectives.batches import gradient, gvpo_inputs, make_batch, rows_of

BETA = 0.7


def one_group(logratios, rewards, **changes):
    """Return a group whose rows have these sums of log-ratios, one token each, over a reference of -2 nats."""
    ratios = torch.tensor(logratios, dtype=torch.float64)[:, None]
    return {
        "logprobs": ratios - 2.0,
        "ref_logprobs": torch.full_like(ratios, -2.0),
        "rewards": torch.tensor(rewards, dtype=torch.float64),
        "group": torch.zeros(len(rewards), dtype=torch.int64),
        "mask": torch.ones_like(ratios),
        **changes,
    }


def sums(values, mask):
    return (values * mask).sum(dim=1)


def naive_loss(batch, beta, variance_weight=1.0, covariance_weight=1.0):
    """Compute the formula, row by row and group by group. Gradients flow through batch["logprobs"]."""
    policy, reference = sums(batch["logprobs"], batch["mask"]), sums(batch["ref_logprobs"], batch["mask"])
    losses = []
    for rows in rows_of(batch["group"]):
        k = len(rows)
        total = 0.0
        mean = {
            "l": sum(policy[i] - reference[i] for i in rows) / k,
            "r": sum(batch["rewards"][i] for i in rows) / k,
            "p": sum(policy[i] for i in rows) / k,
            "q": sum(reference[i] for i in rows) / k,
        }
        for i in rows:
            square = (beta * (policy[i] - reference[i] - mean["l"]) - (batch["rewards"][i] - mean["r"])) ** 2
            variance = (policy[i] - mean["p"]) ** 2
            covariance = (policy[i] - mean["p"]) * (reference[i] - mean["q"])
            total = total + square / 2 + (variance_weight - 1) * beta**2 / 2 * variance
            total = total - (covariance_weight - 1) * beta**2 * covariance
        losses.append(total / (k - 1))
    return sum(losses) / len(losses)


def naive_gradient(batch, *arguments):
    leaf = batch["logprobs"].clone().requires_grad_()
    return torch.autograd.grad(naive_loss({**batch, "logprobs": leaf}, *arguments), leaf)[0]


# Worked arithmetic


def test_identity_h_a_right_and_a_wrong_answer_at_the_reference():
    # beta 1, R = [1, 0], l = 0: residuals -1/2 and +1/2; half the sum of squares 1/4, over k - 1 = 1.
    assert gvpo(**one_group([0.0, 0.0], [1.0, 0.0]), beta=1.0).loss.item() == 0.25


def test_three_rows_has_hand_computed_values():
    # l = [0, 1, 2] centred [-1, 0, 1]; R = [3, 0, 0] centred [2, -1, -1]; beta 1/2.
    # residuals: -1/2 - 2 = -5/2,  0 + 1 = 1,  1/2 + 1 = 3/2; squares 25/4 + 1 + 9/4 = 19/2; over 2(k-1) = 4: 19/8.
    inputs = one_group([0.0, 1.0, 2.0], [3.0, 0.0, 0.0])
    assert gvpo(**inputs, beta=0.5).loss.item() == pytest.approx(19 / 8)
    # w = centred R - beta centred l = -residual.
    assert gvpo_weights(**inputs, beta=0.5).tolist() == pytest.approx([5 / 2, -1.0, -3 / 2])
    # d loss / d logprobs = -beta/(k-1) w.
    slope = gradient(functools.partial(gvpo, beta=0.5), inputs)
    assert slope[:, 0].tolist() == pytest.approx([-5 / 8, 1 / 4, 3 / 8])


def test_log_ratios_are_sums_over_tokens_not_means():
    # Two tokens of log-ratio 1/2 count as one of log-ratio 1: a mean would change the optimum.
    inputs = one_group([0.0, 0.0], [1.0, 0.0])
    two = torch.tensor([[0.5, 0.5], [0.0, 0.0]], dtype=torch.float64)
    long = {**inputs, "logprobs": two - 2, "ref_logprobs": torch.full_like(two, -2.0), "mask": torch.ones_like(two)}
    assert gvpo(**long, beta=1.0).loss.item() == gvpo(**one_group([1.0, 0.0], [1.0, 0.0]), beta=1.0).loss.item() == 0.0


def test_metrics_has_hand_computed_values():
    # As above: beta 1/2, l = [0, 1, 2], R = [3, 0, 0]; log pi = l - 2, log pi' constant.
    metrics = gvpo(**one_group([0.0, 1.0, 2.0], [3.0, 0.0, 0.0]), beta=0.5).metrics
    d = torch.tensor([6.0, -1.0, -2.0], dtype=torch.float64)  # R / beta - l
    expected = {
        "gvpo/advantage_term": (2 * -1 + 0 + -1 * 1) / 2,
        "gvpo/variance_term": (1 + 0 + 1) / 2,
        "gvpo/covariance_term": 0.0,
        "gvpo/logratio_gap_max": 1.0,
        "gvpo/weight_sum_max": 0.0,
        "gvpo/weight_abs_mean": (5 / 2 + 1 + 3 / 2) / 3,
        "gvpo/implicit_reward_corr": (-1 * 2 + 1 * -1) / (2**0.5 * 6**0.5),
        "gvpo/residual_ratio": (19 / 2) / 6,
        "gvpo/certificate": (d.exp().mean().log() - d.mean()).item(),
        "gvpo/logratio_mean": 1.0,
        "gvpo/logratio_mean_better": 0.0,
        "gvpo/logratio_mean_worse": 1.5,
        "gvpo/logratio_optimum": 2 - math.log((math.exp(6) + 2) / 3),  # R / beta = [6, 0, 0]
    }
    assert {key: value.item() for key, value in metrics.items()} == pytest.approx(expected)


def test_the_optimum_of_right_and_wrong_answers_has_a_negative_mean_log_ratio():
    # Accuracy .43 at beta .1: mean R/beta - log mean e^(R/beta) = 4.3 - log(.43 e^10 + .57) = -4.86 nats.
    rewards = [1.0] * 43 + [0.0] * 57
    metrics = gvpo(**one_group([0.0] * 100, rewards), beta=0.1).metrics
    assert metrics["gvpo/logratio_optimum"].item() == pytest.approx(4.3 - math.log(0.43 * math.exp(10) + 0.57))
    # At the optimum itself both are the same, and its best rows have risen.
    at = gvpo(**one_group([10 * r - math.log(0.43 * math.exp(10) + 0.57) for r in rewards], rewards), beta=0.1).metrics
    assert at["gvpo/logratio_mean"].item() == pytest.approx(at["gvpo/logratio_optimum"].item())
    assert at["gvpo/logratio_mean_better"].item() > 0


def test_uncentred_log_ratios_see_a_fall_of_all_rows_that_no_centred_metric_sees():
    fallen = {"ref_logprobs": torch.full((3, 1), 12.0, dtype=torch.float64)}  # 14 nats above that of `one_group`
    before, after = (
        gvpo(**one_group([0.1, -0.2, 0.3], [1.0, 0.0, 0.5], **extra), beta=BETA).metrics for extra in ({}, fallen)
    )
    moved = {key for key in before if after[key].item() != pytest.approx(before[key].item(), abs=1e-9)}
    assert moved == {"gvpo/logratio_mean", "gvpo/logratio_mean_better", "gvpo/logratio_mean_worse"}
    assert after["gvpo/logratio_mean"].item() == pytest.approx(before["gvpo/logratio_mean"].item() - 14)


@pytest.mark.parametrize("nats", [-1000.0, 1000.0])
def test_metrics_are_finite_at_a_thousand_nats(nats):
    metrics = gvpo(**one_group([nats, 0.0], [1000.0, 0.0]), beta=1e-3).metrics
    assert all(value.isfinite() for value in metrics.values())
    assert metrics["gvpo/logratio_mean"].item() == nats / 2
    assert metrics["gvpo/logratio_optimum"].item() == pytest.approx(-5e5, rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_uncentred_log_ratios_equal_a_loop(seed):
    batch = make_batch(seed)
    metrics = gvpo(**gvpo_inputs(batch), beta=BETA).metrics
    ratios = ((batch["logprobs"] - batch["ref_logprobs"]).nan_to_num() * batch["mask"]).sum(1)
    means, optima, sides = [], [], {"better": [], "worse": []}
    for rows in rows_of(batch["group"]):
        rewards = batch["rewards"][rows]
        means.append(ratios[rows].mean())
        optima.append((rewards / BETA).mean() - (rewards / BETA).exp().mean().log())
        for row in rows:
            if batch["rewards"][row] != rewards.mean():
                sides["better" if batch["rewards"][row] > rewards.mean() else "worse"].append(ratios[row])
    assert metrics["gvpo/logratio_mean"].item() == pytest.approx(torch.stack(means).mean().item())
    assert metrics["gvpo/logratio_optimum"].item() == pytest.approx(torch.stack(optima).mean().item())
    for side, values in sides.items():
        assert metrics[f"gvpo/logratio_mean_{side}"].item() == pytest.approx(torch.stack(values).mean().item())


def test_equal_rewards_have_no_better_and_no_worse_rows():
    metrics = gvpo(**one_group([1.0, 3.0], [0.3, 0.3]), beta=BETA).metrics
    assert not [key for key in metrics if key.endswith(("better", "worse"))]
    assert (metrics["gvpo/logratio_mean"].item(), str(metrics["gvpo/logratio_optimum"].item())) == (2.0, "0.0")


# Agreement with the loop, and of the three forms


@pytest.mark.parametrize("seed", range(3))
def test_loss_and_gradient_equal_a_loop_on_unequal_scattered_groups(seed):
    batch = make_batch(seed)
    torch.testing.assert_close(gvpo(**gvpo_inputs(batch), beta=BETA).loss, naive_loss(batch, BETA))
    ours = gradient(functools.partial(gvpo, beta=BETA), gvpo_inputs(batch))
    torch.testing.assert_close(ours, naive_gradient(batch, BETA))


def test_the_weight_form_has_the_gradient_of_the_square_form():
    batch = make_batch()
    weights = gvpo_weights(**gvpo_inputs(batch), beta=BETA)
    expected = torch.zeros_like(batch["logprobs"])
    for rows in rows_of(batch["group"]):
        for i in rows:
            expected[i] = -BETA / (len(rows) - 1) * weights[i] * batch["mask"][i] / len(rows_of(batch["group"]))
    torch.testing.assert_close(gradient(functools.partial(gvpo, beta=BETA), gvpo_inputs(batch)), expected)


def test_the_three_terms_make_the_loss_up_to_a_constant():
    # Var(beta l - R) = -2 beta {Cov(R, log pi) + beta Cov(log pi, log pi') - beta/2 Var(log pi)}
    #                   + Var(R + beta log pi')
    batch = make_batch()
    output = gvpo(**gvpo_inputs(batch), beta=BETA)
    advantage, variance, covariance = (
        output.metrics[f"gvpo/{term}_term"] for term in ("advantage", "variance", "covariance")
    )
    groups = Groups.of(batch["group"], 9)
    constant = groups.std(batch["rewards"] + BETA * sums(batch["ref_logprobs"], batch["mask"])).square().mean()
    terms = -2 * BETA * (advantage + BETA * covariance - BETA / 2 * variance) + constant
    torch.testing.assert_close(2 * output.loss, terms)


@pytest.mark.parametrize(("variance_weight", "covariance_weight"), [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0), (2.0, 0.5)])
def test_the_ablation_weights_scale_their_terms(variance_weight, covariance_weight):
    batch = make_batch()
    weights = (variance_weight, covariance_weight)
    ablated = functools.partial(gvpo, beta=BETA, variance_weight=variance_weight, covariance_weight=covariance_weight)
    torch.testing.assert_close(ablated(**gvpo_inputs(batch)).loss, naive_loss(batch, BETA, *weights))
    torch.testing.assert_close(gradient(ablated, gvpo_inputs(batch)), naive_gradient(batch, BETA, *weights))


@pytest.mark.parametrize(("variance_weight", "covariance_weight"), [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0)])
def test_ablated_gradients_are_those_of_the_three_terms(variance_weight, covariance_weight):
    # -beta {Cov(R, log pi) + c beta Cov(log pi, log pi') - v beta/2 Var(log pi)}, no square form involved.
    batch = make_batch()
    leaf = batch["logprobs"].clone().requires_grad_()
    policy, reference = sums(leaf, batch["mask"]), sums(batch["ref_logprobs"], batch["mask"])
    total = 0.0
    for rows in rows_of(batch["group"]):
        p, q, r = (value[rows] - value[rows].mean() for value in (policy, reference, batch["rewards"]))
        bracket = r @ p + covariance_weight * BETA * (p @ q) - variance_weight * BETA / 2 * (p @ p)
        total = total - BETA * bracket / (len(rows) - 1) / 3
    (expected,) = torch.autograd.grad(total, leaf)
    ablated = functools.partial(gvpo, beta=BETA, variance_weight=variance_weight, covariance_weight=covariance_weight)
    torch.testing.assert_close(gradient(ablated, gvpo_inputs(batch)), expected)


def test_the_weight_metric_is_of_the_ablated_weights():
    # One group: d loss / d logprob = -beta/(k-1) w on each scored token.
    inputs = one_group([0.0, 1.0, 2.0], [3.0, 0.0, 0.0], ref_logprobs=torch.tensor([[-1.0], [0.0], [-3.0]]).double())
    ablated = functools.partial(gvpo, beta=BETA, variance_weight=0.3, covariance_weight=2.0)
    weights = -gradient(ablated, inputs)[:, 0] * 2 / BETA
    assert ablated(**inputs).metrics["gvpo/weight_abs_mean"].item() == pytest.approx(weights.abs().mean().item())


# Identities


def test_identity_a_detaching_the_mean_log_ratio_leaves_the_gradient():
    batch = make_batch()
    leaf = batch["logprobs"].clone().requires_grad_()
    ratio = sums(leaf - batch["ref_logprobs"], batch["mask"])
    losses = []
    for rows in rows_of(batch["group"]):
        centred = ratio[rows] - ratio[rows].mean().detach()
        reward = batch["rewards"][rows] - batch["rewards"][rows].mean()
        losses.append((BETA * centred - reward).square().sum() / (2 * (len(rows) - 1)))
    (detached,) = torch.autograd.grad(sum(losses) / len(losses), leaf)
    torch.testing.assert_close(gradient(functools.partial(gvpo, beta=BETA), gvpo_inputs(batch)), detached)


def test_identity_b_the_weights_are_detached_and_undetached_ones_have_another_gradient():
    # Where they settle is tested on a tabular policy.
    batch = make_batch()
    leaf = batch["logprobs"].clone().requires_grad_()
    assert not gvpo_weights(**gvpo_inputs(batch, logprobs=leaf), beta=BETA).requires_grad
    policy, ratio = sums(leaf, batch["mask"]), sums(leaf - batch["ref_logprobs"], batch["mask"])
    total = 0.0
    for rows in rows_of(batch["group"]):
        weights = batch["rewards"][rows] - batch["rewards"][rows].mean() - BETA * (ratio[rows] - ratio[rows].mean())
        total = total - BETA / (len(rows) - 1) * (weights * policy[rows]).sum() / 3
    (undetached,) = torch.autograd.grad(total, leaf)
    right = gradient(functools.partial(gvpo, beta=BETA), gvpo_inputs(batch))
    assert (undetached - right).abs().max() > 0.1


def test_identity_c_the_loss_is_over_all_pairs():
    # 1/2 sum_i (d_i - dbar)^2 = 1/(4k) sum_ij (d_i - d_j)^2, d = R - beta l.
    batch = make_batch()
    d = batch["rewards"] - BETA * sums(batch["logprobs"] - batch["ref_logprobs"], batch["mask"])
    pairs = 0.0
    for rows in rows_of(batch["group"]):
        k = len(rows)
        pairs += sum((d[i] - d[j]) ** 2 for i in rows for j in rows) / (4 * k) / (k - 1) / 3
    torch.testing.assert_close(gvpo(**gvpo_inputs(batch), beta=BETA).loss, pairs)


def test_identity_d_a_pair_is_a_quarter_of_the_squared_margin_difference():
    # margins: implicit beta (l_1 - l_2) = 0.7 * (0.4 + 1.1), reward 2 - 0.5; k - 1 = 1.
    loss = gvpo(**one_group([0.4, -1.1], [2.0, 0.5]), beta=BETA).loss.item()
    assert loss == pytest.approx((BETA * 1.5 - 1.5) ** 2 / 4)


def test_identity_e_at_the_reference_the_gradient_is_beta_times_rloo():
    # RLOO is a mean over rows, GVPO over groups: equal for equal groups.
    batch = make_batch()
    batch["group"] = torch.tensor([5, 5, 5, 1, 1, 1, 3, 3, 3])
    batch["ref_logprobs"] = batch["logprobs"]
    ours = gradient(functools.partial(gvpo, beta=BETA), gvpo_inputs(batch))
    inputs = gvpo_inputs(batch, old_logprobs=batch["logprobs"])
    torch.testing.assert_close(ours, BETA * gradient(rloo, inputs), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("constant", [1.0, -300.0])
def test_identity_f_a_constant_added_to_a_prompts_rewards_changes_nothing(constant):
    batch = make_batch()
    shifted = batch["rewards"] + constant * (batch["group"] == 7)
    before, after = (gvpo(**gvpo_inputs(batch, rewards=r), beta=BETA) for r in (batch["rewards"], shifted))
    torch.testing.assert_close(before.loss, after.loss)
    torch.testing.assert_close(before.metrics, after.metrics)


def test_identity_g_the_loss_is_zero_at_the_optimum():
    # log pi = log pi' + R/beta - log Z(x): any constant per prompt stands for log Z.
    rewards, log_z = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64), torch.tensor([0.3, 0.3, -4.0, -4.0])
    inputs = one_group((rewards / BETA - log_z).tolist(), rewards.tolist(), group=torch.tensor([0, 0, 1, 1]))
    output = gvpo(**inputs, beta=BETA)
    assert output.loss.item() == pytest.approx(0.0, abs=1e-12)
    assert gradient(functools.partial(gvpo, beta=BETA), inputs).abs().max().item() < 1e-6
    assert output.metrics["gvpo/certificate"].item() == pytest.approx(0.0, abs=1e-7)
    assert output.metrics["gvpo/implicit_reward_corr"].item() == pytest.approx(1.0)
    assert output.metrics["gvpo/residual_ratio"].item() == pytest.approx(0.0, abs=1e-12)


def test_weights_sum_to_zero_in_each_group():
    batch = make_batch()
    weights = gvpo_weights(**gvpo_inputs(batch), beta=BETA)
    for rows in rows_of(batch["group"]):
        assert weights[rows].sum().item() == pytest.approx(0.0, abs=1e-14)
    assert weights.abs().max() > 0.1


def test_the_mean_is_over_groups_of_any_size():
    batch = make_batch()
    inputs = gvpo_inputs(batch)
    alone = [
        gvpo(**{key: value[rows] for key, value in inputs.items()}, beta=BETA).loss for rows in rows_of(batch["group"])
    ]
    torch.testing.assert_close(gvpo(**gvpo_inputs(batch), beta=BETA).loss, sum(alone) / 3)


def test_the_order_of_rows_does_not_matter():
    batch, order = make_batch(), torch.tensor([4, 8, 0, 2, 7, 1, 3, 6, 5])
    shuffled = {key: value[order] for key, value in batch.items()}
    torch.testing.assert_close(gvpo(**gvpo_inputs(shuffled)).loss, gvpo(**gvpo_inputs(batch)).loss)
    torch.testing.assert_close(gvpo_weights(**gvpo_inputs(shuffled)), gvpo_weights(**gvpo_inputs(batch))[order])


def test_rewards_and_beta_scale_together():
    batch = make_batch()
    small, large = (
        gvpo(**gvpo_inputs(batch), beta=0.2),
        gvpo(**gvpo_inputs(batch, rewards=5 * batch["rewards"]), beta=1.0),
    )
    torch.testing.assert_close(large.loss, 25 * small.loss)
    torch.testing.assert_close(large.metrics["gvpo/certificate"], small.metrics["gvpo/certificate"])


def test_long_completions_keep_their_digits_in_float32():
    # 4,000 tokens of about -3.5 nats: two sums of about -14,000, whose float32 rounding alone is 1e-3.
    reference = -3 - torch.rand(2, 4000, generator=torch.Generator().manual_seed(0))
    policy = reference + torch.tensor([[0.5], [0.0]]) / 4000
    inputs = one_group([0, 0], [1.0, 0.0], logprobs=policy, ref_logprobs=reference, mask=torch.ones(2, 4000))
    exact = gvpo(**{**inputs, "logprobs": policy.double(), "ref_logprobs": reference.double()}, beta=1.0).loss.item()
    assert exact == pytest.approx((0.5 - 1.0) ** 2 / 4, rel=1e-2)
    assert gvpo(**inputs, beta=1.0).loss.item() == pytest.approx(exact, rel=1e-5)


# Degenerate cases


def test_degenerate_group_of_one_raises():
    with pytest.raises(GroupTooSmall, match="gvpo compares the rows of a group, and group 4 has one"):
        gvpo(**one_group([0.0, 0.0, 0.0], [1.0, 0.0, 1.0], group=torch.tensor([0, 0, 4])))


def test_degenerate_equal_rewards_still_pull_to_the_reference():
    # R centred is 0, so w_i = -beta (l_i - lbar): a completion above its reference share is pushed down.
    inputs = one_group([1.0, -1.0], [0.1, 0.1])
    assert gvpo_weights(**inputs, beta=0.5).tolist() == [-0.5, 0.5]
    assert gvpo(**inputs, beta=0.5).loss.item() == pytest.approx(0.25)
    metrics = gvpo(**inputs, beta=0.5).metrics
    assert metrics["gvpo/implicit_reward_corr"].item() == 0.0
    assert metrics["gvpo/residual_ratio"].item() == 1.0


def test_degenerate_equal_rewards_at_the_reference_leave_nothing_to_learn():
    inputs = one_group([0.0, 0.0, 0.0], [0.1, 0.1, 0.1])
    assert gvpo(**inputs).loss.item() == 0.0
    assert gradient(gvpo, inputs).abs().max().item() == 0.0


def test_degenerate_empty_mask_counts_as_a_row_of_log_ratio_zero():
    inputs = one_group([2.0, 1.0], [1.0, 0.0], mask=torch.tensor([[1.0], [0.0]]))
    expected = gvpo(**one_group([2.0, 0.0], [1.0, 0.0]), beta=BETA).loss
    assert gvpo(**inputs, beta=BETA).loss.item() == expected.item()
    assert gradient(functools.partial(gvpo, beta=BETA), inputs)[1].item() == 0.0


def test_degenerate_all_negative_rewards_are_as_good_as_positive_ones():
    negative, positive = (gvpo_weights(**one_group([0.3, 0.0], r), beta=BETA) for r in ([-1.0, -2.0], [2.0, 1.0]))
    assert negative.tolist() == pytest.approx(positive.tolist())
    assert negative[0] > 0


def test_degenerate_one_truncated_row_is_dropped_as_a_row():
    # Dropping the row recomputes the means; zeroing its mask keeps it as an outcome of log-ratio 0, another loss.
    full = one_group([0.4, -0.2, 1.0], [1.0, 0.0, 0.0])
    dropped = gvpo(**{key: value[:2] for key, value in full.items()}, beta=BETA).loss.item()
    zeroed = gvpo(**{**full, "mask": torch.tensor([[1.0], [1.0], [0.0]])}, beta=BETA).loss.item()
    assert dropped == pytest.approx((BETA * 0.6 - 1.0) ** 2 / 4)
    assert abs(zeroed - dropped) > 0.01


@pytest.mark.parametrize("beta", [0.0, -0.1, float("nan")])
def test_beta_has_to_be_positive(beta):
    with pytest.raises(ObjectiveError, match=r"beta is .*; set it above 0"):
        gvpo(**one_group([0.0, 0.0], [1.0, 0.0]), beta=beta)
    with pytest.raises(ObjectiveError, match="set it above 0"):
        certificate(torch.zeros(2), torch.zeros(2), torch.zeros(2, dtype=torch.int64), beta)


def test_a_reward_that_is_not_finite_shows_in_the_loss():
    # The trainer skips such an update; silence here would hide it.
    assert gvpo(**one_group([0.0, 0.0], [float("nan"), 0.0])).loss.isnan()
