"""Tests of PoFT: hand-computed values, and that its gradient is SFT's times tau."""

import functools

import pytest
import torch

from gvpo.errors import ShapeError
from gvpo.objectives import poft, sft
from tests.objectives.batches import gradient, make_batch, pick

by_row = functools.partial(sft, reduction="sequence_mean")


def inputs(seed=0):
    return pick(make_batch(seed), "logprobs", "mask", "aligned_mean_logprobs")


def test_hand_computed_values():
    # Means -2 and -4; the aligned models' -1 and -3, so -2, and -1: margins 0 and -3.
    logprobs = torch.tensor([[-1.0, -3.0], [-4.0, 99.0]])
    aligned = torch.tensor([[-1.0, -3.0], [-1.0, -1.0]])
    output = poft(logprobs, mask=torch.tensor([[1, 1], [1, 0]]), aligned_mean_logprobs=aligned)
    softplus, tau = torch.nn.functional.softplus(torch.tensor([0.0, 3.0])), torch.sigmoid(torch.tensor([0.0, 3.0]))
    assert output.loss.item() == pytest.approx(softplus.mean().item())
    assert {key: value.item() for key, value in output.metrics.items()} == pytest.approx(
        {
            "poft/margin": -1.5,
            "poft/tau": tau.mean().item(),
            "poft/tau_std": (tau[1] - tau[0]).item() / 2,
            "poft/mean_logprob": -3.0,
            "poft/nll": 8 / 3,
        }
    )


def test_the_gradient_is_sfts_by_row_times_tau():
    batch = inputs()
    scored = batch["mask"] == 1
    mean = (batch["logprobs"] * scored).sum(dim=1) / scored.sum(dim=1).clamp(min=1)
    tau = torch.sigmoid(batch["aligned_mean_logprobs"].mean(dim=1) - mean)
    expected = tau[:, None] * gradient(by_row, pick(batch, "logprobs", "mask"))
    torch.testing.assert_close(gradient(poft, batch), expected)
    assert (tau - 0.5).abs().max() > 0.05


def test_where_the_policy_is_as_good_as_the_aligned_models_the_gradient_is_half_of_sfts():
    batch = inputs()
    scored = batch["mask"] == 1
    own = (batch["logprobs"] * scored).sum(dim=1, keepdim=True) / scored.sum(dim=1, keepdim=True)
    half = gradient(by_row, pick(batch, "logprobs", "mask")) / 2
    torch.testing.assert_close(gradient(poft, {**batch, "aligned_mean_logprobs": own}), half)


def test_whole_numbers_and_no_models_are_rejected():
    batch = inputs()
    with pytest.raises(ShapeError, match=r"dtype torch\.int64"):
        poft(**{**batch, "aligned_mean_logprobs": torch.zeros(9, 2, dtype=torch.int64)})
    with pytest.raises(ShapeError, match="M >= 1 models"):
        poft(**{**batch, "aligned_mean_logprobs": torch.zeros(9, 0)})
