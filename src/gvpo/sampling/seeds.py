"""A random seed for each row, for engines that draw the noise themselves.

An engine gets one request per row, each with its own seed. One seed for several rows or prompts would give all of them
the same noise.
"""

from gvpo.sampling.noise import noise_key

BITS = 56
"""Number of bits of a seed, which every engine's signed 64-bit integers can represent."""


def row_seed(seed: int, step: int, prompt_id: str, row: int) -> int:
    """Return the seed of a row, from the same key as the noise of `gvpo.sampling.noise`.

    Args:
        seed: Random seed of the run.
        step: Number of the rollout.
        prompt_id: Id of the request.
        row: Number of the row in its group.

    Returns:
        An integer from 0 to 2^56 - 1.
    """
    return int(noise_key(seed, step, prompt_id, row)[0]) >> (64 - BITS)
