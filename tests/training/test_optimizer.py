"""The optimizer: its groups, its schedule against hand-computed values, and the guarded step."""

import math

import pytest
import torch
from torch import nn

from gvpo.training.optimizer import learning_rate, make_optimizer, step
from tests.training.toy import config, model


def test_vectors_are_not_decayed_and_matrices_are():
    policy = model()
    optimizer = make_optimizer(policy, config(weight_decay=0.5, learning_rate=0.1))
    before = {name: parameter.detach().clone() for name, parameter in policy.named_parameters()}
    for parameter in policy.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in policy.named_parameters():
        shrunk = before[name] * (1 - 0.1 * 0.5) if parameter.ndim > 1 else before[name]
        torch.testing.assert_close(parameter.detach(), shrunk)


def test_frozen_parameters_are_excluded():
    layers = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    layers[0].requires_grad_(False)
    optimizer = make_optimizer(layers, config())
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {
        id(parameter) for parameter in layers[1].parameters()
    }


def test_the_optimizer_has_the_settings_moments():
    (group, _) = make_optimizer(model(), config(adam_beta1=0.5, adam_beta2=0.75, adam_eps=1e-3)).param_groups
    assert (group["betas"], group["eps"]) == ((0.5, 0.75), 1e-3)


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        # warm-up to the full rate in 2 updates, then 4 updates of the schedule at progress 0, 1/4, 1/2, 3/4
        ("constant", [0.5, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 1, 1, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1, 1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]),
    ],
)
def test_schedules_have_hand_computed_values(schedule: str, rates: list[float]):
    settings = config(schedule=schedule, warmup_updates=2, learning_rate=8.0)
    assert [learning_rate(settings, update, 6) / 8.0 for update in range(6)] == pytest.approx(rates)


def test_a_schedule_past_its_end_stays_at_0():
    assert learning_rate(config(schedule="linear"), 9, 6) == 0.0


def test_a_step_clips_reports_the_norm_before_and_clears_the_gradient():
    weight = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([weight], lr=99.0)
    weight.grad = torch.tensor([3.0, 4.0])
    assert step(optimizer, [weight], rate=0.5, max_grad_norm=1.0) == pytest.approx(5.0)
    torch.testing.assert_close(weight.detach(), torch.tensor([-0.3, -0.4]))  # 0.5 * (0.6, 0.8)
    assert weight.grad is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_step_on_a_gradient_that_is_not_finite_changes_nothing(bad: float):
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    weight.grad = torch.tensor([1.0, bad])
    assert not math.isfinite(step(optimizer, [weight], rate=0.1, max_grad_norm=1.0))
    assert torch.equal(weight.detach(), torch.ones(2))
    assert not optimizer.state
    assert weight.grad is None
