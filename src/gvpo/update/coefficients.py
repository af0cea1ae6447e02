"""The objective on a whole batch: its loss, and how hard it pushes each token's log-prob."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gvpo.errors import ObjectiveError
from gvpo.objectives import ObjectiveOutput
from gvpo.update.collate import Batch
from gvpo.update.distributed import ranks

Objective = Callable[..., ObjectiveOutput]


@dataclass(frozen=True)
class ObjectiveGradient:
    """An objective's value on the batch and c [B, T], its gradient by the log-probs."""

    loss: Tensor
    metrics: dict[str, Tensor]
    c: Tensor

    @property
    def finite(self) -> bool:
        """Whether loss and gradient can be used."""
        return bool(self.loss.isfinite() & self.c.isfinite().all())


def weigh(objective: Objective, batch: Batch, logprobs: Tensor) -> ObjectiveGradient:
    """Run the objective on the whole batch, with `logprobs` [B, T] as a leaf.

    c is 0 on masked tokens whatever the objective says of them, and everywhere if the loss ignores the log-probs.
    """
    leaf = logprobs.detach().clone().requires_grad_()
    own = {name: leaf.detach() for name in batch.own}
    with torch.autocast(leaf.device.type, enabled=False):
        output = objective(leaf, **batch.inputs, **own)
        if not isinstance(output, ObjectiveOutput):
            raise ObjectiveError(
                f"the objective returned a {type(output).__name__}; return ObjectiveOutput(loss, metrics)"
            )
        c = torch.zeros_like(leaf)
        if output.loss.requires_grad:
            (found,) = torch.autograd.grad(output.loss, leaf, allow_unused=True)
            c = c if found is None else found.masked_fill(batch.mask == 0, 0.0)
    return ObjectiveGradient(output.loss.detach(), output.metrics, c)


def fixed_coefficients(objective: Objective, batch: Batch) -> Tensor | None:
    """c, if it does not depend on the log-probs: if two quite different random ones give it bit by bit alike."""
    generator = torch.Generator().manual_seed(0)
    near, far = (-scale * torch.rand(batch.mask.shape, generator=generator).to(batch.mask) for scale in (0.1, 10.0))
    first, second = weigh(objective, batch, near).c, weigh(objective, batch, far).c
    fixed = torch.equal(first, second) and bool(first.isfinite().all())
    return first if ranks.every(fixed) else None


def same(one: Tensor, other: Tensor) -> bool:
    """Equal but for the rounding of a few operations."""
    rounding = 64 * torch.finfo(one.dtype).eps
    return torch.allclose(one, other, rtol=rounding, atol=rounding * float(other.abs().max()))
