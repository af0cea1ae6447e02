"""The objective on a whole batch: its loss, and its gradient with respect to each token's log-prob."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gvpo.errors import ObjectiveError, type_of
from gvpo.objectives import ObjectiveOutput
from gvpo.update.collate import Batch
from gvpo.update.distributed import ranks

Objective = Callable[..., ObjectiveOutput]


@dataclass(frozen=True)
class ObjectiveGradient:
    """An objective's value on the batch, and its gradient c = d loss / d logprobs.

    Args:
        loss: Scalar, detached.
        metrics: Metrics of the objective.
        coefficients: [B, T] c.
    """

    loss: Tensor
    metrics: dict[str, Tensor]
    coefficients: Tensor

    @property
    def finite(self) -> bool:
        """True if loss and gradient are finite."""
        return bool(self.loss.isfinite() & self.coefficients.isfinite().all())


def weigh(objective: Objective, batch: Batch, logprobs: Tensor) -> ObjectiveGradient:
    """Run the objective on the whole batch, with `logprobs` [B, T] as a leaf.

    c is 0 on masked tokens, regardless of the objective, and 0 everywhere if the loss does not depend on the log-probs.
    """
    leaf = logprobs.detach().clone().requires_grad_()
    own = {name: leaf.detach() for name in batch.own}
    with torch.autocast(leaf.device.type, enabled=False):
        output = objective(leaf, **batch.inputs, **own)
        if not isinstance(output, ObjectiveOutput):
            raise ObjectiveError(f"the objective returned {type_of(output)}; return ObjectiveOutput(loss, metrics)")
        coefficients = torch.zeros_like(leaf)
        if output.loss.requires_grad:
            (found,) = torch.autograd.grad(output.loss, leaf, allow_unused=True)
            coefficients = coefficients if found is None else found.masked_fill(batch.mask == 0, 0.0)
    return ObjectiveGradient(output.loss.detach(), output.metrics, coefficients)


def fixed_coefficients(objective: Objective, batch: Batch) -> Tensor | None:
    """Return c if two very different random log-probs give it bit by bit, or None if it depends on them."""
    generator = torch.Generator().manual_seed(0)
    near, far = (-scale * torch.rand(batch.mask.shape, generator=generator).to(batch.mask) for scale in (0.1, 10.0))
    first, second = (weigh(objective, batch, logprobs).coefficients for logprobs in (near, far))
    fixed = torch.equal(first, second) and bool(first.isfinite().all())
    return first if ranks.every(fixed) else None


def same(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are equal except for the rounding of a few operations."""
    rounding = 64 * torch.finfo(one.dtype).eps
    return torch.allclose(one, other, rtol=rounding, atol=rounding * float(other.abs().max()))
