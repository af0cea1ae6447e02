"""EPA: one strong negative is DPO, by hand with weak ones, rows and tables alike."""

import functools
import math

import pytest
import torch

from gvpo.errors import ObjectiveError, ShapeError
from gvpo.objectives import dpo, dpo_rows, epa, epa_rows
from tests.objectives.batches import gradient, make_batch, pick, roles_of


def row_inputs(seed=0, *, weak=True, **changes):
    batch = make_batch(seed)
    roles = roles_of(batch["group"], weak=weak)
    return pick(batch, "logprobs", "ref_logprobs", "group", "mask", role=roles, **changes)


def some_sums(rows=5, negatives=3, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return -20 * torch.rand(*shape, generator=generator, dtype=torch.float64)

    return draw(rows), draw(rows, negatives), draw(rows), draw(rows, negatives)


@pytest.mark.parametrize("seed", range(3))
def test_one_strong_negative_is_dpo_in_value_and_gradient(seed):
    positive, negative, ref_positive, ref_negative = some_sums(negatives=1, seed=seed)
    leaves = [positive.requires_grad_(), negative.requires_grad_()]
    found = epa(positive, negative, ref_positive_logprobs=ref_positive, ref_negative_logprobs=ref_negative, beta=0.3)
    expected = dpo(
        positive, negative[:, 0], ref_chosen_logprobs=ref_positive, ref_rejected_logprobs=ref_negative[:, 0], beta=0.3
    )
    torch.testing.assert_close(found.loss, expected.loss, atol=1e-9, rtol=0)
    slopes = [torch.autograd.grad(output.loss, leaves, retain_graph=True) for output in (found, expected)]
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=0)
    for name in ("accuracy", "margin", "chosen_logratio", "rejected_logratio"):
        torch.testing.assert_close(found.metrics[f"epa/{name}"], expected.metrics[f"dpo/{name}"], atol=1e-9, rtol=0)


def test_on_rows_of_pairs_it_is_dpo_too():
    batch = row_inputs(weak=False)
    pairs = [index for index, name in enumerate(batch["group"].tolist()) if name == -2]  # the group of two
    two = {key: value[pairs] for key, value in batch.items() if key != "role"} | {"role": ("chosen", "strong")}
    torch.testing.assert_close(epa_rows(**two).loss, dpo_rows(**two).loss, atol=1e-9, rtol=0)
    torch.testing.assert_close(gradient(epa_rows, two), gradient(dpo_rows, two), atol=1e-9, rtol=0)


def test_by_hand_with_a_weak_negative_and_a_gap():
    # Implicit rewards at beta 1: positive 1; strong 0; weak 2. log(1 + e^-1 + 0.5 e^1), and the second log(1 + e^-1).
    negative = torch.tensor([[0.0, 2.0], [0.0, torch.nan]])
    zero = torch.zeros(2)
    output = epa(
        torch.ones(2),
        negative,
        ref_positive_logprobs=zero,
        ref_negative_logprobs=torch.zeros(2, 2),
        negative_mask=torch.tensor([[1, 1], [1, 0]]),
        weak_mask=torch.tensor([[0, 1], [0, 1]]),
        weak_weight=0.5,
        beta=1.0,
    )
    first = math.log(1 + math.exp(-1) + 0.5 * math.exp(1))
    assert output.loss.item() == pytest.approx((first + math.log(1 + math.exp(-1))) / 2, rel=1e-6)
    assert {key: value.item() for key, value in output.metrics.items()} == {
        "epa/accuracy": 1.0,
        "epa/margin": 1.0,
        "epa/weak_accuracy": 0.0,
        "epa/weak_margin": -1.0,
        "epa/chosen_logratio": 1.0,
        "epa/rejected_logratio": 0.0,
        "epa/weak_logratio": 2.0,
    }


def test_at_the_start_it_is_the_log_of_one_more_than_the_negatives():
    batch = row_inputs()
    output = epa_rows(**{**batch, "ref_logprobs": batch["logprobs"]})
    assert output.loss.item() == pytest.approx((math.log(4) + math.log(2) + math.log(3)) / 3)


def test_rows_are_the_table_with_gaps():
    batch = row_inputs(beta=0.4, weak_weight=0.3)
    sums = {key: (batch[key] * batch["mask"]).nansum(dim=1) for key in ("logprobs", "ref_logprobs")}
    # Groups 7 (rows 0 2 5 8), -2 (1 4), 40 (3 6 7): chosen first, then a strong one, then weak ones.
    table = torch.tensor([[2, 5, 8], [4, 0, 0], [6, 7, 0]])
    expected = epa(
        sums["logprobs"][[0, 1, 3]],
        sums["logprobs"][table],
        ref_positive_logprobs=sums["ref_logprobs"][[0, 1, 3]],
        ref_negative_logprobs=sums["ref_logprobs"][table],
        negative_mask=torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0]]),
        weak_mask=torch.tensor([[0, 1, 1], [0, 0, 0], [0, 1, 0]]),
        weak_weight=0.3,
        beta=0.4,
    )
    output = epa_rows(**batch)
    assert output.loss.item() == pytest.approx(expected.loss.item(), abs=1e-12)
    for key, value in expected.metrics.items():
        assert output.metrics[key].item() == pytest.approx(value.item(), abs=1e-12)


def test_no_weight_is_no_weak_negatives():
    batch = row_inputs()
    kept = [row for row, role in enumerate(batch["role"]) if role != "weak"]
    without = {key: value[kept] for key, value in batch.items() if key != "role"}
    expected = epa_rows(**without, role=tuple(batch["role"][row] for row in kept))
    output = epa_rows(**batch, weak_weight=0.0)
    torch.testing.assert_close(output.loss, expected.loss, atol=1e-12, rtol=0)
    slope = gradient(functools.partial(epa_rows, weak_weight=0.0), batch)
    assert (slope[[row for row, role in enumerate(batch["role"]) if role == "weak"]] == 0).all()


def test_far_apart_rewards_overflow_nothing():
    output = epa(
        torch.tensor([-1e4]),
        torch.tensor([[0.0]]),
        ref_positive_logprobs=torch.zeros(1),
        ref_negative_logprobs=torch.zeros(1, 1),
        beta=1.0,
    )
    assert output.loss.item() == 1e4


def test_the_error_names_inputs_of_wrong_shape():
    one, table = torch.zeros(2), torch.zeros(2, 3)
    good = {"ref_positive_logprobs": one, "ref_negative_logprobs": table}
    with pytest.raises(ShapeError, match=r"expected \[B, N\], N negatives per positive"):
        epa(one, one, **good)
    with pytest.raises(ShapeError, match=r"weak_mask has shape \(3, 2\); expected \(2, 3\)"):
        epa(one, table, **good, weak_mask=torch.zeros(3, 2))
    with pytest.raises(ShapeError, match=r"expected \[B, N\] with B = 2 positives"):
        epa(one, torch.zeros(4, 3), ref_positive_logprobs=one, ref_negative_logprobs=torch.zeros(4, 3))
    with pytest.raises(ObjectiveError, match="weak_weight is -1"):
        epa(one, table, **good, weak_weight=-1)
