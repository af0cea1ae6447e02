"""Tests of sampling one token per row, against naive float64 sums and exact probabilities."""

import numpy as np
import pytest
import torch

from gvpo.sampling import SamplingParams
from gvpo.sampling.draw import draw, inverse_cdf

LOGITS = torch.tensor([2.0, -1.0, 0.5, 1.5, -3.0, 0.0])


def many(logits: torch.Tensor, count: int, params: SamplingParams, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    uniforms = torch.from_numpy(np.random.default_rng(seed).random(count))
    return draw(logits.expand(count, -1), uniforms, params)


def chi_square(tokens: torch.Tensor, probabilities: torch.Tensor) -> float:
    expected = probabilities * len(tokens)
    counts = torch.bincount(tokens, minlength=len(probabilities))
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("vocabulary", [1, 6, 512, 513, 1300])
def test_inverse_cdf_is_the_first_index_above_the_noise(vocabulary):
    generator = torch.Generator().manual_seed(vocabulary)
    probabilities = torch.randn(50, vocabulary, generator=generator).mul(2).softmax(-1)
    uniforms = torch.rand(50, generator=generator, dtype=torch.float64)
    cumulative = np.cumsum(probabilities.double().numpy(), axis=1)
    naive = [
        np.searchsorted(row, u * row[-1], side="right") for row, u in zip(cumulative, uniforms.tolist(), strict=True)
    ]
    assert inverse_cdf(probabilities, uniforms).tolist() == naive


@pytest.mark.parametrize("vocabulary", [8, 1300])
def test_tokens_of_probability_zero_are_never_drawn(vocabulary):
    """Test both ends of the noise, where rounding would pick such tokens; float32 noise can even be rounded to 1."""
    probabilities = torch.zeros(3, vocabulary)
    probabilities[:, [3, 5]] = torch.tensor([0.25, 0.75])
    uniforms = torch.tensor([0.0, 1 - 2**-53, 1.0], dtype=torch.float64)
    assert inverse_cdf(probabilities, uniforms).tolist() == [3, 5, 5]


def test_the_tail_of_a_large_vocabulary_can_be_drawn():
    """A float32 running sum near 1 cannot distinguish tokens of probability 1e-9."""
    probabilities = torch.full((1, 4096), 1e-9)
    probabilities[0, 0] = 1.0
    total = float(probabilities.double().sum())
    uniforms = torch.tensor([(1.0 + 2000.5e-9) / total], dtype=torch.float64)
    assert abs(inverse_cdf(probabilities, uniforms).item() - 2001) <= 1


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_draws_follow_the_softmax(temperature):
    """Chi-square with 5 degrees exceeds 20.5 in one case of 1,000; the seed is fixed."""
    tokens, logprobs = many(LOGITS, 20_000, SamplingParams(temperature=temperature))
    exact = (LOGITS.double() / temperature).log_softmax(-1)
    assert chi_square(tokens, exact.exp()) < 20.5
    torch.testing.assert_close(logprobs.double(), exact[tokens], atol=1e-6, rtol=0)


def test_temperature_zero_selects_the_most_likely_token_with_log_probs_at_one():
    tokens, logprobs = many(LOGITS, 3, SamplingParams(temperature=0))
    assert tokens.tolist() == [0, 0, 0]
    torch.testing.assert_close(logprobs, LOGITS.log_softmax(-1)[0].expand(3))


def test_top_k_samples_only_inside_and_in_proportion():
    tokens, logprobs = many(LOGITS, 20_000, SamplingParams(top_k=3))
    inside = torch.tensor([0, 2, 3])
    assert set(tokens.tolist()) == {0, 2, 3}
    renormalised = LOGITS[inside].softmax(-1)
    assert chi_square(torch.searchsorted(inside, tokens), renormalised) < 13.8  # 2 degrees, one case of 1,000
    torch.testing.assert_close(logprobs, renormalised.log()[torch.searchsorted(inside, tokens)])


def test_top_p_samples_only_inside_and_log_probs_are_renormalised():
    """Sorted probabilities are .48 (0), .29 (3), .11 (2), ..., so 0.6 keeps two tokens."""
    tokens, logprobs = many(LOGITS, 5_000, SamplingParams(top_p=0.6))
    assert set(tokens.tolist()) == {0, 3}
    renormalised = LOGITS[[0, 3]].log_softmax(-1)
    torch.testing.assert_close(logprobs, renormalised[(tokens == 3).long()])


@pytest.mark.parametrize("settings", [{}, {"top_k": 4}, {"top_p": 0.7}, {"top_k": 4, "top_p": 0.9, "temperature": 2.0}])
def test_the_probabilities_of_all_tokens_that_can_be_drawn_sum_to_one(settings):
    tokens, logprobs = many(LOGITS, 20_000, SamplingParams(**settings))
    own = dict(zip(tokens.tolist(), logprobs.double().exp().tolist(), strict=True))
    assert sum(own.values()) == pytest.approx(1, abs=1e-6)


def test_temperature_comes_before_top_p():
    """At temperature 3 the first two tokens have a total below 0.6, so a third one is kept."""
    tokens, _ = many(LOGITS, 5_000, SamplingParams(top_p=0.6, temperature=3.0))
    exact = (LOGITS / 3).softmax(-1).sort(descending=True)
    needed = int((exact.values.cumsum(0) < 0.6).sum()) + 1
    assert set(tokens.tolist()) == set(exact.indices[:needed].tolist())
    assert needed > 2


def test_half_precision_logits_give_float32_log_probs():
    _, logprobs = many(LOGITS.bfloat16(), 4, SamplingParams())
    assert logprobs.dtype == torch.float32
