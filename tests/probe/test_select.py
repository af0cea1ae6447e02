"""Tests of the choice: softmax(Q / beta) and its limits, the KL-constrained optimum, and the required functions."""

import itertools
import math

import numpy as np
import pytest

from gvpo.errors import ConfigError, DataError
from gvpo.probe.features import embed_all
from gvpo.probe.fit import FitSettings, fit_probe
from gvpo.probe.qprobe import QProbe
from gvpo.probe.select import best_of, choose, choose_among, tilted, weights

P0 = np.array([0.4, 0.25, 0.15, 0.1, 0.07, 0.03])
Q = np.array([0.0, 0.1, 0.2, 0.05, 0.3, 0.5])
BETA = 0.2
CHI2_999 = 20.52
"""The 99.9% quantile of chi-squared with 5 degrees of freedom."""


def test_weights_match_hand_computed_values():
    assert weights([0.0, math.log(3)], 1.0) == pytest.approx([0.25, 0.75])
    assert weights([0.0, 2 * math.log(3)], 2.0) == pytest.approx([0.25, 0.75])


def test_beta_zero_is_the_limit_and_equal_scores_share():
    q = [0.5, 1.0, 1.0, -3.0]
    assert weights(q, 0.0).tolist() == [0.0, 0.5, 0.5, 0.0]
    assert weights(q, 1e-6) == pytest.approx(weights(q, 0.0))
    assert weights(q, 1e9) == pytest.approx([0.25] * 4)


def test_weights_survive_large_scores():
    assert weights([1e308, 0.0], 1e-3).tolist() == [1.0, 0.0]
    assert weights([1e6, 1e6 + 1], 1.0) == pytest.approx(weights([0.0, 1.0], 1.0))


@pytest.mark.parametrize("beta", [-0.1, math.inf, math.nan])
def test_an_invalid_beta_raises(beta):
    with pytest.raises(ConfigError, match="use 0"):
        weights([0.0], beta)


def test_the_limit_is_the_optimum_of_reward_minus_kl():
    """Expect E Q - beta KL(pi || p0) = beta ln Z at p0 e^{Q / beta} / Z, and less everywhere else."""
    value = lambda pi: pi @ Q - BETA * pi @ np.log(pi / P0)  # noqa: E731
    best = tilted(P0, Q, BETA)
    assert value(best) == pytest.approx(BETA * math.log(P0 @ np.exp(Q / BETA)))
    rng = np.random.default_rng(0)
    others = [rng.dirichlet(np.ones(6)) * 0.3 + best * 0.7 for _ in range(50)]
    assert all(value(other) < value(best) for other in others)


def chosen(k, count, seed=0):
    """Count how often each outcome is chosen among k samples of p0, in `count` trials."""
    rng = np.random.default_rng(seed)
    draws = rng.choice(6, size=(count, k), p=P0)
    return np.bincount([row[choose(Q[row], BETA, rng)] for row in draws], minlength=6)


def chi2(counts, expected):
    return ((counts - counts.sum() * expected) ** 2 / (counts.sum() * expected)).sum()


def test_choosing_among_many_draws_samples_the_kl_constrained_optimum():
    """Expect k = 400 to pass a chi-squared test at 99.9% against the limit, and 2 samples or no choice to fail it."""
    limit = tilted(P0, Q, BETA)
    assert chi2(chosen(400, 4000), limit) < CHI2_999
    assert chi2(chosen(2, 4000), limit) > 3 * CHI2_999
    assert chi2(chosen(1, 4000), limit) > 3 * CHI2_999
    assert chi2(chosen(1, 4000), P0) < CHI2_999


def exact(k, p0, q, beta):
    """Compute the distribution of the choice among k samples, summed over all multisets of samples."""
    found = np.zeros(len(p0))
    for counts in itertools.product(range(k + 1), repeat=len(p0)):
        if sum(counts) == k:
            ways = math.factorial(k) / math.prod(map(math.factorial, counts)) * math.prod(p0**counts)
            mass = np.array(counts) * np.exp(q / beta)
            found += ways * mass / mass.sum()
    return found


def test_the_distance_to_the_limit_decreases_as_one_over_k():
    p0, q = P0[:3] / P0[:3].sum(), Q[[5, 1, 2]]
    limit = tilted(p0, q, BETA)
    gaps = [np.abs(exact(k, p0, q, BETA) - limit).sum() for k in (1, 10, 20, 40)]
    assert exact(1, p0, q, BETA) == pytest.approx(p0)
    assert gaps[0] > 4 * gaps[1]
    assert gaps[1] / gaps[2] == pytest.approx(2, abs=0.2)
    assert gaps[2] / gaps[3] == pytest.approx(2, abs=0.1)


def lengths_and_digits(prompts, texts):
    """Compute features with a plain function."""
    return [[len(text), sum(map(str.isdigit, text)), len(prompt)] for prompt, text in zip(prompts, texts, strict=True)]


def random_texts(seed=0):
    """Sample with a plain function: letters and digits, of any length up to 6."""
    rng = np.random.default_rng(seed)
    return lambda prompt, k: ["".join(rng.choice(list("ab12"), size=rng.integers(1, 7))) for _ in range(k)]


def test_only_sample_and_embed_are_needed():
    """Use plain functions end to end: the reward is the fraction of digits, and the choice has more of them."""
    sample, prompts = random_texts(), ["one", "two", "three"] * 20
    drawn = [sample(prompt, 8) for prompt in prompts]
    texts = [text for group in drawn for text in group]
    owners = np.repeat(np.arange(len(prompts)), 8)
    rewards = [sum(map(str.isdigit, text)) / len(text) for text in texts]
    features = embed_all(lengths_and_digits, [prompts[owner] for owner in owners], texts)
    probe = fit_probe(features, owners, rewards, FitSettings(learning_rate=1e-2, batch=100)).probe
    choices = [
        best_of(prompt, sample=sample, embed=lengths_and_digits, probe=probe, k=8, beta=0.0, seed=seed)
        for seed, prompt in enumerate(prompts)
    ]
    share = [sum(map(str.isdigit, choice.text)) / len(choice.text) for choice in choices]
    assert np.mean(share) > np.mean(rewards) + 0.25
    assert all(choice.scores[choice.index] == choice.scores.max() for choice in choices)


def test_the_choice_is_reproducible_by_seed_and_prompt():
    probe = QProbe(np.array([0.1, 0.2, 0.0], dtype=np.float32))

    def pick(seed):
        draws = random_texts(3)
        return best_of("p", sample=draws, embed=lengths_and_digits, probe=probe, beta=1.0, seed=seed)

    assert pick(1).index == pick(1).index
    assert len(pick(1).scores) == 48
    assert len({pick(seed).index for seed in range(20)}) > 5
    assert choose_among(["a", "b"], [0.0, 0.0], 1.0, name="x", seed=0).index in (0, 1)


def test_a_sampler_without_completions_raises():
    with pytest.raises(DataError, match="sample gave no completions of 'p'"):
        best_of("p", sample=lambda prompt, k: [], embed=lengths_and_digits, probe=QProbe(np.zeros(3, dtype=np.float32)))


def test_the_limit_needs_a_beta():
    with pytest.raises(ConfigError, match="needs one above 0"):
        tilted(P0, Q, 0.0)
