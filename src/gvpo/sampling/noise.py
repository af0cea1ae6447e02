"""Counter-based noise: a uniform number for each (seed, step, prompt, row, token), independent of the batch.

    blake2b(seed, step, prompt id, row) ──key──▶ Philox ──counter: token──▶ uniform in [0, 1)

The noise has no state: a resumed run, on any number of processes, computes the same numbers. Reference: Salmon et al.
2011, "Parallel random numbers: as easy as 1, 2, 3".
"""

import hashlib
import json
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

PER_COUNT = 4
"""Number of values per count of Philox. Blocks of tokens start at multiples of it."""

Key = npt.NDArray[np.uint64]


def noise_key(seed: int, step: int, prompt_id: str, row: int) -> Key:
    """Return the key of a row's noise: 128 bits, as two numbers."""
    name = json.dumps([seed, step, prompt_id, row]).encode()
    return np.frombuffer(hashlib.blake2b(name, digest_size=16).digest(), dtype="<u8").astype(np.uint64)


def uniforms(keys: Sequence[Key], start: int, count: int) -> npt.NDArray[np.float64]:
    """Return the noise of tokens start .. start + count - 1.

    Args:
        keys: R keys from `noise_key`.
        start: First token, a multiple of 4.
        count: Number of tokens.

    Returns:
        [R, count] in [0, 1), float64.

    Raises:
        ValueError: If `start` is not a multiple of 4.
    """
    if start % PER_COUNT:
        raise ValueError(f"start={start} is not a multiple of {PER_COUNT}")
    drawn = np.empty((len(keys), count))
    for values, key in zip(drawn, keys, strict=True):
        np.random.Generator(np.random.Philox(key=key, counter=start // PER_COUNT)).random(out=values)
    return drawn
