"""Tests of statistics against enumeration, exact intervals and simulation."""

import itertools
from statistics import fmean

import numpy as np
import pytest

from gvpo.evaluation import metrics
from gvpo.evaluation.metrics import (
    bootstrap,
    difference,
    interval,
    majority,
    majority_at_k,
    pass_at_k,
    problems_needed,
    sign_test,
)


@pytest.mark.parametrize(("right", "samples"), [(0, 5), (1, 5), (2, 6), (5, 5), (3, 4)])
def test_pass_at_k_is_the_fraction_of_subsets_with_a_correct_sample(right: int, samples: int):
    marks = [index < right for index in range(samples)]
    for k in range(1, samples + 1):
        subsets = [any(subset) for subset in itertools.combinations(marks, k)]
        assert pass_at_k(right, samples, k) == pytest.approx(fmean(subsets))


def test_pass_at_k_does_not_overflow_and_needs_k_samples():
    assert pass_at_k(1, 10_000, 100) == pytest.approx(0.01)
    with pytest.raises(ValueError, match="pass@3 needs at least 3 samples"):
        pass_at_k(1, 2, 3)


@pytest.mark.parametrize(
    ("votes", "right", "value"),
    [
        (["7", "7", "8"], [True, True, False], 1.0),
        (["8", "7", "8"], [False, True, False], 0.0),
        (["7", "8"], [True, False], 0.5),  # a tie
        (["7", "8", "9", None], [True, False, False, False], 1 / 3),
        ([None, None, "7"], [False, False, True], 1.0),  # a sample without an answer has no vote
        ([None, None], [False, False], 0.0),
    ],
)
def test_majority_is_the_correctness_of_the_most_frequent_answer(
    votes: list[str | None], right: list[bool], value: float
):
    assert majority(votes, right) == pytest.approx(value)
    assert majority_at_k(votes, right, len(votes)) == pytest.approx(value)


def test_majority_of_fewer_samples_is_the_mean_over_subsets():
    votes = ["7", "7", "7", "8", "8", "9"]
    right = [vote == "7" for vote in votes]
    exact = fmean(
        majority([votes[i] for i in chosen], [right[i] for i in chosen])
        for chosen in itertools.combinations(range(6), 3)
    )
    found = majority_at_k(votes, right, 3)
    assert found == pytest.approx(exact, abs=0.08)  # 200 subsets: a standard error of 0.03
    assert found == majority_at_k(votes, right, 3)
    assert majority_at_k(votes, right, 1) == pytest.approx(0.5, abs=0.11)
    with pytest.raises(ValueError, match="maj@7 needs at least 7"):
        majority_at_k(votes, right, 7)


def test_bootstrap_means_have_the_standard_error_of_a_mean():
    scores = np.random.default_rng(0).random(200)
    means = bootstrap(scores)
    assert len(means) == metrics.DRAWS
    assert means.mean() == pytest.approx(scores.mean(), abs=0.002)
    assert means.std() == pytest.approx(scores.std() / np.sqrt(200), rel=0.03)
    assert np.array_equal(means, bootstrap(scores))
    assert not np.array_equal(means, bootstrap(scores, seed=1))


def test_intervals_contain_the_true_mean_about_95_percent_of_the_time():
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        low, high = interval((generator.random(100) < 0.3).astype(float).tolist())
        held += low <= 0.3 <= high
    assert 180 <= held <= 199  # 190 expected; three standard errors are 9


@pytest.mark.parametrize(("score", "count"), [(1.0, 30), (0.0, 30), (1.0, 500), (0.0, 1)])
def test_equal_scores_have_the_exact_interval(score: float, count: int):
    """Clopper-Pearson: for n successes out of n, the lower end p solves p^n = 0.025."""
    low, high = interval([score] * count)
    end = 0.025 ** (1 / count)
    assert (low, high) == pytest.approx((end, 1.0) if score else (0.0, 1 - end))


def test_a_difference_is_paired():
    """Both models solve half of the problems and differ on one in ten: an unpaired test would not show it."""
    generator = np.random.default_rng(1)
    other = (generator.random(400) < 0.5).astype(float)
    one = np.where(generator.random(400) < 0.1, 1.0, other)
    found = difference(one.tolist(), other.tolist())
    assert found.mean == pytest.approx((one - other).mean())
    assert found.settled
    assert found.interval[0] > 0
    assert found.interval[1] - found.interval[0] < 0.06  # about 4 s / sqrt(n), s = 0.22; unpaired it would be 0.14
    reverse = difference(other.tolist(), one.tolist())
    assert (reverse.mean, reverse.needed) == (-found.mean, found.needed)


def test_a_zero_difference_is_not_settled_and_has_no_needed_number():
    same = difference([1.0, 0.0] * 20, [1.0, 0.0] * 20)
    assert (same.mean, same.needed, same.settled) == (0.0, None, False)
    assert same.interval[0] < 0 < same.interval[1]
    always = difference([1.0] * 40, [0.0] * 40)
    assert (always.mean, always.needed, always.settled) == (1.0, None, True)
    assert always.interval == pytest.approx((2 * 0.025 ** (1 / 40) - 1, 1.0))


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (4, 0), (5, 0), (6, 0), (1, 7), (3, 9), (5, 5)])
def test_the_sign_test_is_the_fraction_of_coin_tosses_at_least_as_unequal(wins: int, losses: int):
    n = wins + losses
    tosses = [abs(2 * sum(toss) - n) >= abs(wins - losses) for toss in itertools.product((0, 1), repeat=n)]
    assert sign_test([0.5] * wins + [-0.1] * losses + [0.0] * 9) == pytest.approx(fmean(tosses))


@pytest.mark.parametrize(("wins", "settled"), [(4, False), (5, False), (6, True)])
def test_few_wins_without_a_loss_do_not_settle_a_difference(wins: int, settled: bool):
    found = difference([1.0] * wins + [0.0] * (40 - wins), [0.0] * 40)
    assert found.interval[0] > 0  # by the bootstrap alone, all three would be settled
    assert found.settled is settled


def test_the_needed_number_of_problems_has_a_power_of_80_percent():
    """Simulate benchmarks of this size with problems of the same kind: 80% of them must show the difference."""
    generator = np.random.default_rng(2)
    kinds, chances = np.array([-1.0, 0.0, 1.0]), [0.10, 0.70, 0.20]
    needed = problems_needed(generator.choice(kinds, p=chances, size=20_000).tolist())
    assert needed == pytest.approx(228, rel=0.1)  # (1.96 + 0.84)^2 (0.3 - 0.01) / 0.01
    shown = 0
    for _ in range(400):
        gaps = generator.choice(kinds, p=chances, size=needed)
        shown += abs(gaps.mean()) > 1.96 * gaps.std(ddof=1) / np.sqrt(needed)
    assert 0.73 <= shown / 400 <= 0.87  # three standard errors are 0.06
