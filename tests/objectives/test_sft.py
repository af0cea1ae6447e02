"""Supervised fine-tuning: likelihood by hand, by torch's cross-entropy, and learned."""

import functools

import pytest
import torch

from gvpo.errors import ObjectiveError
from gvpo.objectives import sft
from tests.objectives.batches import gradient
from tests.objectives.tabular import COMPLETIONS, MASK, TabularPolicy, divergence

LOGPROBS = torch.tensor([[-1.0, -3.0, -2.0], [-4.0, 99.0, 99.0], [99.0, 99.0, 99.0]])
KEPT = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0]])


def test_by_hand_with_an_empty_row():
    # Tokens: (1 + 3 + 2 + 4) / 4. Rows: means 2, 4 and 0, over 3. Sums: 6, 4 and 0.
    assert sft(LOGPROBS, mask=KEPT).loss.item() == 2.5
    assert sft(LOGPROBS, mask=KEPT, reduction="sequence_mean").loss.item() == 2.0
    metrics = sft(LOGPROBS, mask=KEPT, reduction="sequence_mean").metrics
    assert metrics["sft/nll"].item() == 2.5
    assert metrics["sft/sequence_nll"].item() == pytest.approx(10 / 3)


def test_gradients_weigh_tokens_or_rows_equally():
    inputs = {"logprobs": LOGPROBS, "mask": KEPT}
    torch.testing.assert_close(gradient(sft, inputs), -KEPT / 4)
    by_row = gradient(functools.partial(sft, reduction="sequence_mean"), inputs)
    torch.testing.assert_close(by_row, -KEPT / torch.tensor([[9.0], [3.0], [1.0]]))


def test_equals_torchs_cross_entropy():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 6, 11, generator=generator)
    targets = torch.randint(11, (4, 6), generator=generator)
    mask = torch.rand(4, 6, generator=generator) < 0.6
    expected = torch.nn.functional.cross_entropy(logits[mask], targets[mask])
    logprobs = logits.log_softmax(dim=-1).gather(-1, targets[..., None])[..., 0]
    torch.testing.assert_close(sft(logprobs, mask=mask).loss, expected)


@pytest.mark.parametrize("reduction", ["constant", "sum"])
def test_other_reductions_are_rejected(reduction):
    with pytest.raises(ObjectiveError, match="choose token_mean or sequence_mean"):
        sft(LOGPROBS, mask=KEPT, reduction=reduction)


def test_it_learns_the_distribution_of_its_data():
    # 64 completions drawn from another policy: the most likely policy is their own distribution, by prefix.
    source = TabularPolicy(seed=3).log_distribution().detach()
    counts = 1 + (64 * source.exp()).round().long()
    rows = torch.repeat_interleave(torch.arange(len(COMPLETIONS)), counts)
    policy = TabularPolicy(seed=1)
    optimizer = torch.optim.LBFGS([policy.logits], max_iter=300, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = sft(policy.logprobs()[rows], mask=MASK[rows]).loss
        loss.backward()
        return loss

    optimizer.step(closure)
    empirical = (counts.double() / counts.sum()).log()
    assert divergence(empirical, policy.log_distribution().detach()) < 1e-8
