"""Tests of the four losses against hand-computed values and naive loops, and of zero gradients."""

import math

import pytest
import torch

from gvpo.probe.losses import LOSSES, bce, mse, policy_gradient, preferences


def column(*values):
    return torch.tensor(values, dtype=torch.float64)[:, None]


def there(q):
    return torch.ones_like(q, dtype=torch.bool)


def test_mse_matches_hand_computed_values():
    q, r = column(0.5, 2.0), column(1.0, 0.0)
    assert mse(q, r, there(q)) == pytest.approx((0.25 + 4) / 2)


def test_bce_matches_hand_computed_values():
    """Use sigma(0) = 1/2 for any reward, and sigma(ln 3) = 3/4."""
    q, r = column(0.0, math.log(3), math.log(3)), column(0.3, 1.0, 0.0)
    assert bce(q, r, there(q)) == pytest.approx((math.log(2) - math.log(0.75) - math.log(0.25)) / 3)


def test_policy_gradient_matches_hand_computed_values():
    """Expect a gain of 3/4 - 1/2: Q = ln 3, 0 gives rho = 3/4, 1/4, and rewards 1, 0 have the mean 1/2."""
    q, r = torch.tensor([[math.log(3), 0.0]]), torch.tensor([[1.0, 0.0]])
    assert policy_gradient(q, r, there(q)) == pytest.approx(-0.25)
    assert policy_gradient(2 * q, r, there(q), beta=2.0) == pytest.approx(-0.25)


def test_policy_gradient_equals_a_naive_loop_and_the_baseline_has_no_gradient():
    torch.manual_seed(0)
    q = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    r, present = torch.rand(5, 4, dtype=torch.float64), torch.rand(5, 4) < 0.7
    present[:, 0] = True
    plain = torch.zeros((), dtype=torch.float64)
    for block in range(5):
        own = present[block]
        plain = plain - (torch.softmax(q[block][own] / 0.5, 0) * r[block][own]).sum() / 5  # no baseline
    loss = policy_gradient(q, r.masked_fill(~present, torch.nan), present, beta=0.5)
    (of_loss,) = torch.autograd.grad(loss, q)
    (of_plain,) = torch.autograd.grad(plain, q)
    assert torch.allclose(of_loss, of_plain, atol=1e-12)
    assert loss > plain  # by the mean reward
    assert (of_loss[~present] == 0).all()


@pytest.mark.parametrize("name", ["policy_gradient", "preferences"])
def test_losses_that_compare_are_invariant_to_a_shift(name):
    torch.manual_seed(1)
    q, r = torch.randn(6, 2, dtype=torch.float64), torch.tensor([[0.0, 1.0]] * 6)
    loss = LOSSES[name].value
    assert loss(q + 3.0, r, there(q)) == pytest.approx(float(loss(q, r, there(q))))


def test_preferences_match_hand_computed_values_in_both_orders():
    """Use -ln sigma(0) = ln 2, and sigma = 3/4 for Q_w - Q_l = ln 3."""
    q, r = torch.tensor([[0.0, 0.0], [0.0, math.log(3)]]), torch.tensor([[5.0, 2.0], [0.0, 1.0]])
    expected = (math.log(2) - math.log(0.75)) / 2
    assert preferences(q, r, there(q)) == pytest.approx(expected)
    assert preferences(q.flip(1), r.flip(1), there(q)) == pytest.approx(expected)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients(name):
    torch.manual_seed(2)
    width = LOSSES[name].width or 3
    q, r = torch.randn(4, width, dtype=torch.float64, requires_grad=True), torch.rand(4, width, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda q: LOSSES[name].value(q, r, there(r), beta=0.7), q)
