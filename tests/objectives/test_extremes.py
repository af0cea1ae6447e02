"""Numbers that float32 cannot take as they are: log-ratios of thousands of nats, and rewards on a large offset."""

import functools
import inspect
import math

import pytest
import torch

from gvpo.config import OBJECTIVES
from gvpo.objectives import certificate, gvpo_weights, kl_in_reward
from gvpo.objectives.clip import LARGEST_LOG_RATIO
from tests.objectives.batches import gradient, make_batch, pick, roles_of

REQUIRED = {"dr_grpo": {"max_length": 8}, "constrained_grpo": {"multipliers": [0.5, 2.0]}}
FUNCTIONS = {name: spec.load() for name, spec in OBJECTIVES.items()}
OPTIONS = [(name, {}) for name in sorted(OBJECTIVES)] + [
    *((name, {"kl_coef": 0.1}) for name in ("grpo", "dapo", "dr_grpo", "rloo")),
    *((name, {"clip_high": math.inf, "clip_low": math.inf}) for name in ("grpo", "gspo", "gspo_token", "gsspo")),
]
RATIO = ("constrained_grpo", "dapo", "dr_grpo", "grpo", "gspo", "gspo_token", "gsspo", "rloo")


def inputs_for(name, batch, **options):
    """Return an objective's tensors of a batch, with the first row of each group as the chosen one, and its options."""
    takes = inspect.signature(FUNCTIONS[name]).parameters
    roles = {"role": roles_of(batch["group"], weak=name == "epa")} if "role" in takes else {}
    return pick(batch, *(key for key in batch if key in takes), **roles, **REQUIRED.get(name, {}), **options)


def far_apart(nats, dtype=torch.float32):
    """Return a batch whose policy is `nats` per token from both other policies, in turn above and below."""
    batch = make_batch(dtype=dtype)
    batch["logprobs"] = batch["logprobs"] + nats * torch.tensor([1.0, -1.0, 1.0] * 3, dtype=dtype)[:, None]
    return batch


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("nats", [88.0, 89.0, 100.0, 1e3, 1e4])
@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_loss_gradient_and_metrics_are_finite_at_any_log_ratio(name, options, nats, dtype):
    for sign in (1, -1):
        inputs = inputs_for(name, far_apart(sign * nats, dtype), **options)
        output = FUNCTIONS[name](**inputs)
        slope = gradient(FUNCTIONS[name], inputs)
        assert output.loss.isfinite()
        assert all(value.isfinite() for value in output.metrics.values())
        assert slope.isfinite().all()
        assert slope.float().square().sum().isfinite(), "the gradient's norm overflows"
        if options.get("clip_high") != math.inf:
            assert slope.abs().sum() > 0


@pytest.mark.parametrize("nats", [100.0, 1e4])
@pytest.mark.parametrize("name", RATIO)
def test_a_large_ratio_has_the_gradient_of_the_bound_and_a_clipped_one_none(name, nats):
    """Two rows of one token; the first became far more likely. Only its advantage decides whether the clip stops it."""
    tokens = {"logprobs": torch.tensor([[nats - 1.0], [-1.0]]), "old_logprobs": torch.full((2, 1), -1.0)}
    rest = {"group": torch.tensor([0, 0]), "mask": torch.ones(2, 1), **REQUIRED.get(name, {})}
    rest |= {"costs": torch.zeros(2, 2)} if name == "constrained_grpo" else {}
    rest |= {"segments": torch.zeros(2, 1, dtype=torch.int64)} if name == "gsspo" else {}
    at_bound = {**tokens, "logprobs": torch.tensor([[LARGEST_LOG_RATIO - 1.0], [-1.0]])}
    better, worse = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    slope = functools.partial(gradient, FUNCTIONS[name])
    assert slope({**tokens, **rest, "rewards": worse})[0] > 0, "a worse row is pushed down"
    torch.testing.assert_close(
        slope({**tokens, **rest, "rewards": worse}), slope({**at_bound, **rest, "rewards": worse})
    )
    if name != "rloo":  # it does not clip
        assert slope({**tokens, **rest, "rewards": better})[0] == 0


def test_below_the_bound_nothing_changes():
    tokens = {"logprobs": torch.tensor([[28.0], [-1.0]]), "old_logprobs": torch.full((2, 1), -1.0)}
    rest = {"group": torch.tensor([0, 0]), "mask": torch.ones(2, 1), "rewards": torch.tensor([0.0, 1.0])}
    loss = FUNCTIONS["rloo"](**tokens, **rest).loss
    torch.testing.assert_close(loss, torch.tensor((math.exp(29.0) - 1.0) / 2))


@pytest.mark.parametrize("offset", [2.0**24, 1e9, -1e9, 2.0**40])
@pytest.mark.parametrize("name", [name for name in sorted(OBJECTIVES) if "rewards" in OBJECTIVES[name].needs])
def test_a_large_offset_of_the_rewards_changes_nothing(name, offset):
    batch = make_batch(dtype=torch.float32)
    batch["rewards"] = torch.tensor([0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    batch["costs"] = torch.stack([1 - batch["rewards"], batch["rewards"]], dim=1)
    moved = {**batch, "rewards": batch["rewards"] + offset, "costs": batch["costs"] + offset}
    plain, shifted = (gradient(FUNCTIONS[name], inputs_for(name, each)) for each in (batch, moved))
    assert plain.abs().sum() > 0
    torch.testing.assert_close(shifted, plain)
    assert FUNCTIONS[name](**inputs_for(name, moved)).loss.dtype == torch.float32


def test_weights_certificate_and_penalised_rewards_keep_small_differences_on_a_large_offset():
    batch = make_batch(dtype=torch.float32)
    rewards = torch.arange(9, dtype=torch.float64) % 2
    common = {"ref_logprobs": batch["ref_logprobs"], "group": batch["group"], "mask": batch["mask"]}
    plain, shifted = (gvpo_weights(batch["logprobs"], rewards=each, **common) for each in (rewards, rewards + 2.0**24))
    torch.testing.assert_close(shifted, plain)
    ratios = torch.zeros(9)
    torch.testing.assert_close(
        certificate(ratios, rewards + 2.0**24, batch["group"], 1.0), certificate(ratios, rewards, batch["group"], 1.0)
    )
    left, right = (
        kl_in_reward(each, logprobs=batch["logprobs"], ref_logprobs=batch["ref_logprobs"], mask=batch["mask"], beta=0.5)
        for each in (rewards, rewards + 2.0**24)
    )
    torch.testing.assert_close(right - 2.0**24, left)
