"""An anchor moves the optimum: exact expectations on a table of 15 completions, without sampling noise.

A sampling distribution mu of fractions n_y / N is one group of N rows in which completion y occurs n_y times. Its
variance with N - 1 is N/(N-1) times that of mu, so the anchor is multiplied by the same factor: the loss is then
N/(N-1) times the loss under mu. The reference is the policy whose next tokens are equally likely, so that it is such a
distribution itself.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from gvpo.objectives import gvpo, regression
from gvpo.objectives.regression import Residuals
from tests.objectives.tabular import COMPLETIONS, MASK, TabularPolicy, divergence, optimum
from tests.objectives.test_gvpo_learns import PAIR_ROWS, SAMPLERS, minimise

PAGE = Path(__file__).parents[2] / "docs/reference/objectives/regression.md"
BETA = 0.5
COUNT = len(COMPLETIONS)
REWARDS = torch.randn(COUNT, generator=torch.Generator().manual_seed(11), dtype=torch.float64)
REFERENCE = TabularPolicy(scale=0.0).logprobs().detach()
PRIOR = REFERENCE.sum(1)
OPTIMUM = optimum(PRIOR, REWARDS, BETA)
VALUE = BETA * (PRIOR + REWARDS / BETA).logsumexp(0)
"""V*, beta log Z."""
COUNTS = {"reference": (27 * PRIOR.exp()).round().long(), **SAMPLERS}


def settled(
    sampler: str, anchor: float, *, value: float | None = None, beta: float = BETA, start: TabularPolicy | None = None
) -> Tensor:
    """Return the log-distribution [15] of the minimiser of `regression` on rows of a sampler."""
    rows = torch.repeat_interleave(torch.arange(COUNT), COUNTS[sampler])
    inputs = {
        "ref_logprobs": REFERENCE[rows],
        "rewards": REWARDS[rows],
        "group": torch.zeros(len(rows), dtype=torch.int64),
        "mask": MASK[rows],
        "beta": beta,
        "anchor": anchor * len(rows) / (len(rows) - 1),
        "value": None if value is None else torch.full((len(rows),), value, dtype=torch.float64),
    }
    policy = start or TabularPolicy(seed=2)
    minimise(policy, lambda logprobs: regression(logprobs[rows], **inputs).loss)
    return policy.log_distribution().detach()


def share(sampler: str) -> Tensor:
    """Return log mu [15]."""
    return (COUNTS[sampler] / COUNTS[sampler].sum()).double().log()


def test_the_reference_is_one_of_the_samplers_and_the_optimum_is_far_from_it():
    torch.testing.assert_close(share("reference"), PRIOR)
    assert divergence(OPTIMUM, PRIOR) > 0.5


@pytest.mark.parametrize("sampler", COUNTS)
def test_without_an_anchor_the_optimum_is_exact_from_any_sampler(sampler):
    assert divergence(OPTIMUM, settled(sampler, 0.0)) < 1e-10


@pytest.mark.parametrize(("sampler", "anchor"), list(zip(COUNTS, [0.1, 1.0, 0.3, 10.0], strict=True)))
def test_at_the_optimums_own_value_every_anchor_is_exact_from_any_sampler(sampler, anchor):
    assert divergence(OPTIMUM, settled(sampler, anchor, value=VALUE.item())) < 1e-10


@pytest.mark.parametrize("sampler", ["reference", "mixed"])
def test_a_wrong_value_moves_the_optimum_and_the_more_the_larger_the_anchor(sampler):
    for wrong in (VALUE.item() + 0.3, VALUE.item() - 0.3):
        small, large = (divergence(OPTIMUM, settled(sampler, anchor, value=wrong)) for anchor in (0.05, 1.0))
        assert 1e-7 < small < large
        assert large > 1e-3


@pytest.mark.parametrize(("sampler", "anchor"), list(zip(COUNTS, [1.0, 0.1, 0.3, 1.0], strict=True)))
def test_with_the_mean_reward_it_is_a_mirror_descent_step_with_a_chi_squared_penalty(sampler, anchor):
    # A maximum of  E[R] - beta KL(pi || pi') - beta c/2 chi2(pi || mu)  over distributions has
    # log(pi / pi') + c pi/mu = R/beta + constant.
    found, mu = settled(sampler, anchor), share(sampler)
    c = anchor * (divergence(mu, found) - divergence(mu, PRIOR))
    stationary = found - PRIOR + c * (found - mu).exp() - REWARDS / BETA
    assert stationary.std() < 1e-6
    assert (found - PRIOR - REWARDS / BETA).std() > 0.01  # it is not pi*


def test_from_the_reference_it_is_a_shorter_step_the_larger_the_anchor():
    steps = [settled("reference", anchor) for anchor in (0.0, 0.01, 0.1, 1.0, 10.0)]
    moved = [divergence(PRIOR, step) for step in steps]
    errors = [divergence(OPTIMUM, step) for step in steps]
    assert moved == sorted(moved, reverse=True)
    assert errors == sorted(errors)
    # A chi-squared penalty never turns two completions around: better ones gain more at every anchor.
    order = REWARDS.argsort()
    for step in steps:
        assert ((step - PRIOR)[order].diff() > 0).all()


def test_an_anchor_that_decays_to_zero_ends_at_the_optimum():
    policy = TabularPolicy(seed=2)
    errors = [divergence(OPTIMUM, settled("reference", 10.0**-power, start=policy)) for power in range(7)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.01
    assert errors[-1] < 1e-9
    assert errors[3] / errors[4] == pytest.approx(100, rel=0.05)  # the error falls with the square of the anchor


@pytest.mark.parametrize("anchor", [0.0, 0.3, 1.0])
def test_groups_of_k_rows_add_the_anchors_share_to_beta(anchor):
    # E[lbar^2] = (E l)^2 + Var(l)/k, so groups of k = 2 are the loss under mu with beta (1 + anchor/2) and the anchor
    # divided by the same factor.
    factor = 1 + anchor / 2
    every = {"rewards": REWARDS[PAIR_ROWS], "group": torch.arange(COUNT * COUNT).repeat_interleave(2)}
    policy = minimise(
        TabularPolicy(seed=2),
        lambda logprobs: (
            gvpo(
                logprobs[PAIR_ROWS],
                ref_logprobs=REFERENCE[PAIR_ROWS],
                mask=MASK[PAIR_ROWS],
                beta=BETA,
                anchor=anchor,
                **every,
            ).loss
        ),
    )
    expected = settled("uniform", anchor / factor, beta=BETA * factor)
    assert divergence(policy.log_distribution().detach(), expected) < 1e-10


@pytest.mark.parametrize("anchor", [0.0, 1.0])
def test_on_own_samples_the_optimum_is_that_of_the_larger_beta(anchor):
    # The gradient of (E l)^2 is 0 where the rows are samples of the policy, so only the share of beta remains.
    policy = TabularPolicy(seed=2)
    optimizer = torch.optim.Adam([policy.logits], lr=0.05, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, total_iters=500)
    group = torch.arange(COUNT * COUNT).repeat_interleave(2)
    for _ in range(500):
        logprobs = policy.logprobs()
        own = logprobs.detach().sum(1).exp()
        residuals = Residuals.of(
            logprobs[PAIR_ROWS], REFERENCE[PAIR_ROWS], REWARDS[PAIR_ROWS], group, MASK[PAIR_ROWS], BETA
        )
        optimizer.zero_grad()
        (torch.outer(own, own).reshape(-1) * residuals.losses(anchor)).sum().backward()
        optimizer.step()
        schedule.step()
    found = policy.log_distribution().detach()
    assert divergence(found, optimum(PRIOR, REWARDS, BETA * (1 + anchor / 2))) < 5e-4
    assert anchor == 0 or divergence(found, OPTIMUM) > 0.01


def table() -> dict[float, list[float]]:
    """Return the rows of the page's table of errors by anchor."""
    lines = (
        PAGE.read_text(encoding="utf-8").partition("| anchor | reference |")[2].partition("\n\n")[0].splitlines()[2:]
    )
    rows = [[float(cell) for cell in line.strip("|").split("|")] for line in lines]
    return {anchor: printed for anchor, *printed in rows}


def errors(anchor: float) -> list[float]:
    """Return KL(pi* || pi) for the mean reward from three samplers, then for V* + 0.3 from the reference."""
    named = [divergence(OPTIMUM, settled(name, anchor)) for name in ("reference", "stale", "mixed")]
    return [*named, divergence(OPTIMUM, settled("reference", anchor, value=VALUE.item() + 0.3))]


def test_the_pages_table_of_errors_is_what_is_computed():
    assert [*table()] == [0.01, 0.1, 0.3, 1.0]
    for anchor, printed in table().items():
        assert printed == [float(f"{error:.1g}") for error in errors(anchor)]
    assert f"{divergence(OPTIMUM, PRIOR):.2f} nats" in PAGE.read_text(encoding="utf-8")
