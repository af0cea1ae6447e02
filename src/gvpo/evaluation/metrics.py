"""Statistics of an evaluation: pass@k, majority votes, intervals, differences, and what would settle them.

A problem with its samples is the unit throughout: benchmarks are small, and which problems they hold is most of the
noise. Intervals are 95% percentile bootstrap ones; numbers are functions of their arguments alone.
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
"""Bootstrap samples of an interval."""
SUBSETS = 200
"""Random subsets that a majority of fewer votes than there are is averaged over."""
_CHUNK = 500  # bootstrap samples at a time: memory

Interval = tuple[float, float]
Scores = npt.NDArray[np.float64]


def pass_at_k(right: int, samples: int, k: int) -> float:
    """How likely at least one of k samples is right, without bias from `samples` >= k of them.

        1 - C(samples - right, k) / C(samples, k)

    Reference: Chen et al., arXiv:2107.03374, equation 1.

    Raises:
        ValueError: fewer samples than k.
    """
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} needs at least {k} samples, and there are {samples}")
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def majority(votes: Sequence[Vote], right: Sequence[bool]) -> float:
    """How likely the most frequent answer is right, where a tie is broken at random.

    Args:
        votes: one a sample; None gives no answer and is not counted.
        right: whether each sample is right.

    Returns:
        0 to 1; 0 where nobody votes.
    """
    counts = Counter(vote for vote in votes if vote is not None)
    if not counts:
        return 0.0
    most = max(counts.values())
    first = dict(reversed(list(zip(votes, right, strict=True))))
    return fmean(first[vote] for vote, count in counts.items() if count == most)


def majority_at_k(votes: Sequence[Vote], right: Sequence[bool], k: int, *, seed: int = 0) -> float:
    """`majority` of k samples: of all of them where there are k, else the mean over `SUBSETS` random subsets.

    Raises:
        ValueError: fewer samples than k.
    """
    if not 1 <= k <= len(votes):
        raise ValueError(f"maj@{k} needs at least {k} samples, and there are {len(votes)}")
    if k == len(votes):
        return majority(votes, right)
    generator = np.random.default_rng([seed, k, len(votes)])
    subsets = [generator.choice(len(votes), k, replace=False) for _ in range(SUBSETS)]
    return fmean(majority([votes[i] for i in chosen], [right[i] for i in chosen]) for chosen in subsets)


def bootstrap(scores: Sequence[float] | Scores, *, seed: int = 0, draws: int = DRAWS) -> Scores:
    """Means of problems drawn with replacement.

    Args:
        scores: one a problem.
        seed: of the draws.
        draws: how many means.

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
    """The 95% interval of a mean over problems.

    Where all scores are the same the bootstrap would have no width. Then it is how far problems that scored otherwise,
    of a share that would not show up among so many in 2.5% of benchmarks, could move the mean: for scores of 0 or 1 the
    exact (Clopper-Pearson) interval.

    Args:
        scores: one a problem.
        least: the lowest score there can be.
        most: the highest.
        seed: of the bootstrap.
    """
    if max(scores) > min(scores):
        return quantiles(bootstrap(scores, seed=seed))
    seen = ((1 - LEVEL) / 2) ** (1 / len(scores))
    return seen * scores[0] + (1 - seen) * least, seen * scores[0] + (1 - seen) * most


def quantiles(means: Scores) -> Interval:
    """The middle 95% of bootstrap means."""
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Difference:
    """How much better one model is than another on the same problems.

    Args:
        mean: first minus second.
        interval: its 95% interval.
        problems: how many both were given.
        needed: how many problems, sampled as often as these, would show a difference of this size in 80% of benchmarks,
            at 95% confidence; None where the mean is 0, or the same on every problem: its spread is then unknown.
        sign: p of the exact sign test; see `sign_test`.
    """

    mean: float
    interval: Interval
    problems: int
    needed: int | None
    sign: float

    @property
    def settled(self) -> bool:
        """Whether the interval leaves out 0, and the sign test agrees: of few unequal problems it is too sure."""
        return (self.interval[0] > 0 or self.interval[1] < 0) and self.sign < 1 - LEVEL


def difference(one: Sequence[float], other: Sequence[float], *, seed: int = 0) -> Difference:
    """The paired difference of two models' scores.

    Args:
        one: a score a problem.
        other: the other model's, of the same problems in the same order.
        seed: of the bootstrap.
    """
    gaps = [a - b for a, b in zip(one, other, strict=True)]
    between = interval(gaps, least=-1.0, seed=seed)
    return Difference(fmean(gaps), between, len(gaps), problems_needed(gaps), sign_test(gaps))


def sign_test(gaps: Sequence[float]) -> float:
    """How likely signs at least as unequal are where both models are as likely to win a problem: two-sided, exact.

    p = min(1, 2 sum_{i <= min(wins, losses)} C(n, i) / 2^n),   n = wins + losses; equal problems do not count
    """
    wins, losses = sum(gap > 0 for gap in gaps), sum(gap < 0 for gap in gaps)
    n = wins + losses
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(min(wins, losses) + 1)) / (1 << n))


def problems_needed(gaps: Sequence[float]) -> int | None:
    """How many problems settle a paired difference with 80% power at 95% confidence, two-sided.

    n = ((z_0.975 + z_0.8) s / mean)^2,   s the standard deviation of the differences
    """
    if len(gaps) < 2 or fmean(gaps) == 0 or stdev(gaps) == 0:
        return None
    z = NormalDist().inv_cdf((1 + LEVEL) / 2) + NormalDist().inv_cdf(POWER)
    return math.ceil((z * stdev(gaps) / fmean(gaps)) ** 2)
