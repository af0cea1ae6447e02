"""GVPO on groups whose rows come from different sources: the optimum needs only the union of their supports."""

import pytest
import torch

from gvpo.objectives import gvpo, gvpo_weights
from tests.objectives.tabular import TabularPolicy, divergence
from tests.objectives.test_gvpo_learns import BETA, COUNT, OPTIMUM, PAIR_ROWS, PAIRS, START, minimise

EXPERT = torch.zeros(COUNT, dtype=torch.float64)
EXPERT[[3, 8]] = torch.tensor([0.75, 0.25], dtype=torch.float64)
"""A source with two answers."""
HALVES = [range(7), range(7, COUNT)]
"""Completions of two sources, neither of which has all of them."""


def pairs_of(first, second):
    """Return every group of one row of each source: its rows among all completions, and the inputs of `gvpo`."""
    wanted = [COUNT * one + other for one in first for other in second]
    rows = torch.isin(PAIRS["group"], torch.tensor(wanted))
    return PAIR_ROWS[rows], {name: values[rows] for name, values in PAIRS.items()}


@pytest.mark.parametrize(("sources", "reaches"), [(HALVES, True), ((HALVES[0], HALVES[0]), False)])
def test_the_supports_of_two_sources_are_joined(sources, reaches):
    rows, inputs = pairs_of(*sources)
    policy = minimise(TabularPolicy(seed=2), lambda logprobs: gvpo(logprobs[rows], **inputs, beta=BETA).loss, 100)
    distance = divergence(policy.log_distribution().detach(), OPTIMUM)
    assert distance < 1e-6 if reaches else distance > 0.05


def test_one_live_row_per_group_is_enough():
    policy = TabularPolicy(seed=2)
    optimizer = torch.optim.Adam([policy.logits], lr=0.1, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, total_iters=300)
    for _ in range(300):
        optimizer.zero_grad()
        logprobs = policy.logprobs()
        live = logprobs.detach().sum(dim=1).exp()
        chance = torch.outer(live, EXPERT).reshape(-1).repeat_interleave(2)
        weights = gvpo_weights(logprobs[PAIR_ROWS], **PAIRS, beta=BETA)
        (-BETA * (chance * weights * logprobs[PAIR_ROWS].sum(dim=1)).sum()).backward()
        optimizer.step()
        schedule.step()
    assert divergence(policy.log_distribution().detach(), OPTIMUM) < 0.01 * START
