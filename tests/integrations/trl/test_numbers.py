"""Which numbers of micro-batches give whole groups, against a simulation of TRL's sampler."""

import itertools

import pytest

from gvpo.errors import ConfigError
from gvpo.integrations.trl.numbers import Numbers


def simulated(numbers: Numbers) -> bool:
    """Return whether each optimizer step can have whole groups, by giving it the rows of its micro-batches."""
    per_step = numbers.rows * numbers.accumulation
    generation = numbers.rows * numbers.per_generation * numbers.ranks
    if generation % numbers.group:
        return False
    if numbers.accumulation >= numbers.per_generation:
        return numbers.accumulation % numbers.per_generation == 0  # else a generation continues in the next step
    steps, rest = divmod(numbers.per_generation, numbers.accumulation)
    together = per_step * (numbers.ranks if numbers.together else 1)
    return rest == 0 and all((step + 1) * together % numbers.group == 0 for step in range(steps))


EVERY = [
    Numbers(*values)
    for values in itertools.product((1, 2, 3, 4), (1, 2, 3, 4, 6), (1, 2, 4), (1, 2), (2, 4), (False, True))
]


def test_whole_groups_are_recognized():
    assert [numbers.whole for numbers in EVERY] == [simulated(numbers) for numbers in EVERY]
    assert 100 < sum(numbers.whole for numbers in EVERY) < len(EVERY) - 100


@pytest.mark.parametrize("numbers", [numbers for numbers in EVERY if not numbers.whole][::7])
def test_the_error_has_two_numbers_that_fit(numbers):
    with pytest.raises(ConfigError) as raised:
        numbers.require_whole()
    words = str(raised.value).split("use gradient_accumulation_steps=")[1]
    accumulation, per_generation = (int(each) for each in words.split(" and steps_per_generation="))
    fit = Numbers(accumulation, per_generation, numbers.rows, numbers.ranks, numbers.group, numbers.together)
    assert fit.whole


def test_steps_that_share_a_generation_are_counted():
    assert Numbers(2, 4, 4, 1, 4, True).windows == 2
    assert Numbers(4, 2, 4, 1, 4, True).windows == 1
