"""The problems of each step."""

from collections import Counter

import pytest

from gvpo.errors import DataError
from gvpo.rollout.order import ShuffledOrder


def drawn(order: ShuffledOrder[int], steps: range) -> list[int]:
    return [item for step in steps for item in order.at(step)]


def test_an_epoch_takes_every_item_once_and_the_next_one_in_another_order():
    order = ShuffledOrder(range(12), per_step=4, seed=0)
    first, second = drawn(order, range(1, 4)), drawn(order, range(4, 7))
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second
    assert first != list(range(12))


def test_a_step_across_the_end_of_an_epoch_continues_with_the_next():
    order = ShuffledOrder(range(5), per_step=3, seed=0)
    assert Counter(drawn(order, range(1, 6))) == Counter(dict.fromkeys(range(5), 3))


def test_a_step_may_take_more_items_than_there_are():
    assert Counter(ShuffledOrder("ab", per_step=6, seed=0).at(1)) == {"a": 3, "b": 3}


def test_the_order_depends_only_on_seed_and_step():
    one, other = ShuffledOrder(range(50), per_step=7, seed=3), ShuffledOrder(range(50), per_step=7, seed=3)
    drawn(other, range(1, 40))
    assert one.at(9) == other.at(9) == one.at(9)
    assert one.at(9) != ShuffledOrder(range(50), per_step=7, seed=4).at(9)


def test_steps_are_slices_of_one_stream():
    order = ShuffledOrder(range(5), per_step=3, seed=0)
    assert order.draw(4, 8) == drawn(order, range(1, 5))[4:]
    assert order.draw(order.position(3), 3) == order.at(3)
    assert order.draw(7, 0) == []


def test_no_items_are_an_error():
    with pytest.raises(DataError, match="empty"):
        ShuffledOrder([], per_step=1, seed=0)
