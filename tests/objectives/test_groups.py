"""Arithmetic within groups, against plain Python on scattered rows."""

import statistics

import pytest
import torch

from gvpo.errors import GroupTooSmall, ShapeError
from gvpo.objectives.groups import Groups

GROUP = torch.tensor([9, -3, 9, 9, -3])
VALUES = torch.tensor([1.0, 10.0, 2.0, 6.0, 14.0], dtype=torch.float64)


@pytest.fixture
def groups() -> Groups:
    return Groups.of(GROUP, 5)


def test_ids_ascend_and_sizes_count_rows(groups):
    assert groups.ids.tolist() == [-3, 9]
    assert groups.sizes.tolist() == [2, 3]
    assert groups.first.tolist() == [1, 0]


def test_sums_and_means(groups):
    assert groups.sum(VALUES).tolist() == [24.0, 9.0]
    assert groups.mean(VALUES).tolist() == [12.0, 3.0]
    assert groups.spread(groups.mean(VALUES)).tolist() == [3.0, 12.0, 3.0, 3.0, 12.0]


def test_centred_values(groups):
    # 1, 2, 6 less 3; 10, 14 less 12.
    assert groups.centre(VALUES).tolist() == [-2.0, -2.0, -1.0, 3.0, 2.0]


def test_std_has_k_minus_one(groups):
    expected = [statistics.stdev([10.0, 14.0]), statistics.stdev([1.0, 2.0, 6.0])]
    torch.testing.assert_close(groups.std(VALUES).tolist(), expected)


def test_leave_one_out_subtracts_the_others_mean(groups):
    # 1 - (2+6)/2, 10 - 14, 2 - (1+6)/2, 6 - (1+2)/2, 14 - 10.
    torch.testing.assert_close(groups.leave_one_out(VALUES).tolist(), [-3.0, -4.0, -1.5, 4.5, 4.0])


def test_leave_one_out_keeps_float64_where_the_factor_is_not_a_binary_fraction():
    values = torch.arange(7, dtype=torch.float64)
    ours = Groups.of(torch.zeros(7, dtype=torch.int64), 7).leave_one_out(values)
    expected = [value - statistics.fmean(x for x in range(7) if x != value) for value in range(7)]
    torch.testing.assert_close(ours.tolist(), expected, rtol=1e-14, atol=1e-14)


def test_covariance_of_centred_values(groups):
    other = torch.tensor([0.5, 1.0, -2.0, 3.0, 0.0], dtype=torch.float64)
    expected = [
        statistics.covariance([10.0, 14.0], [1.0, 0.0]),
        statistics.covariance([1.0, 2.0, 6.0], [0.5, -2.0, 3.0]),
    ]
    ours = groups.covariance(groups.centre(VALUES), groups.centre(other))
    torch.testing.assert_close(ours.tolist(), expected)


def test_equal_values_centre_to_exactly_zero():
    # The float32 mean of seven 0.1 is not 0.1.
    groups = Groups.of(torch.zeros(7, dtype=torch.int64), 7)
    assert torch.full((7,), 0.1).mean().item() != torch.tensor(0.1).item()
    assert groups.centre(torch.full((7,), 0.1)).tolist() == [0.0] * 7


def test_a_large_offset_costs_no_digits():
    groups = Groups.of(torch.zeros(3, dtype=torch.int64), 3)
    assert groups.centre(torch.tensor([1e6 + 0.25, 1e6 + 0.5, 1e6 + 0.75])).tolist() == [-0.25, 0.0, 0.25]


def test_the_gradient_of_centring_ignores_its_anchor():
    groups = Groups.of(torch.tensor([0, 1, 0, 1, 1]), 5)
    assert torch.autograd.gradcheck(groups.centre, (VALUES.clone().requires_grad_(),))


@pytest.mark.parametrize("offset", [0.0, 900.0, -900.0])
def test_log_mean_exp_survives_large_values(groups, offset):
    values = torch.tensor([0.0, 1.0, 1.0, 2.0, -1.0], dtype=torch.float64)
    expected = [
        torch.tensor([1.0, -1.0], dtype=torch.float64).exp().mean().log() + offset,
        torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64).exp().mean().log() + offset,
    ]
    torch.testing.assert_close(groups.log_mean_exp(values + offset), torch.stack(expected))


def test_the_error_names_a_group_of_one():
    with pytest.raises(
        GroupTooSmall, match=r"gvpo compares the rows of a group, and group 8 has one; drop such groups \(2"
    ):
        Groups.of(torch.tensor([1, 1, 8, 9]), 4).require_pairs("gvpo")


def test_shapes_and_dtypes_of_ids():
    with pytest.raises(ShapeError, match=r"group has shape \(2,\); expected \(3,\)"):
        Groups.of(torch.tensor([1, 1]), 3)
    with pytest.raises(ShapeError, match=r"group has dtype torch.int32; expected torch.int64"):
        Groups.of(torch.tensor([1, 1], dtype=torch.int32), 2)
