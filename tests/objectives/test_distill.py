"""Distillation by hand, against a loop, its relation to GVPO, and its optimum from any sampler."""

import statistics

import pytest
import torch

from gvpo.errors import GroupTooSmall, ShapeError
from gvpo.objectives import distill, gvpo
from tests.objectives.batches import gradient, gvpo_inputs, make_batch, pick, rows_of
from tests.objectives.tabular import COMPLETIONS, MASK, TabularPolicy, divergence
from tests.objectives.test_gvpo_learns import SAMPLERS, minimise

COUNT = len(COMPLETIONS)


def distill_inputs(batch, **changes):
    return pick(batch, "logprobs", "group", "mask", teacher_logprobs=batch["ref_logprobs"], **changes)


def test_worked_example():
    # l = (1, -1): mean 0, variance (1 + 1) / 1 = 2, loss 1.
    inputs = {"group": torch.tensor([0, 0]), "mask": torch.ones(2, 1)}
    policy, teacher = torch.tensor([[-1.0], [-2.5]]), torch.tensor([[-2.0], [-1.5]])
    output = distill(policy, teacher_logprobs=teacher, **inputs)
    assert output.loss == 1
    assert output.metrics["distill/variance"] == 2
    assert output.metrics["distill/logratio_mean"] == 0
    assert output.metrics["distill/logratio_gap_max"] == 1


def test_the_loss_equals_a_loop_on_unequal_groups():
    batch = make_batch()
    ratios = ((batch["logprobs"] - batch["ref_logprobs"]) * batch["mask"]).sum(1).tolist()
    halves = [statistics.variance(ratios[i] for i in rows) / 2 for rows in rows_of(batch["group"])]
    output = distill(**distill_inputs(batch))
    assert output.loss.item() == pytest.approx(statistics.fmean(halves), rel=1e-12)
    assert output.metrics["distill/logratio_mean"].item() == pytest.approx(statistics.fmean(ratios), rel=1e-12)


def test_it_is_gvpo_with_the_teachers_log_ratio_as_the_reward():
    batch, beta = make_batch(), 0.3
    teacher, reference = batch["old_logprobs"], batch["ref_logprobs"]
    rewards = beta * ((teacher - reference) * batch["mask"]).sum(1)
    by_gvpo = gvpo(**gvpo_inputs(batch, rewards=rewards, beta=beta)).loss / beta**2
    torch.testing.assert_close(distill(**distill_inputs(batch) | {"teacher_logprobs": teacher}).loss, by_gvpo)


def test_on_own_samples_its_gradient_is_that_of_the_kl():
    # Every pair of completions, weighted by its probability, is the expectation over groups of two.
    policy, teacher = TabularPolicy(seed=3), TabularPolicy(seed=1)
    own, other = policy.logprobs(), teacher.logprobs().detach()
    kl = (own.sum(1).exp() * (own.sum(1) - other.sum(1))).sum()
    (expected,) = torch.autograd.grad(kl, policy.logits, retain_graph=True)
    first, second = torch.meshgrid(torch.arange(COUNT), torch.arange(COUNT), indexing="ij")
    chance, total = own.detach().sum(1).exp(), torch.zeros_like(policy.logits)
    for i, j in zip(first.reshape(-1).tolist(), second.reshape(-1).tolist(), strict=True):
        rows = torch.tensor([i, j])
        one = distill(own[rows], teacher_logprobs=other[rows], group=torch.tensor([0, 0]), mask=MASK[rows])
        (slope,) = torch.autograd.grad(one.loss, policy.logits, retain_graph=True)
        total += chance[i] * chance[j] * slope
    torch.testing.assert_close(total, expected)


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_its_optimum_is_the_teacher_from_any_sampler_with_full_support(sampler):
    rows = torch.repeat_interleave(torch.arange(COUNT), SAMPLERS[sampler])
    teacher = TabularPolicy(seed=1).logprobs().detach()
    rest = {"group": torch.zeros(len(rows), dtype=torch.int64), "mask": MASK[rows]}
    policy = TabularPolicy(seed=2)
    assert divergence(policy.log_distribution().detach(), teacher.sum(1)) > 0.3
    minimise(policy, lambda logprobs: distill(logprobs[rows], teacher_logprobs=teacher[rows], **rest).loss)
    assert divergence(policy.log_distribution().detach(), teacher.sum(1)) < 1e-10


def test_a_sampler_that_leaves_completions_out_does_not_give_the_teacher():
    teacher = TabularPolicy(seed=1).logprobs().detach()
    rows = teacher.sum(1).topk(5).indices
    rest = {"group": torch.zeros(5, dtype=torch.int64), "mask": MASK[rows]}
    policy = minimise(
        TabularPolicy(seed=2), lambda logprobs: distill(logprobs[rows], teacher_logprobs=teacher[rows], **rest).loss
    )
    assert divergence(policy.log_distribution().detach(), teacher.sum(1)) > 0.1


def test_degenerate_cases():
    batch = make_batch()
    with pytest.raises(GroupTooSmall, match="distill compares"):
        distill(**distill_inputs(batch, group=torch.arange(9)))
    with pytest.raises(ShapeError, match=r"teacher_logprobs has shape"):
        distill(**distill_inputs(batch) | {"teacher_logprobs": batch["ref_logprobs"][:, :2]})
    same = distill_inputs(batch) | {"teacher_logprobs": batch["logprobs"]}
    assert distill(**same).loss == 0
    assert (gradient(distill, same) == 0).all()
    empty = distill_inputs(batch) | {"mask": torch.zeros(9, 5)}
    assert distill(**empty).loss == 0  # an empty mask is a row with l = 0
