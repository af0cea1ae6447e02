"""The KL penalty in the reward, and what it makes of RLOO: GVPO."""

import functools

import pytest
import torch

from gvpo.errors import ObjectiveError, ShapeError
from gvpo.objectives import gvpo, kl_in_reward, rloo
from tests.objectives.batches import gradient, gvpo_inputs, make_batch, pick, rows_of

BETA = 0.7


def penalised(batch, **changes):
    inputs = pick(batch, "logprobs", "ref_logprobs", "mask", **changes)
    return kl_in_reward(batch["rewards"], **inputs, beta=BETA)


def test_hand_computed_values():
    # Log-ratios 1, -2 and (masked) 5: 3 - 0.5 * (1 - 2) = 3.5. The empty row keeps its reward.
    zeros = torch.zeros(2, 3)
    rewards = kl_in_reward(
        torch.tensor([3.0, 4.0]),
        logprobs=torch.tensor([[1.0, -2.0, 5.0], [7.0, 7.0, 7.0]]),
        ref_logprobs=zeros,
        mask=torch.tensor([[1, 1, 0], [0, 0, 0]]),
        beta=0.5,
    )
    assert rewards.tolist() == [3.5, 4.0]


def test_equals_a_loop():
    batch = make_batch()
    expected = []
    for i, reward in enumerate(batch["rewards"].tolist()):
        gaps = [
            (batch["logprobs"][i, t] - batch["ref_logprobs"][i, t]).item() for t in range(5) if batch["mask"][i, t] == 1
        ]
        expected.append(reward - BETA * sum(gaps))
    assert penalised(batch).tolist() == pytest.approx(expected)


def test_with_current_logprobs_and_no_ratio_rloo_has_gvpos_gradient():
    # RLOO is a mean over rows and GVPO over groups: compared group by group, off the reference, unequal sizes.
    batch = make_batch()
    rewards = penalised(batch)
    for rows in rows_of(batch["group"]):
        one = {key: value[rows] for key, value in batch.items()}
        on_policy = pick(one, "logprobs", "group", "mask", rewards=rewards[rows], old_logprobs=one["logprobs"])
        ours = gradient(functools.partial(gvpo, beta=BETA), gvpo_inputs(one))
        torch.testing.assert_close(ours, BETA * gradient(rloo, on_policy), rtol=1e-12, atol=1e-14)
        assert ours.abs().max() > 0.05


def test_with_old_logprobs_and_a_ratio_it_is_another_gradient():
    batch = make_batch()
    rewards = penalised(batch, logprobs=batch["old_logprobs"])
    inputs = pick(batch, "logprobs", "group", "mask", "old_logprobs", rewards=rewards)
    difference = gradient(functools.partial(gvpo, beta=BETA), gvpo_inputs(batch)) - BETA * gradient(rloo, inputs)
    assert difference.abs().max() > 0.05


def test_it_is_detached_and_float64():
    batch = make_batch(dtype=torch.bfloat16)
    rewards = penalised(batch, logprobs=batch["logprobs"].requires_grad_())
    assert not rewards.requires_grad
    assert rewards.dtype == torch.float64


def test_values_outside_the_mask_are_never_read():
    batch = make_batch()
    poisoned = torch.where(batch["mask"] == 0, torch.nan, batch["logprobs"])
    assert torch.equal(penalised(batch, logprobs=poisoned), penalised(batch))


def test_beta_zero_changes_nothing_and_a_negative_one_is_rejected():
    batch = make_batch()
    inputs = pick(batch, "logprobs", "ref_logprobs", "mask")
    assert torch.equal(kl_in_reward(batch["rewards"], **inputs, beta=0.0), batch["rewards"])
    with pytest.raises(ObjectiveError, match=r"beta is -1\.0; set it to at least 0"):
        kl_in_reward(batch["rewards"], **inputs, beta=-1.0)
    with pytest.raises(ShapeError, match=r"rewards has shape \(3,\)"):
        kl_in_reward(batch["rewards"][:3], **inputs, beta=0.1)
