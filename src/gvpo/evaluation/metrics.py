"""Statistics of an evaluation: pass@k, majority votes, intervals, differences, and the sample size that decides them.

The unit is always a problem with its samples: benchmarks are small, and the choice of their problems is the main source
of noise. Intervals are 95% percentile bootstrap intervals. Every function is deterministic.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

import numpy as np
import numpy.typing as npt

from gvpo.evaluation.votes import Vote

LEVEL = 0.95
POWER = 0.8
DRAWS = 10_000
"""Number of bootstrap samples per interval."""
SUBSETS = 200
"""Number of random subsets that maj@k is averaged over if k is below the number of votes."""
_CHUNK = 500  # bootstrap samples computed at a time, to bound memory

Interval = tuple[float, float]
Scores = npt.NDArray[np.float64]


def pass_at_k(right: int, samples: int, k: int) -> float:
    """Return an unbiased estimate, from `samples` >= k samples, of the probability that one of k samples is correct.

        1 - C(samples - right, k) / C(samples, k)

    Reference: Chen et al., arXiv:2107.03374, equation 1.

    Raises:
        ValueError: If there are fewer samples than k.
    """
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} needs at least {k} samples, but there are {samples}")
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def majority(votes: Sequence[Vote], right: Sequence[bool]) -> float:
    """Return the probability that the most frequent answer is correct, if ties are broken at random.

    Args:
        votes: One vote per sample; None means no answer and is not counted.
        right: Whether each sample is correct.

    Returns:
        A number from 0 to 1; 0 if every vote is None.
    """
    counts = Counter(vote for vote in votes if vote is not None)
    if not counts:
        return 0.0
    most = max(counts.values())
    first = dict(reversed(list(zip(votes, right, strict=True))))
    return fmean(first[vote] for vote, count in counts.items() if count == most)


def majority_at_k(votes: Sequence[Vote], right: Sequence[bool], k: int, *, seed: int = 0) -> float:
    """Return `majority` of k samples, averaged over `SUBSETS` random subsets if there are more than k samples.

    Raises:
        ValueError: If there are fewer samples than k.
    """
    if not 1 <= k <= len(votes):
        raise ValueError(f"maj@{k} needs at least {k} samples, but there are {len(votes)}")
    if k == len(votes):
        return majority(votes, right)
    generator = np.random.default_rng([seed, k, len(votes)])
    subsets = [generator.choice(len(votes), k, replace=False) for _ in range(SUBSETS)]
    return fmean(majority([votes[i] for i in chosen], [right[i] for i in chosen]) for chosen in subsets)


def bootstrap(scores: Sequence[float] | Scores, *, seed: int = 0, draws: int = DRAWS) -> Scores:
    """Return bootstrap means: means over problems sampled with replacement.

    Args:
        scores: One score per problem.
        seed: Random seed.
        draws: Number of means.

    Returns:
        [draws] means.
    """
    values = np.asarray(scores, dtype=np.float64)
    generator = np.random.default_rng(seed)
    means = [
        values[generator.integers(len(values), size=(min(_CHUNK, draws - start), len(values)))].mean(axis=1)
        for start in range(0, draws, _CHUNK)
    ]
    return np.concatenate(means)


def interval(scores: Sequence[float], *, least: float = 0.0, most: float = 1.0, seed: int = 0) -> Interval:
    """Return the 95% interval of a mean over problems.

    If all scores are equal, the bootstrap interval would have no width. The interval then covers the means that are
    possible if a fraction of all problems has another score, where the fraction is so small that 2.5% of benchmarks of
    this size would contain no such problem. For scores of 0 or 1 this is the exact (Clopper-Pearson) interval.

    Args:
        scores: One score per problem.
        least: The lowest possible score.
        most: The highest possible score.
        seed: Random seed of the bootstrap.
    """
    if max(scores) > min(scores):
        return quantiles(bootstrap(scores, seed=seed))
    seen = ((1 - LEVEL) / 2) ** (1 / len(scores))
    return seen * scores[0] + (1 - seen) * least, seen * scores[0] + (1 - seen) * most


def quantiles(means: Scores) -> Interval:
    """Return the interval of the middle 95% of bootstrap means."""
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Difference:
    """Difference between the scores of two models on the same problems.

    Args:
        mean: First minus second.
        interval: 95% interval of the mean.
        problems: Number of problems that both models have answered.
        needed: Number of problems, sampled as often as these, that would show a difference of this size in 80% of
            benchmarks, at 95% confidence; None if the mean is 0, or if the difference is the same on every problem,
            because its spread is then unknown.
        sign: p-value of the exact sign test; see `sign_test`.
    """

    mean: float
    interval: Interval
    problems: int
    needed: int | None
    sign: float

    @property
    def settled(self) -> bool:
        """True if the interval excludes 0 and the sign test agrees; with few unequal problems it is too narrow."""
        return (self.interval[0] > 0 or self.interval[1] < 0) and self.sign < 1 - LEVEL


def difference(one: Sequence[float], other: Sequence[float], *, seed: int = 0) -> Difference:
    """Return the paired difference of two models' scores.

    Args:
        one: One score per problem.
        other: The other model's scores of the same problems, in the same order.
        seed: Random seed of the bootstrap.
    """
    gaps = [a - b for a, b in zip(one, other, strict=True)]
    between = interval(gaps, least=-1.0, seed=seed)
    return Difference(fmean(gaps), between, len(gaps), problems_needed(gaps), sign_test(gaps))


def sign_test(gaps: Sequence[float]) -> float:
    """Return the p-value of the exact two-sided sign test; its null hypothesis: wins and losses are equally likely.

    p = min(1, 2 sum_{i <= min(wins, losses)} C(n, i) / 2^n),   n = wins + losses; equal problems do not count
    """
    wins, losses = sum(gap > 0 for gap in gaps), sum(gap < 0 for gap in gaps)
    n = wins + losses
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(min(wins, losses) + 1)) / (1 << n))


def problems_needed(gaps: Sequence[float]) -> int | None:
    """Return how many problems would show a paired difference with 80% power at 95% confidence, two-sided.

    n = ((z_0.975 + z_0.8) s / mean)^2,   s the standard deviation of the differences
    """
    if len(gaps) < 2 or fmean(gaps) == 0 or stdev(gaps) == 0:
        return None
    z = NormalDist().inv_cdf((1 + LEVEL) / 2) + NormalDist().inv_cdf(POWER)
    return math.ceil((z * stdev(gaps) / fmean(gaps)) ** 2)
