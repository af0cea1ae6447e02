"""Tests of the head without full logits, against log_softmax and autograd."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gvpo.update import head
from gvpo.update.head import head_logprobs, logits_logprobs
from tests.naive import LargestTensor

TOKENS, HIDDEN, VOCABULARY = 13, 6, 40


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch):
    """Use float64 chunks of five tokens (two complete ones and a rest) and blocks of two."""
    monkeypatch.setitem(head.CHUNK_BYTES, "cpu", 8 * 5 * VOCABULARY)
    monkeypatch.setitem(head.BLOCK_ELEMENTS, "cpu", 2 * VOCABULARY)
    monkeypatch.setattr(head, "PRODUCT_ELEMENTS", 7 * HIDDEN)
    monkeypatch.setattr(head, "FEWEST_ROWS", 1)


def inputs(dtype: torch.dtype = torch.float64, *, bias: bool = True) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(TOKENS, HIDDEN, dtype=dtype, requires_grad=True)
    weight = torch.randn(VOCABULARY, HIDDEN, dtype=dtype, requires_grad=True)
    offset = torch.randn(VOCABULARY, dtype=dtype, requires_grad=True) if bias else None
    return hidden, weight, offset, torch.randint(VOCABULARY, (TOKENS,))


def plain(hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, temperature: float) -> Tensor:
    every = F.log_softmax(F.linear(hidden, weight, bias) / temperature, dim=-1)
    return every[torch.arange(len(target)), target]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("known", [True, False])
def test_values_and_gradients_equal_those_of_autograd(bias: bool, temperature: float, known: bool):
    hidden, weight, offset, target = inputs(bias=bias)
    leaves = [each for each in (hidden, weight, offset) if each is not None]
    c = torch.randn(TOKENS, dtype=torch.float64)
    true = plain(hidden, weight, offset, target, temperature)
    expected = torch.autograd.grad(3.0 * (c * true).sum(), leaves)

    scores = head_logprobs(hidden, weight, offset, target, temperature=temperature, coefficients=c if known else None)
    total = scores.weighted if scores.weighted is not None else (c * scores.logprobs).sum()
    found = torch.autograd.grad(3.0 * total, leaves)

    torch.testing.assert_close(scores.logprobs.detach(), true.detach(), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(total.detach(), (c * true).sum().detach(), rtol=1e-12, atol=1e-12)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_gradcheck():
    hidden, weight, bias, target = inputs()
    assert torch.autograd.gradcheck(
        lambda *leaves: head_logprobs(*leaves, target, temperature=0.7).logprobs, (hidden, weight, bias)
    )


def test_entropy_is_computed_from_the_tempered_distribution():
    hidden, weight, bias, target = inputs()
    found = head_logprobs(hidden, weight, bias, target, temperature=0.5).entropy
    true = torch.distributions.Categorical(logits=F.linear(hidden, weight, bias) / 0.5).entropy()
    torch.testing.assert_close(found, true.detach(), rtol=1e-12, atol=1e-12)
    assert not found.requires_grad


def test_knowing_the_coefficients_changes_no_bit_of_the_log_probs():
    for dtype in (torch.float32, torch.bfloat16):
        hidden, weight, bias, target = inputs(dtype)
        with torch.no_grad():
            scored = head_logprobs(hidden, weight, bias, target)
        unknown = head_logprobs(hidden, weight, bias, target)
        known = head_logprobs(hidden, weight, bias, target, coefficients=torch.randn(TOKENS))
        assert torch.equal(scored.logprobs, unknown.logprobs)
        assert torch.equal(scored.logprobs, known.logprobs)
        assert torch.equal(scored.entropy, known.entropy)


@pytest.mark.parametrize("known", [True, False])
def test_no_gradient_is_computed_for_frozen_weights(known: bool):
    hidden, weight, _, target = inputs()
    c = torch.randn(TOKENS, dtype=torch.float64)
    scores = head_logprobs(hidden, weight.detach(), None, target, coefficients=c if known else None)
    torch.autograd.backward(scores.weighted if scores.weighted is not None else (c * scores.logprobs).sum())
    (expected,) = torch.autograd.grad((c * plain(hidden, weight, None, target, 1.0)).sum(), hidden)
    torch.testing.assert_close(hidden.grad, expected)
    assert weight.grad is None


@pytest.mark.parametrize("known", [True, False])
def test_in_half_precision_log_probs_stay_exact_and_gradients_have_the_weights_own_dtype(known: bool):
    hidden, weight, bias, target = inputs(torch.float32)
    c = torch.randn(TOKENS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = head_logprobs(hidden, weight, bias, target, coefficients=c if known else None, dtype=torch.bfloat16)
    assert scores.logprobs.dtype == scores.entropy.dtype == torch.float32
    true = plain(hidden, weight, bias, target, 1.0)
    torch.testing.assert_close(scores.logprobs, true, rtol=0.0, atol=1e-5)  # the logits are float32
    (expected,) = torch.autograd.grad((c * true).sum(), weight)
    torch.autograd.backward(scores.weighted if scores.weighted is not None else (c * scores.logprobs).sum())
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32
    assert 1e-5 < float((weight.grad - expected).norm() / expected.norm()) < 0.02  # the gradient's products are narrow


@pytest.mark.parametrize("known", [True, False])
def test_the_logits_of_all_tokens_never_exist(known: bool):
    hidden, weight, bias, target = inputs()
    c = torch.randn(TOKENS, dtype=torch.float64)
    with LargestTensor() as seen:
        scores = head_logprobs(hidden, weight, bias, target, coefficients=c if known else None)
        torch.autograd.backward(scores.weighted if scores.weighted is not None else (c * scores.logprobs).sum())
    assert 5 * VOCABULARY <= seen.largest < TOKENS * VOCABULARY
    assert seen.largest == max(5 * VOCABULARY, HIDDEN * VOCABULARY)  # a chunk's logits, or the weight's gradient


def test_plain_logits_may_forbid_tokens():
    logits = torch.tensor([[0.0, 1.0, -torch.inf]])
    found, entropy = logits_logprobs(logits, torch.tensor([1]))
    two = torch.distributions.Categorical(logits=torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(found, two.log_prob(torch.tensor([1])))
    torch.testing.assert_close(entropy, two.entropy()[None])


def test_a_token_without_coefficient_does_not_count_even_at_minus_infinity():
    found = head.weighted_sum(torch.tensor([-1.0, -torch.inf]), torch.tensor([2.0, 0.0]))
    assert found.item() == -2.0


@pytest.mark.parametrize("known", [True, False], ids=["coefficients known", "recomputed"])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_rows_past_the_vocabulary_are_ignored_and_have_no_gradient(known: bool, biased: bool, dtype: torch.dtype):
    """Compare with a head without those rows, whose gradient has zeros in their place."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(size, 8, generator=generator, dtype=torch.float64) for size in (300, 40))
    bias = torch.randn(40, generator=generator, dtype=torch.float64) if biased else None
    target = torch.randint(31, (300,), generator=generator)
    coefficients = torch.randn(300, generator=generator, dtype=torch.float64)

    def gradients(rows: int, vocabulary: int | None) -> list[torch.Tensor]:
        leaves = [hidden.clone(), weight[:rows].clone(), *([] if bias is None else [bias[:rows].clone()])]
        for leaf in leaves:
            leaf.requires_grad_()
        given = {"coefficients": coefficients} if known else {}
        scores = head_logprobs(
            leaves[0],
            leaves[1],
            leaves[2] if biased else None,
            target,
            temperature=0.8,
            dtype=dtype,
            vocabulary=vocabulary,
            **given,
        )
        total = scores.weighted if known else (coefficients.to(scores.logprobs) * scores.logprobs).sum()
        assert total is not None
        total.backward()
        return [scores.logprobs.detach(), scores.entropy, *(leaf.grad for leaf in leaves if leaf.grad is not None)]

    for place, (found, expected) in enumerate(zip(gradients(40, 31), gradients(31, None), strict=True)):
        if place >= 3:  # of the weight and the bias
            assert (found[31:] == 0).all()
            found = found[:31]
        torch.testing.assert_close(found, expected)
