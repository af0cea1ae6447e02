"""Tests of the masked softmax, its order with temperature, top-k and top-p, dead ends, and sequence weights."""

import itertools
import math

import pytest
import torch

from gvpo.errors import ConfigError
from gvpo.sampling import SamplingParams
from gvpo.sampling.draw import draw
from gvpo.sampling.exclusion.exclusion import (
    CompiledExclusion,
    effective_size,
    exclude,
    log_acceptance,
    log_probability,
    sequence_weights,
)
from gvpo.sampling.exclusion.spec import Exclusion
from tests.sampling.exclusion.world import compiled, vocabulary

WORDS = vocabulary("a", "b", "aa", "ab")
SIZE = WORDS.size


def logits(rows=1, seed=0):
    return 3 * torch.randn(rows, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def restricted(scores, allowed):
    """Restrict P and renormalize it in probabilities, by its definition."""
    inside = [math.exp(value) if ok else 0.0 for value, ok in zip(scores.tolist(), allowed, strict=True)]
    return torch.tensor(inside, dtype=torch.float64) / sum(inside)


def test_sampling_distribution_is_the_masked_softmax():
    exclusion = compiled(WORDS, ban_tokens=(2, 4))
    scores = logits(50)
    found = exclude(scores, [exclusion.start] * 50, exclusion)
    for row, q, log_allowed in zip(scores, found.scores.softmax(-1), found.log_allowed, strict=True):
        assert (q - restricted(row, [1, 1, 0, 1, 0])).abs().max() < 1e-12
        assert q[2] == q[4] == 0
        assert log_allowed.exp() == pytest.approx(float(row.softmax(-1)[[0, 1, 3]].sum()), abs=1e-12)


def test_it_is_the_nearest_distribution_in_kl_at_distance_minus_log_p_of_the_allowed():
    """Compare with 2000 other distributions on the allowed tokens, near and far."""
    exclusion = compiled(WORDS, ban_tokens=(2,))
    p = logits(seed=3)[0].softmax(-1)
    found = exclude(p.log()[None], [exclusion.start], exclusion)
    allowed = torch.tensor([0, 1, 3, 4])
    q = found.scores[0].softmax(-1)[allowed]
    smallest = float((q * (q / p[allowed]).log()).sum())
    assert smallest == pytest.approx(-float(found.log_allowed), abs=1e-12)
    generator = torch.Generator().manual_seed(1)
    for number in range(2000):
        noise = torch.randn(4, dtype=torch.float64, generator=generator) * (2.0 if number % 2 else 1e-3)
        other = (q.log() + noise).softmax(-1)
        distance = float((other * (other / p[allowed]).log()).sum())
        assert distance >= smallest - 1e-15
        assert distance == pytest.approx(smallest + float((other * (other / q).log()).sum()), abs=1e-12)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_log_p_of_the_allowed_uses_the_sampling_temperature(temperature):
    exclusion = compiled(WORDS, ban_tokens=(1, 2))
    scores = logits()
    found = exclude(scores, [exclusion.start], exclusion, temperature=temperature)
    p = (scores[0] / temperature).softmax(-1)
    assert float(found.log_allowed.exp()) == pytest.approx(float(p[[0, 3, 4]].sum()), abs=1e-12)
    assert log_probability(scores, scores < 99, temperature=0).tolist() == [0.0]


def test_exclusion_comes_before_top_k():
    """If the two most likely tokens are banned, top-k keeps the next two."""
    scores = torch.tensor([[5.0, 4.0, 1.0, 0.5, -1.0]])
    exclusion = compiled(WORDS, ban_tokens=(0, 1))
    masked = exclude(scores, [exclusion.start], exclusion).scores.expand(4000, -1)
    noise = torch.linspace(0, 0.9999, 4000, dtype=torch.float64)
    tokens, _ = draw(masked, noise, SamplingParams(top_k=2))
    share = torch.bincount(tokens, minlength=SIZE) / 4000
    assert share.tolist() == pytest.approx([0, 0, math.e**0.5 / (1 + math.e**0.5), 1 / (1 + math.e**0.5), 0], abs=1e-3)


def test_exclusion_comes_before_top_p():
    scores = torch.tensor([[0.6, 0.2, 0.1, 0.06, 0.04]]).log()
    exclusion = compiled(WORDS, ban_tokens=(0,))
    masked = exclude(scores, [exclusion.start], exclusion).scores.expand(4000, -1)
    tokens, _ = draw(masked, torch.linspace(0, 0.9999, 4000, dtype=torch.float64), SamplingParams(top_p=0.6))
    assert set(tokens.tolist()) == {1, 2}, "0.2 and 0.1 are three quarters of the rest"


def test_bfloat16_logits_are_summed_in_float32():
    exclusion = compiled(WORDS, ban_tokens=(2,))
    found = exclude(logits().bfloat16(), [exclusion.start], exclusion)
    assert found.scores.dtype == torch.bfloat16
    assert found.log_allowed.dtype == torch.float32


def test_probabilities_below_the_smallest_number_are_fine_in_logs():
    scores = torch.tensor([[0.0, -500.0, -501.0, -900.0, -900.0]])
    exclusion = compiled(WORDS, allow_tokens=(1, 2), ban_tokens=(0,))
    found = exclude(scores, [exclusion.start], exclusion)
    assert found.scores.softmax(-1)[0, 1] == pytest.approx(1 / (1 + math.exp(-1)))
    assert found.log_allowed[0] == pytest.approx(-500 + math.log(1 + math.exp(-1)))


def test_a_row_at_a_dead_end_is_ended_with_weight_zero_and_other_rows_are_unchanged():
    exclusion = compiled(WORDS, allow_strings=("aab",), ban_strings=("ab",))
    scores = logits(2)
    stuck = exclusion.after([3])  # "aa", and "b" may not come
    found = exclude(scores, [stuck, exclusion.start], exclusion)
    assert found.scores[0].softmax(-1).tolist() == [1, 0, 0, 0, 0]
    assert found.log_allowed[0] == -math.inf
    assert found.log_allowed[1] > -math.inf
    assert sequence_weights(found.log_allowed).tolist() == [0, 2]


def test_tokens_that_another_processor_removed_cannot_continue_a_row():
    """For example, min_new_tokens bans the stop token where only that token is allowed."""
    exclusion = compiled(WORDS, allow_strings=("a",))
    scores = logits()
    scores[0, 0] = -math.inf
    found = exclude(scores, [exclusion.after([1])], exclusion)
    assert found.log_allowed[0] == -math.inf
    assert found.scores[0].softmax(-1).tolist() == [1, 0, 0, 0, 0]


def test_a_dead_end_without_a_stop_token_is_an_error():
    words = vocabulary("a", "b", stops=0)
    exclusion = CompiledExclusion(Exclusion(allow_strings=("a",)), words)
    with pytest.raises(ConfigError, match="no stop token"):
        exclude(torch.zeros(1, 2), [exclusion.after([0])], exclusion)


def test_logits_of_another_size_are_an_error():
    exclusion = compiled(WORDS, ban_tokens=(1,))
    with pytest.raises(ConfigError, match="for 5 tokens and the model has 7"):
        exclude(torch.zeros(1, 7), [exclusion.start], exclusion)


def enumerated(exclusion, length):
    """Yield each sequence of a Markov model: tokens, probability under P and under the exclusion's Q, and weight."""
    table = logits(SIZE, seed=7)  # row: the previous token; row 0 at the start
    for row in itertools.product(range(SIZE), repeat=length):
        if 0 in row and any(row[row.index(0) :]):
            continue  # no token follows the end
        tokens = row[: row.index(0) + 1] if 0 in row else row
        p = q = weight = 1.0
        state, before = exclusion.start, 0
        for token in tokens:
            found = exclude(table[before][None], [state], exclusion)
            p *= float(table[before].softmax(-1)[token])
            q *= float(found.scores[0].softmax(-1)[token])
            weight *= float(found.log_allowed.exp())
            state = exclusion.advance(state, token) if exclusion.allowed(state)[token] else state
            before = token
        yield tokens, p, q, weight


def good(tokens, length):
    """Return whether the text has no "aab", and ends if there is room for an end."""
    text = b"".join(WORDS.tokens[token] or b"" for token in tokens)
    return b"aab" not in text and (0 in tokens or len(tokens) == length)


def test_weights_correct_samples_to_the_model_given_that_the_text_is_good():
    """Check by enumeration: q w = p on good sequences, and E[w] = P(good). The unweighted distribution differs."""
    exclusion = compiled(WORDS, ban_strings=("aab",))
    rows = list(enumerated(exclusion, 5))
    p_good = sum(p for tokens, p, _, _ in rows if good(tokens, 5))
    assert 0.3 < p_good < 0.97
    assert sum(q for _, _, q, _ in rows) == pytest.approx(1, abs=1e-12)
    assert sum(q * weight for _, _, q, weight in rows) == pytest.approx(p_good, abs=1e-12)
    for tokens, p, q, weight in rows:
        if good(tokens, 5):
            assert q * weight == pytest.approx(p, abs=1e-14)
        else:
            assert q == 0
    assert sum(abs(q - p / p_good) for tokens, p, q, _ in rows if good(tokens, 5)) > 0.01


def test_weights_are_correct_with_dead_ends():
    """ "aa" cannot be finished. It is ended with weight 0, and the rest still sums to P(good)."""
    exclusion = compiled(WORDS, allow_strings=("aab", "ba", "b"), ban_strings=("ab",))
    rows = list(enumerated(exclusion, 4))
    p_good = sum(p for tokens, p, _, _ in rows if tokens in {(2, 1, 0), (2, 0)})
    assert sum(q for tokens, _, q, _ in rows if tokens == (3, 0)) > 0.01
    assert sum(q * weight for _, _, q, weight in rows) == pytest.approx(p_good, abs=1e-12)


def test_sequence_weights_have_mean_one_in_each_group():
    sums = torch.tensor([-700.0, -701.0, 0.0, -math.inf, -math.inf])
    weights = sequence_weights(sums, torch.tensor([4, 4, 1, 1, 0]))
    share = 1 / (1 + math.exp(-1))
    assert weights.tolist() == pytest.approx([2 * share, 2 * (1 - share), 2, 0, 0])
    assert effective_size(weights[:2]) == pytest.approx(1 / (share**2 + (1 - share) ** 2))
    assert effective_size(torch.ones(7)) == pytest.approx(7)
    assert effective_size(torch.zeros(3)) == 0
    assert log_acceptance(torch.tensor([0.2, 0.4, 0.0]).log()) == pytest.approx(math.log(0.2))
