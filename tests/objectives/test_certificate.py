"""The certificate against the exact KL(pi || pi*) of distributions that can be enumerated."""

from pathlib import Path

import pytest
import torch

from gvpo.errors import ShapeError
from gvpo.objectives import certificate, gvpo
from tests.objectives.tabular import COMPLETIONS, TabularPolicy, divergence, optimum

BETA = 0.4
REWARDS = torch.randn(len(COMPLETIONS), generator=torch.Generator().manual_seed(3), dtype=torch.float64) / 2
REFERENCE = TabularPolicy(seed=1).log_distribution().detach()
OPTIMUM = optimum(REFERENCE, REWARDS, BETA)


def estimate(policy, rows):
    """Estimate the certificate of a log-distribution per group, from sampled completions `rows` [G, k]."""
    group = torch.arange(len(rows)).repeat_interleave(rows.shape[1])
    flat = rows.reshape(-1)
    return certificate((policy - REFERENCE)[flat], REWARDS[flat], group, BETA)


def test_hand_computed_values():
    # beta 1/2, d = R/beta - l = [2, 0]: log((e^2 + 1)/2) - 1.
    value = certificate(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 1.0]), torch.tensor([4, 4]), 0.5)
    assert value.tolist() == pytest.approx([0.4337808304830272])


def test_groups_come_in_order_of_their_ids_and_one_row_certifies_nothing():
    ratios, rewards = torch.tensor([0.0, 5.0, 2.0]), torch.tensor([1.0, 9.0, 1.0])
    values = certificate(ratios, rewards, torch.tensor([30, -1, 30]), 0.5)
    assert values.tolist() == pytest.approx([0.0, 0.4337808304830272])


def test_it_is_exactly_the_kl_of_the_empirical_policy():
    # A policy whose probabilities are n_y / N, and the group of N rows in which y stands n_y times.
    counts = (1 + (600 * TabularPolicy(seed=4).log_distribution().detach().exp()).round()).long()
    policy = (counts.double() / counts.sum()).log()
    rows = torch.repeat_interleave(torch.arange(len(COMPLETIONS)), counts)
    expected = divergence(policy, OPTIMUM)
    assert expected > 0.1
    assert estimate(policy, rows[None]).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("towards", [0.0, 0.5, 0.9])
def test_samples_of_the_policy_estimate_the_true_kl(towards):
    # Policies on the way to the optimum, 200 groups of 400 samples: within four standard errors of the exact KL.
    policy = ((1 - towards) * TabularPolicy(seed=2).log_distribution().detach() + towards * OPTIMUM).log_softmax(dim=0)
    rows = torch.multinomial(policy.exp(), 200 * 400, replacement=True, generator=torch.Generator().manual_seed(0))
    values = estimate(policy, rows.reshape(200, 400))
    exact = divergence(policy, OPTIMUM)
    bias = exact / 100  # of a log of a mean of 400
    assert abs(values.mean().item() - exact) < 4 * values.std().item() / 200**0.5 + bias


def test_small_groups_underestimate():
    policy = TabularPolicy(seed=2).log_distribution().detach()
    generator = torch.Generator().manual_seed(0)
    rows = torch.multinomial(policy.exp(), 16_000, replacement=True, generator=generator)
    small, large = (estimate(policy, rows.reshape(-1, k)).mean().item() for k in (4, 64))
    assert 0 < small < large < divergence(policy, OPTIMUM) * 1.02


def test_near_the_optimum_it_is_the_loss_over_beta_squared():
    # log E e^d - E d = Var(d)/2 + third order, and the loss is beta^2/2 times the unbiased variance of d.
    nudge = torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rewards, group = torch.linspace(0, 1, 50).double(), torch.zeros(50, dtype=torch.int64)
    ratios = rewards / BETA + 1e-3 * nudge
    ones = torch.ones(50, 1)
    output = gvpo(ratios[:, None], ref_logprobs=0 * ratios[:, None], rewards=rewards, group=group, mask=ones, beta=BETA)
    twin = (output.loss / BETA**2 * 49 / 50).item()
    assert certificate(ratios, rewards, group, BETA).item() == pytest.approx(twin, rel=5e-3)
    assert output.metrics["gvpo/certificate"].item() == pytest.approx(twin, rel=5e-3)


def test_large_rewards_over_beta_do_not_overflow():
    # d = [1e5, 0]: log((e^100000 + 1)/2) - 50000 = 50000 - log 2.
    value = certificate(torch.zeros(2), torch.tensor([100.0, 0.0]), torch.tensor([0, 0]), 1e-3)
    assert value.item() == pytest.approx(50_000, rel=1e-4)


def test_it_is_detached_and_checks_shapes():
    ratios = torch.zeros(2, requires_grad=True)
    assert not certificate(ratios, torch.ones(2), torch.tensor([0, 0]), 1.0).requires_grad
    with pytest.raises(ShapeError, match=r"rewards has shape \(3,\)"):
        certificate(ratios, torch.ones(3), torch.tensor([0, 0]), 1.0)
    with pytest.raises(ShapeError, match="log_ratios"):
        certificate(torch.zeros(2, 1), torch.ones(2), torch.tensor([0, 0]), 1.0)


@pytest.mark.parametrize(("k", "expected"), [(4, 0.336), (8, 0.410), (16, 0.452)])
def test_the_bias_of_small_groups_on_a_normal_d_is_that_of_the_page(k, expected):
    # d normal with variance 1, so the KL is 1/2: rewards 0, beta 1, log-ratios -d. The standard error is below .002.
    d = torch.randn(40_000 * 4 // k, k, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    group = torch.arange(len(d)).repeat_interleave(k)
    found = certificate(-d.reshape(-1), torch.zeros(d.numel(), dtype=torch.float64), group, 1.0).mean().item()
    assert found == pytest.approx(expected, abs=0.006)
    assert f"{expected:.2f}" in (Path(__file__).parents[2] / "docs/reference/objectives/gvpo.md").read_text()
