"""Tests of the seeds of rows."""

import pytest

from gvpo.sampling.noise import noise_key
from gvpo.sampling.seeds import BITS, row_seed


@pytest.mark.parametrize("other", [(1, 3, "p", 1), (0, 4, "p", 1), (0, 3, "q", 1), (0, 3, "p", 2), (3, 0, "p", 1)])
def test_every_part_of_the_address_counts(other):
    assert row_seed(0, 3, "p", 1) == row_seed(0, 3, "p", 1) != row_seed(*other)


def test_seeds_of_neighbours_are_distinct_even_in_their_low_halves():
    """torch's generator on a CPU uses the low 32 bits only, and vLLM numbers the rows of one request seed, seed + 1."""
    seeds = [row_seed(0, step, f"p{prompt}", row) for step in range(4) for prompt in range(64) for row in range(8)]
    assert len({seed & 0xFFFFFFFF for seed in seeds}) == len(seeds)
    assert not {seed + 1 for seed in seeds} & {*seeds}


def test_a_seed_has_56_bits():
    seeds = [row_seed(0, 0, "p", row) for row in range(400)]
    assert max(seeds) < 2**BITS
    assert max(seeds) > 2**BITS * 0.95
    assert min(seeds) >= 0


def test_seeds_never_change_between_releases():
    assert row_seed(7, 11, "problem-3", 5) == int(noise_key(7, 11, "problem-3", 5)[0]) >> 8 == 10163145065519376
