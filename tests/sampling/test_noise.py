"""Tests of counter-based noise: the numbers depend only on their address."""

import numpy as np
import pytest

from gvpo.sampling.noise import noise_key, uniforms


def test_noise_of_a_row_does_not_depend_on_other_rows():
    keys = [noise_key(0, 3, "p", row) for row in range(5)]
    together = uniforms(keys, 0, 32)
    for row, key in enumerate(keys):
        np.testing.assert_array_equal(uniforms([key], 0, 32)[0], together[row])


def test_blocks_continue_each_other():
    key = noise_key(0, 3, "p", 1)
    whole = uniforms([key], 0, 200)
    parts = np.concatenate([uniforms([key], 0, 64), uniforms([key], 64, 64), uniforms([key], 128, 72)], axis=1)
    np.testing.assert_array_equal(parts, whole)


def test_a_block_that_starts_within_a_count_is_rejected():
    with pytest.raises(ValueError, match="multiple of 4"):
        uniforms([noise_key(0, 0, "p", 0)], 2, 4)


@pytest.mark.parametrize(
    "other",
    [(1, 3, "p", 1), (0, 4, "p", 1), (0, 3, "q", 1), (0, 3, "p", 2), (3, 0, "p", 1), (0, 3, "p\x00", 1)],
)
def test_every_part_of_the_address_counts(other):
    assert not np.array_equal(uniforms([noise_key(0, 3, "p", 1)], 0, 8), uniforms([noise_key(*other)], 0, 8))


def test_an_id_cannot_imitate_another_address():
    assert not np.array_equal(noise_key(1, 2, '3", 4', 5), noise_key(1, 2, "3", 4))


def test_noise_never_changes_between_releases():
    """A resumed run must compute the same numbers. These were recorded when the format was fixed."""
    assert noise_key(7, 11, "problem-3", 5).tolist() == [2601765136772960353, 598993064960581633]
    np.testing.assert_allclose(
        uniforms([noise_key(7, 11, "problem-3", 5)], 4, 2)[0], [0.9974783834985445, 0.776771758906648], rtol=1e-15
    )


def test_noise_is_uniform():
    """20,000 numbers in 20 bins: chi-square with 19 degrees exceeds 43.8 in one case of 1,000; the seed is fixed."""
    values = uniforms([noise_key(0, 0, f"p{row}", row) for row in range(200)], 0, 100)
    assert values.min() >= 0
    assert values.max() < 1
    counts = np.histogram(values, bins=20, range=(0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 43.8
