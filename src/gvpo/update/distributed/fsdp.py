"""Weights on several ranks: gradients summed over replicas, or parameters sharded by PyTorch's FSDP2.

    replicas   every rank has the whole model; the `.grad` of its backward passes is summed once per update
               (`summed_gradients`)
    shards     every rank has 1/n of each parameter, gradient and optimizer state; FSDP2 gathers a layer while it
               computes, and sums gradients during the backward pass

FSDP2 is used unchanged: `fully_shard` on each decoder layer and on the root, which changes their classes in place.
Every rank must then run the same number of forward and backward passes.
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
"""Number of elements of small gradients that are summed in one message."""


def communicates(model: nn.Module) -> bool:
    """Return whether a forward pass of this model may communicate, so that all ranks must run the same number."""
    return isinstance(model, nn.parallel.DistributedDataParallel) or is_sharded(model)


def is_sharded(model: nn.Module) -> bool:
    """Return whether FSDP2 shards this model or a part of it."""
    return any(isinstance(module, FSDPModule) for module in model.modules())


def shard(model: nn.Module, *, half: bool) -> None:
    """Shard a model over all ranks, in place. On a single rank, only move it to its device.

    Args:
        model: Model with float32 weights, the same on every rank, on the CPU or on the device.
        half: Whether layers are gathered and computed in bfloat16. Gradients are summed in float32.
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
        # the root too: weights that a pass without backward leaves gathered are stale after the next optimizer step
        fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True)


@contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Gather the whole model on every rank in this context, so that each rank may run any number of forward passes.

    This needs the memory of all weights, in the compute dtype.
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
    """Free weights that forward passes without a backward pass left gathered, which are stale after the next step."""
    for part in _parts(model):
        part.reshard()


def _parts(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def gradient_scale(model: nn.Module) -> int:
    """Return the factor of a loss that makes the gradient over all ranks a sum, since FSDP2 computes the mean."""
    return ranks.count() if is_sharded(model) else 1


@contextmanager
def summed_gradients(model: nn.Module) -> Iterator[None]:
    """Sum the `.grad` of backward passes in this context over the ranks, once, at the end.

    Earlier gradients are not summed: they are set aside, and added at the end. After an error only they remain. FSDP2
    sums by itself. For DDP, which would average in each backward pass and needs the same number on each rank,
    synchronization is disabled.
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
    """Sum over the ranks. A parameter without a gradient on any rank keeps None, as in a single process."""
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
    """Yield consecutive gradients of one dtype, together no larger than a bucket."""
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
    """Return a complete tensor. If it is sharded, every rank must call this."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def full_on_first(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return complete tensors on the CPU of the first rank, and {} on the others. Tied tensors stay tied."""
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
    """Return an optimizer's state on the first rank, as in a single process."""
    state = optimizer.state_dict()
    return {**state, "state": {index: full_on_first(values) for index, values in state["state"].items()}}


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load a complete state from `full_optimizer`, for any number of ranks. Each rank keeps its shard."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    own = {
        index: {name: like(parameters[index], value) for name, value in values.items()}
        for index, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": own})


def like(own: Tensor, whole: Any) -> Any:
    """Shard a tensor that every rank has complete in the same way as `own`, if `own` is sharded and has its shape."""
    if not (isinstance(own, DTensor) and isinstance(whole, Tensor) and whole.shape == own.shape):
        return whole
    part = distribute_tensor(whole.to(own.device), own.device_mesh, own.placements, src_data_rank=None)
    return torch.empty_like(part).copy_(part)  # a view would keep the complete tensor in memory
