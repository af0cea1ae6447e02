"""Segment ratios: arithmetic by hand, the two ends (GRPO and GSPO), a loop, degenerate cases, and that it learns."""

import functools
import math

import pytest
import torch

from gvpo.errors import GroupTooSmall, ShapeError
from gvpo.objectives import gspo, gsspo
from gvpo.objectives.grpo import grpo
from tests.objectives.batches import gradient, grpo_inputs, make_batch, rows_of
from tests.objectives.tabular import COMPLETIONS, MASK, TabularPolicy

WIDE = {"clip_low": 0.05, "clip_high": 0.08}
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def inputs_of(batch, **changes):
    return grpo_inputs(batch, segments=batch["segments"], **changes)


def naive(batch, low, high):
    """Compute it in plain Python, one segment after the other."""
    total = 0.0
    for rows in rows_of(batch["group"]):
        rewards = batch["rewards"][rows]
        for row in rows:
            advantage = ((batch["rewards"][row] - rewards.mean()) / (rewards.std() + 1e-4)).item()
            ratios: dict[int, list[float]] = {}
            for t in range(batch["mask"].shape[1]):
                if batch["mask"][row, t]:
                    gap = (batch["logprobs"][row, t] - batch["old_logprobs"][row, t]).item()
                    ratios.setdefault(int(batch["segments"][row, t]), []).append(gap)
            terms = []
            for gaps in ratios.values():
                s = math.exp(sum(gaps) / len(gaps))
                terms.append(min(s * advantage, min(max(s, 1 - low), 1 + high) * advantage))
            total -= sum(terms) / len(terms) if terms else 0.0
    return total / len(batch["rewards"])


def test_hand_computed_values():
    # Row 0: segments {t0, t2} with mean log-ratio (ln 1.44 + 0) / 2 = ln 1.2, {t1} with ln 0.9; row 1: one of ratio 1.
    # A = +-1 / (sqrt 2 + 1e-4); clip at 1.1: ((1.1 + 0.9) / 2 A - A) / 2 = 0.
    a = 1 / (math.sqrt(2) + 1e-4)
    log_ratios = torch.tensor([[math.log(1.44), math.log(0.9), 0.0], [0.0, 0.0, 9.0]], dtype=torch.float64)
    inputs = {
        "old_logprobs": torch.full((2, 3), -1.0, dtype=torch.float64),
        "rewards": torch.tensor([2.0, 0.0]),
        "segments": torch.tensor([[5, -1, 5], [0, 0, 7]]),
        "group": torch.tensor([3, 3]),
        "mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
    }
    output = gsspo(log_ratios - 1, **inputs, clip_low=0.2, clip_high=0.1)
    assert output.loss.item() == pytest.approx(0.0, abs=1e-12)
    expected = {
        "gsspo/ratio_mean": (1.05 + 1.0) / 2,
        "gsspo/clip_fraction": 0.25,
        "gsspo/clip_fraction_low": 0.0,
        "gsspo/clip_fraction_high": 0.25,
        "gsspo/advantage_abs_mean": a,
        "gsspo/segments": 1.5,
    }
    assert {key: value.item() for key, value in output.metrics.items()} == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(3))
def test_the_loss_equals_a_loop(seed):
    batch = make_batch(seed)
    batch["mask"][3] = 0
    assert gsspo(**inputs_of(batch), **WIDE).loss.item() == pytest.approx(naive(batch, 0.05, 0.08), rel=1e-12)


@pytest.mark.parametrize("end", ["gspo", "grpo"])
@pytest.mark.parametrize("seed", range(3))
def test_its_ends_are_gspo_and_grpo_in_value_clipping_and_gradient(seed, end):
    batch = make_batch(seed)
    batch["mask"][3] = 0
    whole = torch.zeros(9, 5, dtype=torch.int64)
    segments = whole if end == "gspo" else whole + torch.arange(5)
    other = functools.partial({"gspo": gspo, "grpo": grpo}[end], **WIDE)
    mine = functools.partial(gsspo, **WIDE, segments=segments)
    found, expected = mine(**grpo_inputs(batch)), other(**grpo_inputs(batch))
    torch.testing.assert_close(found.loss, expected.loss, **EXACT)
    slope = gradient(mine, grpo_inputs(batch))
    torch.testing.assert_close(slope, gradient(other, grpo_inputs(batch)), **EXACT)
    assert slope.abs().sum() > 0
    assert 0 < found.metrics["gsspo/clip_fraction"] < 1
    if end == "gspo":
        for key, value in expected.metrics.items():
            if key != "gspo/advantage_abs_mean":
                torch.testing.assert_close(found.metrics[key.replace("gspo", "gsspo")], value, **EXACT)


def test_names_and_order_of_segments_do_not_matter():
    batch = make_batch()
    renamed = inputs_of(batch) | {"segments": 10 - 7 * batch["segments"]}
    torch.testing.assert_close(gsspo(**renamed, **WIDE).loss, gsspo(**inputs_of(batch), **WIDE).loss)


