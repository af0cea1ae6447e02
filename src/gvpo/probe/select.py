"""Choice among k sampled completions by a probe, with probabilities softmax(Q / beta).

As k goes to infinity, the choice is distributed as p0(y|x) e^{Q(x, y) / beta} / Z, the policy that maximizes
E Q - beta KL(pi || p0). `tilted` computes it if p0 is known.

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
"""The paper's number of completions, and its temperature of the choice."""


class Sample(Protocol):
    """Any function with this signature that samples completions."""

    def __call__(self, prompt: Prompt, k: int, /) -> Sequence[str]:
        """Sample k completions of a prompt."""
        ...


@dataclass(frozen=True)
class Choice:
    """A chosen completion, with the scores and probabilities of all completions.

    Args:
        text: The chosen completion.
        index: Its index.
        scores: [k] Q of each completion.
        weights: [k] probabilities of being chosen.
    """

    text: str
    index: int
    scores: Floats
    weights: Floats


def weights(scores: ArrayLike, beta: float) -> Floats:
    """Return softmax(scores / beta), the probabilities of being chosen; for beta 0 its limit, equal among the best.

    Args:
        scores: [..., k] finite numbers.
        beta: Temperature, 0 or more, in units of Q.

    Raises:
        ConfigError: If beta is negative or not finite.
    """
    check_beta(beta)
    q = np.asarray(scores, dtype=np.float64)
    gap = q - q.max(axis=-1, keepdims=True)
    with np.errstate(over="ignore"):  # -inf is correct far below the best
        share = (gap == 0).astype(np.float64) if beta == 0 else np.exp(gap / beta)
    normal: Floats = share / share.sum(axis=-1, keepdims=True)
    return normal


def tilted(probabilities: ArrayLike, scores: ArrayLike, beta: float) -> Floats:
    """Return p0 e^{Q / beta} / Z over an enumerable set: the limit of the choice among k samples of p0 as k grows.

    Args:
        probabilities: [n] p0.
        scores: [n] Q.
        beta: Temperature, above 0.

    Raises:
        ConfigError: If beta is not above 0.
    """
    if beta <= 0:
        raise ConfigError(f"beta is {beta}; the limit needs one above 0")
    p0 = np.asarray(probabilities, dtype=np.float64)
    mass = p0 * weights(scores, beta)
    limit: Floats = mass / mass.sum()
    return limit


def choose(scores: ArrayLike, beta: float, rng: np.random.Generator) -> int:
    """Sample the index of one of k completions with the probabilities `weights`."""
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
    """Sample k completions and choose one by a probe. It needs only `sample` and `embed` from a model.

    Args:
        prompt: Text or messages.
        sample: Function that samples completions.
        embed: Function that computes the features that the probe was fitted on.
        probe: The probe.
        k: Number of completions to sample.
        beta: Temperature of the choice; 0 chooses the best.
        seed: Random seed; the choice depends only on it, the prompt and the scores.

    Raises:
        DataError: If there are no completions, or features have another width.
    """
    completions = list(sample(prompt, k))
    if not completions:
        raise DataError(f"sample gave no completions of {str(prompt)[:40]!r}")
    scores = probe(embed_all(embed, [prompt] * len(completions), completions))
    return choose_among(completions, scores, beta, name=repr(prompt), seed=seed)


def choose_among(completions: Sequence[str], scores: ArrayLike, beta: float, *, name: str, seed: int) -> Choice:
    """Choose a completion by the scores; the noise depends only on the seed and the name."""
    q = np.asarray(scores, dtype=np.float64)
    address = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    index = choose(q, beta, np.random.default_rng(int.from_bytes(address, "big")))
    return Choice(completions[index], index, q, weights(q, beta))


def check_beta(beta: float) -> None:
    """Check a temperature.

    Raises:
        ConfigError: If it is negative or not finite.
    """
    if not 0 <= beta < np.inf:
        raise ConfigError(f"beta is {beta}; use 0 (the best) or more")
