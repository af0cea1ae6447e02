"""The regression and its presets: by hand, against a loop, their relation to GVPO, and degenerate cases."""

import functools
import statistics

import pytest
import torch

from gvpo.errors import GroupTooSmall, ObjectiveError, ShapeError
from gvpo.objectives import gvpo, pmd_mean, regression
from tests.objectives.batches import gradient, gvpo_inputs, make_batch, rows_of

BETA = 0.4


def naive(batch, *, anchor, value=None, pmd=False):
    """Compute the formula in plain Python. `pmd`: the mean over k of (e + V)^2 / 2, as policy mirror descent has it."""
    terms = []
    for rows in rows_of(batch["group"]):
        ratio = ((batch["logprobs"] - batch["ref_logprobs"]) * batch["mask"])[rows].sum(1).tolist()
        rewards = batch["rewards"][rows].tolist()
        e = [BETA * one - reward for one, reward in zip(ratio, rewards, strict=True)]
        centre = statistics.fmean(rewards if value is None else value[rows].tolist())
        spread = statistics.variance(e) if len(e) > 1 else 0.0
        square = statistics.fmean((one + centre) ** 2 for one in e)
        terms.append(square / 2 if pmd else spread / 2 + anchor / 2 * (statistics.fmean(e) + centre) ** 2)
    return statistics.fmean(terms)


def test_worked_example():
    # l = (0.5, 0), beta 2, R = (1, 0): e = (0, 0), so the variance is 0. V = 0.5, the mean reward: 1/2 (0 + 0.5)^2.
    one = torch.zeros(2, 1, dtype=torch.float64)
    inputs = {
        "logprobs": torch.tensor([[0.5], [0.0]], dtype=torch.float64),
        "ref_logprobs": one,
        "rewards": torch.tensor([1.0, 0.0]),
        "group": torch.tensor([0, 0]),
        "mask": torch.ones(2, 1),
        "beta": 2.0,
    }
    assert regression(**inputs).loss == 0
    output = pmd_mean(**inputs)
    assert output.loss.item() == pytest.approx(0.125)
    assert output.metrics["gvpo/anchor_term"].item() == pytest.approx(0.25)
    assert regression(**inputs, anchor=3.0, value=torch.tensor([0.1, 0.3])).loss.item() == pytest.approx(0.06)


@pytest.mark.parametrize("anchor", [0.0, 0.1, 1.0, 7.0])
@pytest.mark.parametrize("given", [False, True])
def test_losses_equal_a_loop_on_unequal_groups(anchor, given):
    batch = make_batch()
    value = torch.linspace(-1, 2, 9, dtype=torch.float64) if given else None
    output = regression(**gvpo_inputs(batch), beta=BETA, anchor=anchor, value=value)
    assert output.loss.item() == pytest.approx(naive(batch, anchor=anchor, value=value), rel=1e-12)


def test_without_an_anchor_it_is_gvpo_bit_by_bit():
    inputs = gvpo_inputs(make_batch(), beta=BETA)
    ours, theirs = regression(**inputs), gvpo(**inputs)
    assert torch.equal(ours.loss, theirs.loss)
    assert ours.metrics == theirs.metrics
    assert torch.equal(gradient(regression, inputs), gradient(gvpo, inputs))
    assert "gvpo/anchor_term" not in ours.metrics


def test_gvpo_has_the_anchor_of_the_mean_reward():
    inputs = gvpo_inputs(make_batch(), beta=BETA, anchor=0.3)
    assert torch.equal(gvpo(**inputs).loss, regression(**inputs).loss)
    assert gvpo(**inputs).metrics == regression(**inputs).metrics
    ablated = gvpo(**inputs, variance_weight=0.5).loss - gvpo(**{**inputs, "anchor": 0.0}, variance_weight=0.5).loss
    torch.testing.assert_close(ablated, regression(**inputs).loss - regression(**{**inputs, "anchor": 0.0}).loss)


