"""The problems of a run as an endless stream in a shuffled order that depends only on the seed."""

import hashlib
from collections.abc import Sequence
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from gvpo.errors import DataError

T = TypeVar("T")

NOTHING = "there are no problems to train on; the dataset is empty"


class ShuffledOrder(Generic[T]):
    """An endless stream of epochs over `items`, each a new permutation. Positions count from 0.

    Sources that read a file take the s-th slice of `per_step` items in step s. The live source keeps a position.

    Args:
        items: Items to choose from, at least one.
        per_step: Number of items per step; more than there are items is allowed and repeats some.
        seed: Random seed of the permutations.

    Raises:
        DataError: If there are no items.
    """

    def __init__(self, items: Sequence[T], per_step: int, seed: int) -> None:
        if not items:
            raise DataError(NOTHING)
        self._items, self.per_step, self._seed = items, per_step, seed
        self._known: tuple[int, np.ndarray] = (-1, np.empty(0))  # the most recent epoch

    def at(self, step: int) -> list[T]:
        """Return the items of step `step`, counted from 1, if each step takes `per_step`."""
        return self.draw(self.position(step), self.per_step)

    def position(self, step: int) -> int:
        """Return the position of the first item of a step, if each step takes `per_step`."""
        return (step - 1) * self.per_step

    def draw(self, first: int, count: int) -> list[T]:
        """Return `count` items from position `first` on."""
        return [self._item(position) for position in range(first, first + count)]

    def _item(self, position: int) -> T:
        epoch, offset = divmod(position, len(self._items))
        return self._items[int(self._permutation(epoch)[offset])]

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        if self._known[0] != epoch:
            key = hashlib.blake2b(f"order/{self._seed}/{epoch}".encode(), digest_size=16).digest()
            generator = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "big")))
            self._known = (epoch, generator.permutation(len(self._items)))
        return self._known[1]
