"""Choosing among completions by a probe: softmax(Q / beta) among k draws.

For k to infinity a choice is distributed as p0(y|x) e^{Q(x, y) / beta} / Z, the policy that maximises
E Q - beta KL(pi || p0): `tilted` where p0 is known.

Reference: Li et al., Q-Probe (arXiv:2402.14688), sections 2 and 3.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gvpo.errors import ConfigError, DataError
from gvpo.probe.features import Embed, embed_all
from gvpo.probe.qprobe import QProbe
from gvpo.types import Prompt

Floats = NDArray[np.float64]

K, BETA = 48, 0.1
"""The paper's number of draws, and its temperature of the choice."""


class Sample(Protocol):
    """A way to draw completions: any function with this signature."""

    def __call__(self, prompt: Prompt, k: int, /) -> Sequence[str]:
        """Draw k completions of a prompt."""
        ...


@dataclass(frozen=True)
class Choice:
    """What was chosen, and from what.

    Args:
        text: the chosen completion.
        index: its place.
        scores: [k] Q of each.
        weights: [k] the probabilities of being chosen.
    """

    text: str
    index: int
    scores: Floats
    weights: Floats


def weights(scores: ArrayLike, beta: float) -> Floats:
    """softmax(scores / beta), the probabilities of being chosen; for beta 0 its limit, equal among the best.

    Args:
        scores: [..., k] finite numbers.
        beta: 0 or more, in units of Q.

    Raises:
        ConfigError: beta is negative or not finite.
    """
    check_beta(beta)
    q = np.asarray(scores, dtype=np.float64)
    gap = q - q.max(axis=-1, keepdims=True)
    with np.errstate(over="ignore"):  # far below the best is -inf, which is right
        share = (gap == 0).astype(np.float64) if beta == 0 else np.exp(gap / beta)
    normal: Floats = share / share.sum(axis=-1, keepdims=True)
    return normal


def tilted(probabilities: ArrayLike, scores: ArrayLike, beta: float) -> Floats:
    """p0 e^{Q / beta} / Z over an enumerable set: what the choice among k draws of p0 tends to as k grows.

    Args:
        probabilities: [n] p0.
        scores: [n] Q.
        beta: above 0.

    Raises:
        ConfigError: beta is not above 0.
    """
    if beta <= 0:
        raise ConfigError(f"beta is {beta}; the limit needs one above 0")
    p0 = np.asarray(probabilities, dtype=np.float64)
    mass = p0 * weights(scores, beta)
    limit: Floats = mass / mass.sum()
    return limit


def choose(scores: ArrayLike, beta: float, rng: np.random.Generator) -> int:
    """The index of one of k completions, drawn by `weights`."""
    share = weights(scores, beta)
    return int(rng.choice(len(share), p=share))


def best_of(
    prompt: Prompt,
    *,
    sample: Sample,
    embed: Embed,
    probe: QProbe,
    k: int = K,
    beta: float = BETA,
    seed: int = 0,
) -> Choice:
    """Draw k completions and choose one by a probe: nothing but `sample` and `embed` is needed of a model.

    Args:
        prompt: text or messages.
        sample: draws completions.
        embed: computes features, as those that the probe was fitted on.
        probe: the probe.
        k: how many to draw.
        beta: the temperature of the choice; 0 takes the best.
        seed: of the choice; with the prompt it fixes it.

    Raises:
        DataError: no completions came, or features of another width.
    """
    completions = list(sample(prompt, k))
    if not completions:
        raise DataError(f"sample gave no completions of {str(prompt)[:40]!r}")
    scores = probe(embed_all(embed, [prompt] * len(completions), completions))
    return choose_among(completions, scores, beta, name=repr(prompt), seed=seed)


def choose_among(completions: Sequence[str], scores: ArrayLike, beta: float, *, name: str, seed: int) -> Choice:
    """One of some completions by their scores; the noise is a function of the seed and the name alone."""
    q = np.asarray(scores, dtype=np.float64)
    address = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    index = choose(q, beta, np.random.default_rng(int.from_bytes(address, "big")))
    return Choice(completions[index], index, q, weights(q, beta))


def check_beta(beta: float) -> None:
    """Refuse a temperature that is none.

    Raises:
        ConfigError: it is negative or not finite.
    """
    if not 0 <= beta < np.inf:
        raise ConfigError(f"beta is {beta}; use 0 (the best) or more")
