"""The reference for the update: one row per forward, full logits, plain autograd, and float64 throughout.

Also random groups, gradients by name, and a recorder of the largest tensor that is created.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from gvpo.types import Completion, Group


@dataclass(frozen=True)
class Naive:
    """Loss, metrics and gradients by name, with the rows' log-probs and entropies."""

    loss: Tensor
    metrics: dict[str, Tensor]
    gradients: dict[str, Tensor]
    logprobs: list[Tensor]
    entropy: list[Tensor]


def naive_scores(model: PreTrainedModel, group: Group, row: Completion, temperature: float) -> tuple[Tensor, Tensor]:
    """Return log-probs and entropies of one completion, from all logits of one forward over prompt and completion."""
    ids = torch.tensor([*group.prompt, *row.tokens])
    logits = model(input_ids=ids[None]).logits[0] / temperature
    every = torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1)
    before = every[len(group.prompt) - 1 : -1]
    chosen = before[torch.arange(len(row.tokens)), torch.tensor(row.tokens, dtype=torch.int64)]
    return chosen, -(before.exp() * before).sum(-1).detach()


def naive_update(
    model: PreTrainedModel, groups: Sequence[Group], objective: Callable[..., Any], temperature: float = 1.0
) -> Naive:
    """Return the objective on all rows together with its gradient by trained parameter; leave `.grad` unchanged."""
    rows = [row for group in groups for row in group.completions]
    scores = [naive_scores(model, group, row, temperature) for group in groups for row in group.completions]
    logprobs = pad_sequence([each for each, _ in scores], batch_first=True)
    output = objective(logprobs, **_keywords(groups, rows, objective, logprobs))
    names, parameters = zip(*((n, p) for n, p in model.named_parameters() if p.requires_grad), strict=True)
    gradients = torch.autograd.grad(output.loss, parameters, allow_unused=True, materialize_grads=True)
    return Naive(
        loss=output.loss.detach(),
        metrics=output.metrics,
        gradients=dict(zip(names, gradients, strict=True)),
        logprobs=[each.detach() for each, _ in scores],
        entropy=[each for _, each in scores],
    )


def _keywords(
    groups: Sequence[Group], rows: Sequence[Completion], objective: Callable[..., Any], logprobs: Tensor
) -> dict[str, Tensor]:
    def pad(values: Sequence[Any]) -> Tensor:
        return pad_sequence([torch.as_tensor(each, dtype=logprobs.dtype) for each in values], batch_first=True)

    found = {
        "mask": pad([[1.0] * len(row.tokens) if row.mask is None else row.mask for row in rows]),
        "group": torch.tensor([i for i, group in enumerate(groups) for _ in group.completions]),
        "rewards": torch.tensor([row.reward or 0.0 for row in rows], dtype=logprobs.dtype),
    }
    for name in ("ref_logprobs", "old_logprobs"):
        if all(getattr(row, name) is not None for row in rows):
            found[name] = pad([getattr(row, name) for row in rows])
    for name in rows[0].extras:  # one value per token
        values = [torch.as_tensor(row.extras[name]) for row in rows]
        found[name] = pad_sequence(
            [each.to(logprobs.dtype) if each.is_floating_point() else each for each in values], True
        )
    return {name: value for name, value in found.items() if name in inspect.signature(objective).parameters}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Return the contents of `.grad` by name, with zeros for None."""
    return {
        name: torch.zeros_like(each) if each.grad is None else each.grad.clone()
        for name, each in model.named_parameters()
    }


def relative_error(found: dict[str, Tensor], true: dict[str, Tensor]) -> float:
    """Return |found - true| / |true| over all parameters together (L2)."""
    gap = sum(float((found[name] - true[name]).double().square().sum()) for name in true)
    size = sum(float(true[name].double().square().sum()) for name in true)
    return (gap / size) ** 0.5


@contextmanager
def double_precision(model: PreTrainedModel) -> Iterator[None]:
    """Compute norms, routers and recurrences in float64, which transformers computes in float32 for any weights."""
    with _NoFloat32():
        yield


class _NoFloat32(TorchFunctionMode):
    """Keeps float64 tensors in float64 if code converts them to float32."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if isinstance(args[0] if args else None, Tensor) and args[0].dtype == torch.float64:
            if func is Tensor.float:
                return args[0]
            args = tuple(torch.float64 if each is torch.float32 else each for each in args)
            if kwargs.get("dtype") is torch.float32:
                kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)


def random_groups(sizes: Sequence[tuple[int, Sequence[int]]], *, seed: int = 0, masked: bool = True) -> list[Group]:
    """Return groups of random bytes with random rewards and log-probs: `sizes` are (prompt, tokens of each row)."""
    generator = torch.Generator().manual_seed(seed)

    def row(length: int) -> Completion:
        mask = (torch.rand(length, generator=generator) < 0.8).double().tolist() if masked else None
        return Completion(
            tokens=torch.randint(3, 259, (length,), generator=generator).tolist(),
            reward=torch.randn((), generator=generator).item(),
            mask=mask,
            ref_logprobs=(-6 * torch.rand(length, generator=generator)).tolist(),
            old_logprobs=(-6 * torch.rand(length, generator=generator)).tolist(),
        )

    return [
        Group(torch.randint(3, 259, (prompt,), generator=generator).tolist(), [row(each) for each in rows], id=f"g{i}")
        for i, (prompt, rows) in enumerate(sizes)
    ]


def random_episodes(*, seed: int = 0) -> list[Group]:
    """Return groups of episodes of one to three turns, with masked observations, segments and advantages per turn.

    The groups have uneven turns, a row of one turn, and a row that begins with an observation.
    """
    generator = torch.Generator().manual_seed(seed)
    shapes = [
        [(4, -3, 2, -5, 3), (1,), (-4, 2, -1, 6)],
        [(2, -2, 2, -2, 2), (5, -1, 1)],
        [(3, -6, 1, -1, 1), (2, -2, 4)],
    ]

    def values(length: int) -> list[float]:
        return (-6 * torch.rand(length, generator=generator)).tolist()

    def row(parts: Sequence[int]) -> Completion:
        length = sum(map(abs, parts))
        mask = [float(part > 0) for part in parts for _ in range(abs(part))]
        turns = [place // 2 for place, part in enumerate(parts) for _ in range(abs(part))]
        paid = torch.randn(len(parts), generator=generator).tolist()
        return Completion(
            tokens=torch.randint(3, 259, (length,), generator=generator).tolist(),
            reward=torch.randn((), generator=generator).item(),
            mask=mask,
            ref_logprobs=values(length),
            old_logprobs=values(length),
            extras={"segments": turns, "advantages": [paid[turn] for turn in turns]},
        )

    return [
        Group(
            torch.randint(3, 259, (5 + number,), generator=generator).tolist(),
            [row(each) for each in shape],
            id=f"e{number}",
        )
        for number, shape in enumerate(shapes)
    ]


class LargestTensor(TorchDispatchMode):
    """Records the largest number of elements of any operation's result."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else (result,):
            if isinstance(each, Tensor):
                self.largest = max(self.largest, each.numel())
        return result
