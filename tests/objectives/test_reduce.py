"""The three ways from tokens to a scalar."""

import pytest
import torch

from gvpo.errors import ObjectiveError
from gvpo.objectives.clip import clipped_share, clipped_surrogate
from gvpo.objectives.reduce import reduce_tokens, row_means, row_sums, token_mean

VALUES = torch.tensor([[1.0, 2.0, 3.0], [10.0, 99.0, 99.0], [99.0, 99.0, 99.0]])
SCORED = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])


def test_sums_and_means_of_rows_with_an_empty_one():
    assert row_sums(VALUES, SCORED).tolist() == [6.0, 10.0, 0.0]
    assert row_means(VALUES, SCORED).tolist() == [2.0, 10.0, 0.0]


def test_the_token_mean_is_over_four_tokens():
    assert token_mean(VALUES, SCORED).item() == 4.0


def test_a_batch_without_a_scored_token_has_token_mean_zero():
    assert token_mean(VALUES, torch.zeros_like(SCORED)).item() == 0.0


@pytest.mark.parametrize(
    ("reduction", "max_length", "expected"),
    [
        ("sequence_mean", None, (2 + 10 + 0) / 3),
        ("token_mean", None, 16 / 4),
        ("constant", 8, (6 + 10 + 0) / 3 / 8),
    ],
)
def test_each_reduction(reduction, max_length, expected):
    assert reduce_tokens(VALUES, SCORED, reduction, max_length).item() == pytest.approx(expected)


def test_errors_of_reductions():
    with pytest.raises(ObjectiveError, match="choose one of sequence_mean, token_mean, constant"):
        reduce_tokens(VALUES, SCORED, "sum")
    with pytest.raises(ObjectiveError, match="divides by max_length; pass it"):
        reduce_tokens(VALUES, SCORED, "constant")
    with pytest.raises(ObjectiveError, match="max_length is 0; set it above 0"):
        reduce_tokens(VALUES, SCORED, "constant", 0)


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "slope", "clipped"),
    [
        # Bounds 0.8 and 1.3. A positive advantage: nothing is gained above 1.3, below 0.8 the gradient pulls back.
        (1.5, 2.0, 2.6, 0.0, (0.0, 1.0)),
        (0.5, 2.0, 1.0, 2.0, (0.0, 0.0)),
        # A negative one: nothing is gained below 0.8, above 1.3 the gradient still pushes down.
        (0.5, -2.0, -1.6, 0.0, (1.0, 0.0)),
        (1.5, -2.0, -3.0, -2.0, (0.0, 0.0)),
        (1.0, 2.0, 2.0, 2.0, (0.0, 0.0)),
        (1.5, 0.0, 0.0, 0.0, (0.0, 0.0)),
    ],
)
def test_the_clip_acts_on_one_side_per_sign(ratio, advantage, value, slope, clipped):
    leaf = torch.tensor([ratio], requires_grad=True)
    surrogate = clipped_surrogate(leaf, torch.tensor([advantage]), 0.2, 0.3)
    surrogate.sum().backward()
    assert surrogate.item() == pytest.approx(value)
    assert leaf.grad.item() == pytest.approx(slope)
    shares = clipped_share(leaf.detach(), torch.tensor([advantage]), 0.2, 0.3)
    assert tuple(share.item() for share in shares) == clipped


def test_infinite_bounds_do_not_clip():
    ratio = torch.tensor([1e-6, 1e6])
    assert clipped_surrogate(ratio, torch.tensor([-1.0, 1.0]), torch.inf, torch.inf).tolist() == pytest.approx(
        [-1e-6, 1e6]
    )


def test_a_negative_bound_is_rejected():
    with pytest.raises(ObjectiveError, match=r"clip_low is -0\.1; set it to at least 0"):
        clipped_surrogate(torch.ones(1), torch.ones(1), -0.1, 0.2)
