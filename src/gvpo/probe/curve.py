"""Expected reward of a choice among k completions, estimated from n >= k scored completions per prompt, with intervals.

The expectation is over subsets of k of the n completions and over the choice among them. It is exact for k = 1, for
k = n and for beta 0. Otherwise it is the mean over random orders of the n completions, whose first k are an unbiased
sample.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from gvpo.errors import DataError
from gvpo.evaluation.metrics import bootstrap, quantiles
from gvpo.probe.select import Floats, check_beta, weights

ORDERS, RESAMPLES = 256, 2000
RANDOM, BEST = "random", "best"


@dataclass(frozen=True)
class ScoredCandidates:
    """Rewards and scores of a prompt's completions.

    Args:
        scores: [n] Q.
        rewards: [n].
    """

    scores: Floats
    rewards: Floats


def expected_rewards(
    scores: ArrayLike,
    rewards: ArrayLike,
    ks: Sequence[int],
    beta: float,
    *,
    orders: int = ORDERS,
    rng: np.random.Generator | None = None,
) -> Floats:
    """Return one prompt's expected reward of a choice among k of its n completions, for several k.

    Args:
        scores: [n] Q.
        rewards: [n].
        ks: Numbers from 1 to n.
        beta: Temperature of the choice; 0 chooses uniformly among the best.
        orders: Number of random orders to average over if the value is not exact.
        rng: Random generator of these orders; default: seed 0.

    Returns:
        [len(ks)].

    Raises:
        ConfigError: If beta is negative or not finite.
        DataError: If a k is not from 1 to n.
    """
    check_beta(beta)
    q, r = np.asarray(scores, dtype=np.float64), np.asarray(rewards, dtype=np.float64)
    if not ks or min(ks) < 1 or max(ks) > len(q):
        raise DataError(
            f"k from {min(ks, default=0)} to {max(ks, default=0)} of {len(q)} completions; use 1 to that many"
        )
    rng = np.random.default_rng(0) if rng is None else rng
    every = _best_of_subsets(q, r) if beta == 0 else _chosen_in_orders(q / beta, r, orders, rng)
    every[0], every[-1] = r.mean(), float(weights(q, beta) @ r)
    found: Floats = every[np.array(ks) - 1]
    return found


def _best_of_subsets(q: Floats, r: Floats) -> Floats:
    """Return, for k = 1 to n, the exact mean over all k-subsets of the reward at the highest score; shape [n].

    The best score of a subset is at most a value with C scores at or below it with probability
    (C choose k) / (n choose k). The difference from the next lower value is the probability of this best score, which
    equal scores share.
    """
    _, place, count = np.unique(q, return_inverse=True, return_counts=True)
    reward = np.bincount(place, weights=r) / count
    at_or_below, n = np.cumsum(count), len(q)
    found, share = np.empty(n), np.ones(len(count))
    for k in range(1, n + 1):
        share = share * np.maximum(at_or_below - k + 1, 0) / (n - k + 1)
        found[k - 1] = np.diff(share, prepend=0.0) @ reward
    return found


def _chosen_in_orders(z: Floats, r: Floats, orders: int, rng: np.random.Generator) -> Floats:
    """Return, for k = 1 to n, the mean over random orders of sum softmax(z) r among the first k; shape [n]."""
    order = rng.permuted(np.tile(np.arange(len(z)), (orders, 1)), axis=1)
    newest = np.exp(
        z[order] - np.logaddexp.accumulate(z[order], axis=1)
    )  # softmax weight of the k-th among the first k
    mean, found = r[order][:, 0].copy(), np.empty(len(z))
    found[0] = mean.mean()
    for k in range(1, len(z)):
        mean += (r[order[:, k]] - mean) * newest[:, k]
        found[k] = mean.mean()
    return found


def reward_curves(
    scored: Sequence[ScoredCandidates],
    *,
    betas: Sequence[float],
    ks: Sequence[int] | None = None,
    seed: int = 0,
    orders: int = ORDERS,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """Return the mean expected reward over prompts by k, with bootstrap intervals over prompts.

    Args:
        scored: Prompts; prompts with fewer than max(ks) completions are skipped and counted.
        betas: Temperatures of the choice, one curve per temperature.
        ks: Numbers of completions; default: 1, 2, 4, ... and the number that nine in ten prompts have.
        seed: Random seed of the orders and the bootstrap.
        orders: See `expected_rewards`.
        resamples: Number of bootstrap samples.

    Returns:
        JSON values: `ks`, `prompts`, `left_out`, and `arms`. An arm is a way to choose: "random"; "best", the upper
        bound that chooses by reward; "beta B", the probe. Each arm has `mean`, `low`, `high` and, relative to "random"
        on the same prompts, `gain`, `gain_low`, `gain_high`, as lists over ks. Intervals are the middle 95%.

    Raises:
        DataError: If no prompt has enough completions.
    """
    ks = doubling(_usual_size(scored)) if ks is None else sorted(set(ks))
    used = [one for one in scored if ks and len(one.rewards) >= ks[-1]]
    if not used or ks[0] < 1:
        raise DataError("no prompt has as many rewarded completions as the largest k; use a smaller one")
    curves = _curves(used, betas, ks, seed, orders)
    arms = {name: _arm(values, curves[RANDOM], seed, resamples) for name, values in curves.items()}
    return {"ks": list(ks), "prompts": len(used), "left_out": len(scored) - len(used), "arms": arms}


def _usual_size(scored: Sequence[ScoredCandidates]) -> int:
    """Return the fewest completions of nine in ten prompts, so that few prompts cannot shorten the curves."""
    return sorted(len(one.rewards) for one in scored)[len(scored) // 10] if scored else 0


def doubling(most: int) -> list[int]:
    """Return 1, 2, 4, ... up to `most`, which is always the last."""
    return sorted({*(2**power for power in range(most.bit_length())), most}) if most else []


def _curves(
    used: Sequence[ScoredCandidates], betas: Sequence[float], ks: Sequence[int], seed: int, orders: int
) -> dict[str, Floats]:
    """Return [prompts, len(ks)] expected rewards by arm. All arms of a prompt use the same orders."""

    def curve(score: str, beta: float) -> Floats:
        return np.array(
            [
                expected_rewards(
                    getattr(one, score),
                    one.rewards,
                    ks,
                    beta,
                    orders=orders,
                    rng=np.random.default_rng([seed, 0, number]),
                )
                for number, one in enumerate(used)
            ]
        )

    blind = np.array([[one.rewards.mean()] * len(ks) for one in used])
    probe = {f"beta {beta:g}": curve("scores", beta) for beta in betas}
    return {RANDOM: blind, **probe, BEST: curve("rewards", 0.0)}


def _arm(values: Floats, blind: Floats, seed: int, resamples: int) -> dict[str, list[float]]:
    """Return means over prompts and their intervals, by k; every column uses the same bootstrap samples."""

    def ends(columns: Floats) -> list[tuple[float, float]]:
        return [quantiles(bootstrap(column, seed=seed, draws=resamples)) for column in columns.T]

    gain = values - blind
    intervals, gain_intervals = ends(values), ends(gain)
    return {
        "mean": values.mean(axis=0).tolist(),
        "low": [low for low, _ in intervals],
        "high": [high for _, high in intervals],
        "gain": gain.mean(axis=0).tolist(),
        "gain_low": [low for low, _ in gain_intervals],
        "gain_high": [high for _, high in gain_intervals],
    }
