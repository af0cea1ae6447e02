"""Many processes ("ranks"): who there is, what they tell each other, and who gets which groups.

With `sharding`, the one place that knows torch.distributed; a process on its own runs the same code without a
collective. `torchrun` or `accelerate launch` start the ranks, and `start` joins them.

    rank 0   its groups ──forward──┐                              ┌──▶ the same loss, metrics and c on every rank
    rank 1   its groups ──forward──┼──▶ log-probs of all [B, T] ──┤
    rank 2   no group              ┘                              └──▶ each pushes its own rows; gradients are summed

Everything that is not a tensor of the update is small, and travels as Python objects.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor

from gvpo.errors import ConfigError, GvpoError, TrainingError
from gvpo.system_errors import is_out_of_memory
from gvpo.types import Group

T = TypeVar("T")

_LOST = ("gloo", "nccl", "connection closed by peer", "connection reset by peer", "process group")
"""Words by which torch says that another rank does not answer."""


def start(timeout: float) -> None:
    """Join the ranks that a launcher has started; nothing without one, or once it is done.

    Args:
        timeout: seconds that a rank waits for the others before it gives up.
    """
    if count() == 1 and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        PartialState(timeout=timedelta(seconds=timeout))


def leave() -> None:
    """Part from the other ranks at the end of a program: they have nothing more to say."""
    if count() > 1:
        dist.destroy_process_group()


_apart = False
"""Whether this process works `alone` for now."""


@contextmanager
def alone() -> Iterator[None]:
    """While entered, this process is the only one: the others may do otherwise. Nothing inside is a collective."""
    global _apart
    before, _apart = _apart, True
    try:
        yield
    finally:
        _apart = before


def count() -> int:
    """How many ranks there are; 1 without torch.distributed."""
    if _apart:
        return 1
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if count() > 1 else 0


def is_first() -> bool:
    """Whether this is the rank that writes, prints and is asked."""
    return rank() == 0


def device() -> torch.device:
    """Where this process computes."""
    chosen: torch.device = PartialState().device
    return chosen


def gather(value: T) -> list[T]:
    """Each rank's value, in order of ranks, on every rank. Values are pickled."""
    if count() == 1:
        return [value]
    values: list[Any] = [None] * count()
    dist.all_gather_object(values, value)
    return values


def on_first(function: Callable[[], T]) -> T:
    """Run something on the first rank alone; what it returns or raises, every rank gets."""
    if count() == 1:
        return function()
    told: list[Any] = [None, None]
    failure = None
    if is_first():
        try:
            told[0] = function()
        except Exception as error:
            failure, told[1] = error, _Failure.of(error)
    dist.broadcast_object_list(told, src=0)
    if failure is not None:
        raise failure
    if told[1] is not None:
        raise told[1].error()
    value: T = told[0]
    return value


@contextmanager
def together() -> Iterator[None]:
    """An error of any rank inside is raised on all of them at the end, so that none waits for one that has failed.

    Nothing inside may be a collective.
    """
    if count() == 1:
        yield
        return
    failure = None
    try:
        yield
    except Exception as error:
        failure = error
    failures = gather(None if failure is None else _Failure.of(failure))
    if failure is not None:
        raise failure
    first = next((each for each in failures if each is not None), None)
    if first is not None:
        raise first.error()


@dataclass(frozen=True)
class _Failure:
    """An error on its way to the other ranks: exceptions themselves may not survive pickling."""

    kind: type[Exception]
    message: str

    @classmethod
    def of(cls, error: Exception) -> "_Failure":
        where = f"rank {rank()}: "
        if isinstance(error, GvpoError):
            return cls(type(error), f"{where}{error}")
        if is_out_of_memory(error):  # stays what it is, so that every rank tries again with less
            return cls(torch.OutOfMemoryError, f"{where}out of memory")
        return cls(TrainingError, f"{where}{type(error).__name__}: {error}")

    def error(self) -> Exception:
        return self.kind(self.message)


