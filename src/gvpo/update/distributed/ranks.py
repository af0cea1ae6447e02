"""Several processes ("ranks"): their number, their communication, and the distribution of groups.

With `fsdp`, this is the only module that uses torch.distributed. A single process runs the same code without
collectives. `torchrun` or `accelerate launch` start the ranks, and `start` joins them.

    rank 0   its groups ──forward──┐                              ┌──▶ the same loss, metrics and c on every rank
    rank 1   its groups ──forward──┼──▶ log-probs of all [B, T] ──┤
    rank 2   no group              ┘                              └──▶ each pushes its own rows; gradients are summed

Everything except the update's tensors is small, and is sent as Python objects.
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
"""Words in torch's errors when another rank does not answer."""


def start(timeout: float) -> None:
    """Join the ranks that a launcher has started. Do nothing without a launcher, or if already joined.

    Args:
        timeout: Timeout for waiting for other ranks, in seconds.
    """
    if count() == 1 and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        PartialState(timeout=timedelta(seconds=timeout))


def leave() -> None:
    """Leave the process group at the end of a program."""
    if count() > 1:
        dist.destroy_process_group()


_apart = False
"""True while this process works `alone`."""


@contextmanager
def alone() -> Iterator[None]:
    """Treat this process as the only one in this context. Other ranks may differ, and collectives are not used."""
    global _apart
    before, _apart = _apart, True
    try:
        yield
    finally:
        _apart = before


def count() -> int:
    """Return the number of ranks, which is 1 without torch.distributed."""
    if _apart:
        return 1
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this process's number, from 0."""
    return dist.get_rank() if count() > 1 else 0


def is_first() -> bool:
    """Return whether this rank is the one that writes, prints and answers."""
    return rank() == 0


def device() -> torch.device:
    """Return the device of this process."""
    chosen: torch.device = PartialState().device
    return chosen


def gather(value: T) -> list[T]:
    """Return the values of all ranks, in order, on every rank. Values are pickled."""
    if count() == 1:
        return [value]
    values: list[Any] = [None] * count()
    dist.all_gather_object(values, value)
    return values


def on_first(function: Callable[[], T]) -> T:
    """Run a function only on the first rank. Every rank returns its result or raises its error."""
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
    """Raise an error of any rank in this context on all ranks at its end, so that no rank waits for a failed one.

    Collectives are not allowed in this context.
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
    """An error to send to other ranks. Exceptions themselves may not survive pickling."""

    kind: type[Exception]
    message: str

    @classmethod
    def of(cls, error: Exception) -> "_Failure":
        where = f"rank {rank()}: "
        if isinstance(error, GvpoError):
            return cls(type(error), f"{where}{error}")
        if is_out_of_memory(error):  # keep its type, so that every rank retries with less
            return cls(torch.OutOfMemoryError, f"{where}out of memory")
        return cls(TrainingError, f"{where}{type(error).__name__}: {error}")

    def error(self) -> Exception:
        return self.kind(self.message)


@contextmanager
def explained() -> Iterator[None]:
    """Convert torch's errors about a rank that does not answer to one line.

    Raises:
        TrainingError: If another rank has ended, or did not answer before the timeout.
    """
    try:
        yield
    except RuntimeError as error:
        words = str(error).lower()
        if count() == 1 or not (isinstance(error, dist.DistError) or any(lost in words for lost in _LOST)):
            raise
        raise TrainingError(
            f"rank {rank()} of {count()} has lost the others: one was killed, has failed (its own message says why) or "
            "did not answer before the timeout; resume with --resume (train(resume=True))"
        ) from error


def every(flag: bool) -> bool:
    """Return whether a flag is set on every rank."""
    return largest(int(not flag)) == 0


def some(flag: bool) -> bool:
    """Return whether a flag is set on some rank."""
    return largest(int(flag)) == 1


def largest(number: int) -> int:
    """Return the largest number of all ranks."""
    if count() == 1:
        return number
    told = torch.tensor(number, device=_channel())
    dist.all_reduce(told, dist.ReduceOp.MAX)
    return int(told)


def sum_(tensor: Tensor) -> None:
    """Replace a tensor by its sum over the ranks. Its shape must be the same on all of them."""
    if count() > 1:
        dist.all_reduce(tensor)


def union_(flags: Sequence[bool]) -> list[bool]:
    """Return, for each flag, whether it is set on any rank."""
    if count() == 1:
        return list(flags)
    told = torch.tensor(flags, dtype=torch.uint8, device=_channel())
    dist.all_reduce(told, dist.ReduceOp.MAX)
    return [bool(flag) for flag in told.tolist()]


def _channel() -> torch.device:
    """Return the device from which small tensors can be sent."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


@dataclass(frozen=True)
class RankBatch:
    """A batch known to every rank, each group of which is computed by one rank.

    Args:
        groups: The whole batch, the same on every rank.
        owners: Rank of each group.
    """

    groups: Sequence[Group]
    owners: Sequence[int]

    @property
    def own(self) -> list[Group]:
        """Groups of this rank."""
        return [group for group, owner in zip(self.groups, self.owners, strict=True) if owner == rank()]

    @property
    def own_rows(self) -> list[int]:
        """Indices of this rank's rows among the B rows of all groups in order."""
        owners = [owner for group, owner in zip(self.groups, self.owners, strict=True) for _ in group.completions]
        return [row for row, owner in enumerate(owners) if owner == rank()]


def deal(groups: Sequence[Group]) -> RankBatch:
    """Distribute whole groups, in the same way on every rank: longest first, each to the rank with the fewest tokens.

    Args:
        groups: The whole batch, the same on every rank.
    """
    loads, owners = [0] * count(), [0] * len(groups)
    lengths = [len(group.prompt) + sum(len(row.tokens) for row in group.completions) for group in groups]
    for index in sorted(range(len(groups)), key=lambda index: (-lengths[index], index)):
        owners[index] = loads.index(min(loads))
        loads[owners[index]] += lengths[index]
    return RankBatch(groups, owners)


def gathered(groups: "Sequence[Group] | RankBatch") -> RankBatch:
    """Return the batch of all ranks' own groups, in order of ranks. Return an already distributed batch unchanged."""
    if isinstance(groups, RankBatch):
        return groups
    parts = gather(list(groups))
    return RankBatch([group for part in parts for group in part], [i for i, part in enumerate(parts) for _ in part])


def require_same_weights(model: torch.nn.Module) -> None:
    """Raise an error unless every rank has the same model.

    Raises:
        ConfigError: If a sample of their weights differs.
    """
    if count() > 1 and len(set(gather(weights_sample(model)))) > 1:
        raise ConfigError("the ranks have different models; load the same one on each, or create it from one seed")


def weights_sample(model: torch.nn.Module, values: int = 16) -> tuple[tuple[float, ...], ...]:
    """Return some exact weights of each parameter."""
    flat = (parameter.detach().reshape(-1) for parameter in model.parameters())
    return tuple(tuple(each[:: max(1, each.numel() // values)].double().tolist()) for each in flat)