def test_on_policy_every_ratio_is_exactly_one():
    batch = make_batch(dtype=torch.float32)
    metrics = gsspo(**inputs_of(batch, old_logprobs=batch["logprobs"])).metrics
    assert metrics["gsspo/ratio_mean"].item() == 1.0
    assert metrics["gsspo/clip_fraction"].item() == 0.0


def test_degenerate_group_of_one_raises():
    inputs = inputs_of(make_batch(), group=torch.tensor([0, 0, 0, 0, 0, 0, 0, 0, 5]))
    with pytest.raises(GroupTooSmall, match="gsspo compares the rows of a group, and group 5 has one"):
        gsspo(**inputs)


def test_degenerate_equal_rewards_teach_nothing():
    inputs = inputs_of(make_batch(), rewards=torch.full((9,), 0.1))
    assert gsspo(**inputs).loss.item() == 0.0
    assert gradient(gsspo, inputs).abs().max().item() == 0.0


def test_degenerate_segments_outside_the_mask_are_never_read():
    batch = make_batch()
    poisoned = torch.where(batch["mask"] == 0, 10**9, batch["segments"])
    assert torch.equal(gsspo(**inputs_of(batch)).loss, gsspo(**inputs_of(batch) | {"segments": poisoned}).loss)


def test_segments_that_are_not_ids_are_rejected():
    with pytest.raises(ShapeError, match=r"segments has shape \(9, 5\) and dtype torch.float32"):
        gsspo(**inputs_of(make_batch()) | {"segments": torch.zeros(9, 5)})


def test_it_learns():
    # Four updates per rollout, two tokens per segment: reward 1 for completions that end in token 0 after a 2.
    rewards = torch.tensor([float(tokens[-2:] == (2, 0)) for tokens in COMPLETIONS], dtype=torch.float64)
    segments = (torch.arange(MASK.shape[1]) // 2).expand(32, -1)
    policy, generator = TabularPolicy(seed=0, scale=0.0), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam([policy.logits], lr=0.05)
    start = (policy.log_distribution().exp() @ rewards).item()
    for _ in range(60):
        old = policy.logprobs().detach()
        rows = torch.multinomial(old.sum(dim=1).exp(), 32, replacement=True, generator=generator)
        inputs = {"old_logprobs": old[rows], "rewards": rewards[rows], "mask": MASK[rows], "segments": segments}
        for _ in range(4):
            optimizer.zero_grad()
            gsspo(policy.logprobs()[rows], **inputs, group=torch.zeros(32, dtype=torch.int64)).loss.backward()
            optimizer.step()
    assert start < 0.3
    assert (policy.log_distribution().exp() @ rewards).item() > 0.9


def test_given_advantages_replace_those_from_rewards_and_a_segment_gets_their_mean():
    batch = make_batch()
    computed = gsspo(**inputs_of(batch), **WIDE)
    rows = batch["rewards"].clone()
    for members in rows_of(batch["group"]):
        rows[members] = (rows[members] - rows[members].mean()) / (rows[members].std() + 1e-4)
    alone = {"rewards": torch.zeros(9), "group": torch.arange(9), "advantages": rows[:, None].expand(9, 5)}
    given = gsspo(**inputs_of(batch, **alone), **WIDE)
    torch.testing.assert_close(given.loss, computed.loss, **EXACT)
    uneven = rows[:, None] + torch.tensor([1.0, -1.0, 2.0, -2.0, 0.0])  # segments are of two, two and one token
    whole = {**batch, "mask": torch.ones(9, 5)}
    inputs = inputs_of(whole, **{**alone, "advantages": uneven})
    constant = inputs_of(whole, **alone)
    torch.testing.assert_close(gsspo(**inputs, **WIDE).loss, gsspo(**constant, **WIDE).loss, **EXACT)


def test_segments_may_differ_in_their_advantage():
    # Row 0: segments of two tokens and of one, A = 4 and 1, ratios 1: mean 2.5. Row 1: A = -1.
    tokens = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    given = torch.tensor([[4.0, 4.0, 1.0], [-1.0, -1.0, 0.0]], dtype=torch.float64)
    output = gsspo(
        tokens,
        old_logprobs=tokens.detach(),
        rewards=torch.zeros(2),
        segments=torch.tensor([[0, 0, 1], [0, 0, 0]]),
        group=torch.tensor([0, 1]),
        mask=torch.tensor([[1, 1, 1], [1, 1, 0]]),
        advantages=given,
    )
    output.loss.backward()
    assert output.loss.item() == pytest.approx(-(2.5 - 1.0) / 2)
    torch.testing.assert_close(tokens.grad, -given / torch.tensor([[8.0, 8.0, 4.0], [4.0, 4.0, 1.0]]))