@contextmanager
def explained() -> Iterator[None]:
    """Turns what torch says of a rank that does not answer into one line.

    Raises:
        TrainingError: another rank has ended, or was silent for too long.
    """
    try:
        yield
    except RuntimeError as error:
        words = str(error).lower()
        if count() == 1 or not (isinstance(error, dist.DistError) or any(lost in words for lost in _LOST)):
            raise
        raise TrainingError(
            f"rank {rank()} of {count()} has lost the others: one was killed, has failed (its own message says why) or "
            "was silent for too long; go on with --resume (train(resume=True))"
        ) from error


def every(flag: bool) -> bool:
    """Whether a flag is set on every rank."""
    return largest(int(not flag)) == 0


def some(flag: bool) -> bool:
    """Whether a flag is set on some rank."""
    return largest(int(flag)) == 1


def largest(number: int) -> int:
    """The largest of each rank's number."""
    if count() == 1:
        return number
    told = torch.tensor(number, device=_channel())
    dist.all_reduce(told, dist.ReduceOp.MAX)
    return int(told)


def sum_(tensor: Tensor) -> None:
    """Replace a tensor by its sum over the ranks; it has one shape on all of them."""
    if count() > 1:
        dist.all_reduce(tensor)


def union_(flags: Sequence[bool]) -> list[bool]:
    """Which of some flags are set on any rank."""
    if count() == 1:
        return list(flags)
    told = torch.tensor(flags, dtype=torch.uint8, device=_channel())
    dist.all_reduce(told, dist.ReduceOp.MAX)
    return [bool(flag) for flag in told.tolist()]


def _channel() -> torch.device:
    """Where small tensors must be to be sent."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


@dataclass(frozen=True)
class RankBatch:
    """A batch that every rank holds, each group of which one rank computes.

    Args:
        groups: the whole batch, the same on every rank.
        owners: the rank of each group.
    """

    groups: Sequence[Group]
    owners: Sequence[int]

    @property
    def own(self) -> list[Group]:
        """The groups of this rank."""
        return [group for group, owner in zip(self.groups, self.owners, strict=True) if owner == rank()]

    @property
    def own_rows(self) -> list[int]:
        """Which rows of the batch they are, of the B of all groups in order."""
        owners = [owner for group, owner in zip(self.groups, self.owners, strict=True) for _ in group.completions]
        return [row for row, owner in enumerate(owners) if owner == rank()]


def deal(groups: Sequence[Group]) -> RankBatch:
    """Share out whole groups, the same on every rank: the longest first, each to the rank with the fewest tokens yet.

    Args:
        groups: the whole batch, the same on every rank.
    """
    loads, owners = [0] * count(), [0] * len(groups)
    lengths = [len(group.prompt) + sum(len(row.tokens) for row in group.completions) for group in groups]
    for index in sorted(range(len(groups)), key=lambda index: (-lengths[index], index)):
        owners[index] = loads.index(min(loads))
        loads[owners[index]] += lengths[index]
    return RankBatch(groups, owners)


def gathered(groups: "Sequence[Group] | RankBatch") -> RankBatch:
    """The batch of which each rank gives its own groups, in order of ranks; a batch that is dealt already stays."""
    if isinstance(groups, RankBatch):
        return groups
    parts = gather(list(groups))
    return RankBatch([group for part in parts for group in part], [i for i, part in enumerate(parts) for _ in part])


def require_same_weights(model: torch.nn.Module) -> None:
    """Nothing, if every rank was given the same model.

    Raises:
        ConfigError: they were not, by a sample of their weights.
    """
    if count() > 1 and len(set(gather(weights_sample(model)))) > 1:
        raise ConfigError("the ranks were given different models; load the same one on each, or make it from one seed")


def weights_sample(model: torch.nn.Module, values: int = 16) -> tuple[tuple[float, ...], ...]:
    """Some weights of each parameter, exactly."""
    flat = (parameter.detach().reshape(-1) for parameter in model.parameters())
    return tuple(tuple(each[:: max(1, each.numel() // values)].double().tolist()) for each in flat)
