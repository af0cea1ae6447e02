"""Tests of DPO: hand-computed values, at its start, on rows and on pairs, and rejected inputs."""

import math

import pytest
import torch

from gvpo.errors import GroupTooSmall, ObjectiveError, ShapeError
from gvpo.objectives import dpo, dpo_rows
from tests.objectives.batches import gradient, make_batch, pick, roles_of, rows_of

ZERO = torch.zeros(2)


def row_inputs(seed=0, **changes):
    batch = make_batch(seed)
    roles = roles_of(batch["group"], weak=False)
    return pick(batch, "logprobs", "ref_logprobs", "group", "mask", role=roles, **changes)


def test_hand_computed_values():
    # Log-ratios 1 and -1, and 0 and 3: margins 0.5 * 2 and 0.5 * -3.
    output = dpo(
        torch.tensor([-1.0, -4.0]),
        torch.tensor([-3.0, -2.0]),
        ref_chosen_logprobs=torch.tensor([-2.0, -4.0]),
        ref_rejected_logprobs=torch.tensor([-2.0, -5.0]),
        beta=0.5,
    )
    expected = (math.log(1 + math.exp(-1.0)) + math.log(1 + math.exp(1.5))) / 2
    assert output.loss.item() == pytest.approx(expected)
    assert {key: value.item() for key, value in output.metrics.items()} == pytest.approx(
        {"dpo/accuracy": 0.5, "dpo/margin": -0.25, "dpo/chosen_logratio": 0.5, "dpo/rejected_logratio": 1.0}
    )


@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_the_first_loss_is_ln_2_and_every_pair_a_tie(beta):
    batch = row_inputs(beta=beta)
    output = dpo_rows(**{**batch, "ref_logprobs": batch["logprobs"].clone()})
    assert output.loss.item() == pytest.approx(math.log(2), abs=1e-15)
    assert output.metrics["dpo/accuracy"].item() == 0.5
    assert output.metrics["dpo/margin"].item() == 0.0


def test_rows_are_pairs_of_each_negative_with_its_groups_chosen_row():
    batch = row_inputs(beta=0.7)
    sums = {key: (batch[key] * (batch["mask"] == 1)).nansum(dim=1) for key in ("logprobs", "ref_logprobs")}
    pairs = [(rows[0], other) for rows in rows_of(batch["group"]) for other in rows[1:]]
    chosen, rejected = map(list, zip(*pairs, strict=True))
    expected = dpo(
        sums["logprobs"][chosen],
        sums["logprobs"][rejected],
        ref_chosen_logprobs=sums["ref_logprobs"][chosen],
        ref_rejected_logprobs=sums["ref_logprobs"][rejected],
        beta=0.7,
    )
    output = dpo_rows(**batch)
    assert len(pairs) == 6
    assert output.loss.item() == pytest.approx(expected.loss.item(), abs=1e-12)
    for key, value in expected.metrics.items():
        assert output.metrics[key].item() == pytest.approx(value.item(), abs=1e-12)


def test_the_gradient_raises_the_chosen_and_lowers_the_rejected_by_the_same():
    batch = row_inputs()
    slope = gradient(dpo_rows, batch).sum(dim=1) / batch["mask"].sum(dim=1)  # one c per row
    for rows in rows_of(batch["group"]):
        assert slope[rows[0]] < 0
        assert (slope[rows[1:]] > 0).all()
        assert slope[rows].sum().item() == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize(
    ("role", "error", "message"),
    [
        (("chosen", "strong", "weak"), ObjectiveError, r"dpo has no weak negatives \(row 2 is one\)"),
        (("chosen", "chosen", "strong"), ObjectiveError, "group 5 has 2 chosen rows; dpo needs exactly one"),
        (("strong",) * 3, ObjectiveError, "group 5 has 0 chosen rows"),
        (
            ("chosen", "strong", "best"),
            ObjectiveError,
            "role 'best' does not exist; choose one of chosen, strong, weak",
        ),
        ("chosen", ShapeError, "role has one text for 3 rows"),
    ],
)
def test_roles_that_make_no_pairs_are_rejected(role, error, message):
    rows = torch.zeros(3, 1)
    with pytest.raises(error, match=message):
        dpo_rows(rows, ref_logprobs=rows, role=role, group=torch.tensor([5, 5, 5]), mask=torch.ones(3, 1))


def test_a_chosen_row_without_negatives_is_rejected():
    rows = torch.zeros(3, 1)
    with pytest.raises(GroupTooSmall, match="group 7 has one"):
        dpo_rows(
            rows,
            ref_logprobs=rows,
            role=("chosen", "strong", "chosen"),
            group=torch.tensor([5, 5, 7]),
            mask=torch.ones(3, 1),
        )


@pytest.mark.parametrize("beta", [0.0, -1.0, math.nan])
def test_beta_must_be_above_zero(beta):
    with pytest.raises(ObjectiveError, match="set it above 0"):
        dpo(ZERO, ZERO, ref_chosen_logprobs=ZERO, ref_rejected_logprobs=ZERO, beta=beta)


def test_the_error_names_sums_of_the_wrong_shape():
    with pytest.raises(ShapeError, match=r"ref_rejected_logprobs has shape \(3,\); expected \(2,\)"):
        dpo(ZERO, ZERO, ref_chosen_logprobs=ZERO, ref_rejected_logprobs=torch.zeros(3))
    with pytest.raises(ShapeError, match="one sum per sequence"):
        dpo(ZERO[:0], ZERO[:0], ref_chosen_logprobs=ZERO[:0], ref_rejected_logprobs=ZERO[:0])
    with pytest.raises(ShapeError, match=r"dtype torch\.int64"):
        dpo(ZERO, ZERO.long(), ref_chosen_logprobs=ZERO, ref_rejected_logprobs=ZERO)
