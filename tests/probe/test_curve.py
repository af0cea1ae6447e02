"""Tests of the expected reward by k against closed forms and enumeration, and of its intervals."""

import itertools
import math

import numpy as np
import pytest

from gvpo.errors import ConfigError, DataError
from gvpo.probe.curve import ScoredCandidates, doubling, expected_rewards, reward_curves
from gvpo.probe.select import weights

Q = np.array([0.3, -0.1, 0.3, 0.9, 0.0, 0.2])
R = np.array([1.0, 0.0, 0.0, 1.0, 1.0, 0.0])
KS = [1, 2, 3, 4, 5, 6]


def enumerated(q, r, k, beta):
    """Compute the mean over all k-subsets by enumeration."""
    picks = [list(pick) for pick in itertools.combinations(range(len(q)), k)]
    return float(np.mean([weights(q[pick], beta) @ r[pick] for pick in picks]))


def test_beta_zero_is_exact_even_with_equal_scores():
    found = expected_rewards(Q, R, KS, 0.0)
    assert found == pytest.approx([enumerated(Q, R, k, 0.0) for k in KS], abs=1e-12)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_values_between_the_ends_are_unbiased(beta):
    """Expect values within 4 standard errors of the enumeration, and exact values at both ends."""
    exact = np.array([enumerated(Q, R, k, beta) for k in KS])
    runs = np.array([expected_rewards(Q, R, KS, beta, rng=np.random.default_rng(seed)) for seed in range(200)])
    error = runs.std(axis=0, ddof=1) / math.sqrt(len(runs))
    assert (error[1:-1] > 0).all()
    assert (np.abs(runs.mean(axis=0) - exact)[1:-1] < 4 * error[1:-1]).all()
    assert runs[:, [0, -1]] == pytest.approx(np.tile(exact[[0, -1]], (200, 1)), abs=1e-12)


def test_small_betas_converge_to_the_best():
    close = expected_rewards(Q, R, KS, 1e-9)
    assert close[[0, -1]] == pytest.approx(expected_rewards(Q, R, KS, 0.0)[[0, -1]])
    assert np.isfinite(expected_rewards(1e5 * Q, R, KS, 1e-3)).all()


def test_the_best_by_reward_is_pass_at_k():
    """Expect 1 - (n - c choose k) / (n choose k) for c correct completions of n."""
    n, c = 20, 4
    rewards = np.array([1.0] * c + [0.0] * (n - c))
    ks = [1, 5, 17, 20]
    expected = [1 - math.comb(n - c, k) / math.comb(n, k) for k in ks]
    assert expected_rewards(rewards, rewards, ks, 0.0) == pytest.approx(expected)


def test_one_completion():
    assert expected_rewards([3.0], [0.25], [1], 0.1) == pytest.approx([0.25])


@pytest.mark.parametrize(("ks", "message"), [([0, 1], "k from 0 to 1"), ([7], "k from 7 to 7 of 6"), ([], "k from 0")])
def test_error_explains_an_invalid_k(ks, message):
    with pytest.raises(DataError, match=message):
        expected_rewards(Q, R, ks, 0.0)


def test_a_negative_beta_raises():
    with pytest.raises(ConfigError, match="beta is -1"):
        expected_rewards(Q, R, [1], -1)


def prompts(count, size=8, skill=2.0, seed=0):
    """Return prompts with scores that correlate with the rewards."""
    rng = np.random.default_rng(seed)
    rewards = (rng.random((count, size)) < rng.random((count, 1))).astype(float)
    scores = skill * rewards + rng.normal(size=(count, size))
    return [ScoredCandidates(*pair) for pair in zip(scores, rewards, strict=True)]


def test_curves_of_a_probe_are_between_random_and_best():
    found = reward_curves(prompts(60), betas=[0.0, 0.5])
    assert found["ks"] == [1, 2, 4, 8]
    assert (found["prompts"], found["left_out"]) == (60, 0)
    assert list(found["arms"]) == ["random", "beta 0", "beta 0.5", "best"]
    blind, best, ceiling = (np.array(found["arms"][name]["mean"]) for name in ("random", "beta 0", "best"))
    assert np.ptp(blind) == 0
    assert (best[1:] > blind[1:]).all()
    assert (best <= ceiling + 1e-12).all()
    assert best[0] == pytest.approx(blind[0])
    for arm in found["arms"].values():
        assert all(low <= mean <= high for low, mean, high in zip(arm["low"], arm["mean"], arm["high"], strict=True))
        assert arm["gain"] == pytest.approx(np.array(arm["mean"]) - blind)


def test_intervals_contain_the_true_mean_about_95_percent_of_the_time():
    """Check 95% intervals of the random curve on 200 datasets of 40 prompts; the true mean is 1/2."""
    hits = 0
    for seed in range(200):
        arm = reward_curves(prompts(40, seed=seed), betas=[], ks=[1], resamples=400)["arms"]["random"]
        hits += arm["low"][0] <= 0.5 <= arm["high"][0]
    assert 0.88 <= hits / 200 <= 0.99


def test_gains_are_paired():
    """Expect a much narrower interval of the gain than of the mean for prompts of very different difficulty."""
    arm = reward_curves(prompts(60, skill=5.0), betas=[0.0], ks=[2])["arms"]["beta 0"]
    assert arm["gain_high"][0] - arm["gain_low"][0] < 0.5 * (arm["high"][0] - arm["low"][0])
    assert arm["gain_low"][0] > 0


def test_prompts_with_too_few_completions_are_skipped_and_counted():
    assert reward_curves([*prompts(1, size=2), *prompts(10, size=4)], betas=[])["left_out"] == 1
    mixed = [*prompts(5, size=3), *prompts(7, size=6)]
    assert reward_curves(mixed, betas=[0.1])["ks"] == [1, 2, 3]
    found = reward_curves(mixed, betas=[0.1], ks=[6, 1])
    assert (found["ks"], found["prompts"], found["left_out"]) == ([1, 6], 7, 5)
    with pytest.raises(DataError, match="no prompt has as many"):
        reward_curves(mixed, betas=[0.1], ks=[9])


def test_curves_are_reproducible_by_seed():
    one, same, other = (reward_curves(prompts(9), betas=[0.3], seed=seed) for seed in (1, 1, 2))
    assert one == same
    assert one["arms"]["beta 0.3"]["mean"] != other["arms"]["beta 0.3"]["mean"]


def test_doubling():
    assert doubling(48) == [1, 2, 4, 8, 16, 32, 48]
    assert doubling(8) == [1, 2, 4, 8]
    assert doubling(1) == [1]
    assert doubling(0) == []
