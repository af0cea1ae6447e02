"""Weights on many ranks: gradients summed over replicas, or parameters split by PyTorch's FSDP2.

    replicas   every rank holds the model; what backwards add to `.grad` is summed once an update (`summed_gradients`)
    shards     every rank holds 1/n of each parameter, gradient and optimizer state; FSDP2 gathers a layer while it
               computes, and sums gradients as they come

FSDP2 is used as it is: `fully_shard` on each decoder layer and on the root, which changes their classes in place.
Every rank must then run as many forwards and backwards as the others.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from gvpo.update.distributed import ranks

BUCKET = 2**24
"""Elements of small gradients that are summed in one message."""


def communicates(model: nn.Module) -> bool:
    """Whether a forward of this model may talk to other ranks, so that all must run as many."""
    return isinstance(model, nn.parallel.DistributedDataParallel) or is_sharded(model)


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP2 splits this model or a part of it."""
    return any(isinstance(module, FSDPModule) for module in model.modules())


def shard(model: nn.Module, *, half: bool) -> None:
    """Split a model over all ranks, in place; on a single one it is only put on its device.

    Args:
        model: float32 weights, the same on every rank, on the CPU or on the device.
        half: layers are gathered and computed in bfloat16; gradients are summed in float32.
    """
    if ranks.count() == 1:
        model.to(ranks.device())
        return
    mesh = init_device_mesh(ranks.device().type, (ranks.count(),))
    half_policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    policy = half_policy if half else MixedPrecisionPolicy()
    names = getattr(model, "_no_split_modules", None) or ()
    layers = [module for module in model.modules() if type(module).__name__ in names]
    for module in [*layers, model]:
        # the root too: what a pass without backward leaves gathered would be stale after the next optimizer step
        fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True)


@contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """The whole model on every rank, so that forwards inside need no other rank; each may run as many as it likes.

    Costs the memory of all weights, in the dtype of compute.
    """
    parts = _parts(model)
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(True, recurse=False)


def reshard(model: nn.Module) -> None:
    """Give up what forwards without a backward have left gathered: after the next step it would be stale."""
    for part in _parts(model):
        part.reshard()


def _parts(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def gradient_scale(model: nn.Module) -> int:
    """What to multiply a loss by, so that the gradient over all ranks is a sum: FSDP2 takes the mean."""
    return ranks.count() if is_sharded(model) else 1


@contextmanager
def summed_gradients(model: nn.Module) -> Iterator[None]:
    """What backwards inside add to `.grad` is summed over the ranks, once, at the end.

    What was there before is not: it is set aside, and added again; after an error it is all there is. FSDP2 sums by
    itself. DDP, which would average at each backward and wants as many of them on each rank, is told not to.
    """
    if ranks.count() == 1 or is_sharded(model):
        yield
        return
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    before = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    try:
        with model.no_sync() if isinstance(model, nn.parallel.DistributedDataParallel) else nullcontext():
            yield
        _sum_gradients(parameters)
    except BaseException:
        _put_back(parameters, before)
        raise
    for parameter, old in zip(parameters, before, strict=True):
        if old is not None:
            parameter.grad = old if parameter.grad is None else old.add_(parameter.grad)


def _put_back(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor | None]) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient


def _sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Sum over the ranks; a parameter that no rank's rows have touched keeps its None, as with one process."""
    touched = ranks.union_([parameter.grad is not None for parameter in parameters])
    used = [parameter for parameter, flag in zip(parameters, touched, strict=True) if flag]
    for parameter in used:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for bucket in _buckets([parameter.grad for parameter in used if parameter.grad is not None]):
        if len(bucket) == 1 and bucket[0].is_contiguous():
            ranks.sum_(bucket[0])
            continue
        joined = torch.cat([gradient.reshape(-1) for gradient in bucket])
        ranks.sum_(joined)
        sizes = [gradient.numel() for gradient in bucket]
        for gradient, total in zip(bucket, torch.split(joined, sizes), strict=True):
            gradient.copy_(total.view_as(gradient))


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of one dtype, together no larger than a bucket."""
    bucket: list[Tensor] = []
    for gradient in gradients:
        size = sum(each.numel() for each in bucket) + gradient.numel()
        if bucket and (size > BUCKET or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket


def full(value: Tensor) -> Tensor:
    """A tensor whole; where it is split, every rank must ask."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def full_on_first(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors whole, one at a time, on the CPU of the first rank; {} on the others. Tied ones stay tied."""
    found: dict[str, Tensor] = {}
    known: dict[int, Tensor] = {}
    for name, value in values.items():
        if id(value) not in known:
            whole = full(value.detach())
            known[id(value)] = whole.cpu() if ranks.is_first() else torch.empty(0)
        if ranks.is_first():
            found[name] = known[id(value)]
    return found


def full_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's state as a single process has it, on the first rank."""
    state = optimizer.state_dict()
    return {**state, "state": {index: full_on_first(values) for index, values in state["state"].items()}}


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Take a whole state, as `full_optimizer` gives it, of however many ranks; each keeps its part."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    own = {
        index: {name: like(parameters[index], value) for name, value in values.items()}
        for index, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": own})


def like(own: Tensor, whole: Any) -> Any:
    """What every rank has whole, split as `own` is, if it is, and if it has its shape."""
    if not (isinstance(own, DTensor) and isinstance(whole, Tensor) and whole.shape == own.shape):
        return whole
    part = distribute_tensor(whole.to(own.device), own.device_mesh, own.placements, src_data_rank=None)
    return torch.empty_like(part).copy_(part)  # a view would keep the whole in memory