def test_pmd_mean_is_the_mean_square_up_to_the_variances_denominator():
    batch = make_batch()
    keep = torch.tensor([row for rows in rows_of(batch["group"]) for row in rows[:2]])  # groups of two
    batch = {key: value[keep] for key, value in batch.items()}
    variance = regression(**gvpo_inputs(batch), beta=BETA).loss.item()
    exact = naive(batch, anchor=1.0, pmd=True)
    assert pmd_mean(**gvpo_inputs(batch), beta=BETA).loss.item() == pytest.approx(exact + variance / 2)


def test_at_the_reference_the_anchor_has_no_gradient():
    inputs = gvpo_inputs(make_batch(), beta=BETA)
    inputs["ref_logprobs"] = inputs["logprobs"]
    assert torch.equal(gradient(pmd_mean, inputs), gradient(gvpo, inputs))


def test_the_anchor_sees_a_shift_of_all_rows_that_the_variance_does_not():
    inputs = gvpo_inputs(make_batch(), beta=BETA)
    first = (inputs["mask"].cumsum(1).eq(1) & (inputs["mask"] != 0)).double()
    shifted = {**inputs, "logprobs": inputs["logprobs"] - 3.0 * first}
    torch.testing.assert_close(regression(**shifted).loss, regression(**inputs).loss)
    assert pmd_mean(**shifted).loss > pmd_mean(**inputs).loss + 0.1
    push = gradient(functools.partial(regression, anchor=1.0), shifted) - gradient(regression, shifted)
    assert (push[inputs["mask"] != 0] < 0).all()  # a descent step raises every log-prob


def test_at_the_optimum_with_its_own_value_the_loss_is_zero_for_every_anchor():
    batch = make_batch()
    first = (batch["mask"].cumsum(1).eq(1) & (batch["mask"] != 0)).double()
    value = torch.tensor([0.7, -0.2, 1.1], dtype=torch.float64)[torch.unique(batch["group"], return_inverse=True)[1]]
    batch["logprobs"] = batch["ref_logprobs"] + first * ((batch["rewards"] - value) / BETA)[:, None]
    for anchor in (0.0, 0.5, 10.0):
        assert regression(**gvpo_inputs(batch), beta=BETA, anchor=anchor, value=value).loss.item() < 1e-25


def test_degenerate_groups_of_one_have_only_the_anchors_term():
    batch = make_batch()
    alone = gvpo_inputs({**batch, "group": torch.arange(9)}, beta=BETA)
    assert regression(**alone).loss == 0
    value = torch.linspace(-1, 2, 9, dtype=torch.float64)
    output = regression(**alone, anchor=0.5, value=value)
    expected = naive({**batch, "group": torch.arange(9)}, anchor=0.5, value=value)
    assert output.loss.item() == pytest.approx(expected, rel=1e-12)
    assert all(metric.isfinite() for metric in output.metrics.values())
    with pytest.raises(GroupTooSmall):
        gvpo(**alone, anchor=1.0)


def test_a_large_offset_of_rewards_and_value_cancels():
    inputs = gvpo_inputs(make_batch(dtype=torch.float32), beta=BETA, anchor=1.0)
    rewards, value = inputs["rewards"].double(), torch.zeros(9, dtype=torch.float64)
    near = regression(**{**inputs, "rewards": rewards}, value=value).loss
    far = regression(**{**inputs, "rewards": rewards + 1e9}, value=value + 1e9).loss
    torch.testing.assert_close(near, far)


def test_values_out_of_range():
    inputs = gvpo_inputs(make_batch())
    for objective in (regression, gvpo):
        with pytest.raises(ObjectiveError, match=r"anchor is -0\.1; set it to at least 0"):
            objective(**inputs, anchor=-0.1)
    with pytest.raises(ObjectiveError, match="beta is 0"):
        regression(**inputs, beta=0.0)
    with pytest.raises(ShapeError, match=r"value has shape \(3,\); expected \(9,\)"):
        regression(**inputs, value=torch.zeros(3))
