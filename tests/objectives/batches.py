"""Random batches for objectives: unequal groups with scattered ids, unequal lengths, holes in the mask."""

from typing import Any

import torch
from torch import Tensor

GROUP = (7, -2, 7, 40, -2, 7, 40, 40, 7)
LENGTHS = (3, 5, 1, 4, 2, 5, 3, 2, 4)


def make_batch(seed: int = 0, dtype: torch.dtype = torch.float64, *, spread: float = 0.3) -> dict[str, Tensor]:
    """Return 9 rows of up to 5 tokens in groups of 4, 2 and 3, whose log-probs are `spread` nats apart."""
    generator = torch.Generator().manual_seed(seed)

    def noise() -> Tensor:
        return torch.randn(len(LENGTHS), max(LENGTHS), generator=generator, dtype=torch.float64)

    base = -1.0 - noise().abs()
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).to(torch.int64)
    mask[1, 2] = mask[8, 0] = 0  # tool output in the middle and at the start
    return {
        "logprobs": (base + spread * noise()).to(dtype),
        "ref_logprobs": (base + spread * noise()).to(dtype),
        "old_logprobs": (base + spread * noise()).to(dtype),
        "rewards": torch.randn(len(LENGTHS), generator=generator, dtype=torch.float64).to(dtype),
        "group": torch.tensor(GROUP),
        "mask": mask,
        "aligned_mean_logprobs": (-1.0 + spread * torch.randn(len(LENGTHS), 2, generator=generator).double()).to(dtype),
        "segments": torch.tensor([0, 0, 1, 1, 2]).expand(len(LENGTHS), -1),
        "costs": torch.rand(len(LENGTHS), 2, generator=generator, dtype=torch.float64).to(dtype),
        "teacher_logprobs": (base + spread * noise()).to(dtype),
    }


def pick(batch: dict[str, Tensor], *names: str, **changes: Any) -> dict[str, Any]:
    """Return some tensors of a batch, with some replaced or added."""
    return {**{name: batch[name] for name in names}, **changes}


def gvpo_inputs(batch: dict[str, Tensor], **changes: Any) -> dict[str, Any]:
    return pick(batch, "logprobs", "ref_logprobs", "rewards", "group", "mask", **changes)


def grpo_inputs(batch: dict[str, Tensor], **changes: Any) -> dict[str, Any]:
    return pick(batch, "logprobs", "old_logprobs", "rewards", "group", "mask", **changes)


def roles_of(group: Tensor, *, weak: bool) -> tuple[str, ...]:
    """Make the first row of each group the chosen one, the second a strong negative, the others strong or weak."""
    first = {name: iter(["chosen", "strong"]) for name in set(group.tolist())}
    return tuple(next(first[name], "weak" if weak else "strong") for name in group.tolist())


def rows_of(group: Tensor) -> list[list[int]]:
    """Row numbers of each group, groups in order of first appearance, in plain Python."""
    rows: dict[int, list[int]] = {}
    for row, name in enumerate(group.tolist()):
        rows.setdefault(name, []).append(row)
    return list(rows.values())


def gradient(objective: Any, inputs: dict[str, Any]) -> Tensor:
    """d loss / d logprobs, [B, T]."""
    leaf = inputs["logprobs"].detach().clone().requires_grad_()
    (slope,) = torch.autograd.grad(objective(**{**inputs, "logprobs": leaf}).loss, leaf)
    return slope
