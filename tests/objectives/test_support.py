"""Which rows may be absent: the optimum of GVPO under unions of sources and dropped rows, on an exact table.

Counts are sampling distributions of small fractions, as in `test_gvpo_learns`. A row is dropped by its outcome in a
fixed share of the cases, so the counts of such rows are smaller.
"""

import pytest
import torch

from gvpo.objectives import gvpo, rloo
from tests.objectives.tabular import MASK, TabularPolicy, divergence, optimum
from tests.objectives.test_gvpo_learns import BETA, COUNT, OPTIMUM, REFERENCE, REWARDS, group_of, minimise

LOW, LONG = REWARDS.lt(REWARDS.median()), MASK.sum(dim=1).eq(MASK.shape[1])
"""Completions that fail, and those that take the longest."""


def settled(rows, inputs):
    """Return the distribution at which GVPO settles on one group."""
    policy = minimise(TabularPolicy(seed=2), lambda logprobs: gvpo(logprobs[rows], **inputs, beta=BETA).loss)
    return policy.log_distribution().detach()


def test_two_sources_reach_the_optimum_together_and_neither_does_alone():
    first = torch.zeros(COUNT, dtype=torch.int64)
    first[REFERENCE.sum(dim=1).topk(7).indices] = 3
    second = 2 * (first == 0).long()
    for source in (first, second):
        assert divergence(settled(*group_of(source)), OPTIMUM) > 0.1
    assert divergence(settled(*group_of(first + second)), OPTIMUM) < 1e-10


@pytest.mark.parametrize("dropped", [LOW, ~LOW, LONG], ids=["failures", "successes", "long ones"])
def test_dropping_rows_by_their_outcome_keeps_the_optimum_if_some_are_left(dropped):
    counts = torch.where(dropped, 1, 4)
    assert divergence(settled(*group_of(counts)), OPTIMUM) < 1e-10


@pytest.mark.parametrize("dropped", [LOW, LONG], ids=["failures", "a hard deadline"])
def test_dropping_all_of_them_loses_the_support_and_the_optimum(dropped):
    found = settled(*group_of(torch.where(dropped, 0, 4)))
    assert divergence(found, OPTIMUM) > 0.1
    assert divergence(found[~dropped].log_softmax(0), OPTIMUM[~dropped].log_softmax(0)) < 1e-8


def pushed(counts):
    """Return [COUNT] how much RLOO's expected update raises each completion's log-prob, on rows in these counts."""
    rows, inputs = group_of(counts)
    del inputs["ref_logprobs"]
    logprobs = REFERENCE.clone().requires_grad_()
    rloo(logprobs[rows], old_logprobs=REFERENCE[rows], **inputs).loss.backward()
    return -logprobs.grad[:, 0]  # all scored tokens of a row have one coefficient


def test_dropping_failures_turns_the_direction_of_policy_gradients():
    """The baseline rises, so that completions better than the policy's mean are made less likely."""
    whole, thinned = (pushed(counts) for counts in (torch.full((COUNT,), 4), torch.where(LOW, 1, 4)))
    torch.testing.assert_close(whole.sign(), (REWARDS - REWARDS.mean()).sign())
    turned = (whole > 0) & (thinned < 0)
    assert turned.any()
    assert torch.cosine_similarity(whole, thinned, dim=0) < 0.95


NOISE = 1.0


def noisy(kept_of_four):
    """Return rows whose rewards are their true ones plus or minus a coin, thinned if the observed one is below 0."""
    observed = torch.cat([REWARDS + NOISE, REWARDS - NOISE])
    counts = torch.where(observed < 0, kept_of_four, 4)
    outcomes = torch.repeat_interleave(torch.arange(2 * COUNT), counts)
    rows = outcomes % COUNT
    inputs = {"ref_logprobs": REFERENCE[rows], "rewards": observed[outcomes], "mask": MASK[rows]}
    seen = (counts * observed).view(2, COUNT).sum(0) / counts.view(2, COUNT).sum(0)
    return rows, {**inputs, "group": torch.zeros(len(rows), dtype=torch.int64)}, seen


def test_with_noisy_rewards_dropping_by_outcome_moves_gvpos_optimum():
    """It is then that of the mean reward of the rows that are left."""
    rows, inputs, _ = noisy(4)
    assert divergence(settled(rows, inputs), OPTIMUM) < 1e-10
    rows, inputs, seen = noisy(1)
    found = settled(rows, inputs)
    assert divergence(found, OPTIMUM) > 0.01
    # the residual noise is constant at the optimum, so rows of one completion count by their mean reward
    assert divergence(found, optimum(REFERENCE.sum(dim=1), seen, BETA)) < 1e-8
