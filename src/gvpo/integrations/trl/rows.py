"""From TRL's tensors to groups. This module imports nothing of TRL.

TRL keeps rows on the rank that generated them and shuffles them over micro-batches. `ROW` columns that travel along say
which group a row belongs to, so the layout does not matter:

    micro-batches of all ranks ──rows──▶ gather ──groups_of──▶ whole groups, the same on every rank
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gvpo.types import Completion, Group

GROUP, REWARD = "gvpo_group", "gvpo_reward"
"""Keys that the plug-in adds to TRL's batches: [b] number of the group in its generation, and [b] reward or NaN."""

Batch = Mapping[str, Any]
"""A micro-batch of TRL: tensors with b rows, and a few scalars."""


@dataclass(frozen=True)
class Served:
    """A micro-batch of an optimizer step.

    Args:
        turn: Number of times that completions were served from the start before it. A later iteration over the same
            completions is another turn, so that its groups are other groups.
        batch: TRL's tensors.
    """

    turn: int
    batch: Batch


@dataclass(frozen=True)
class Row:
    """A completion on its way between ranks, as arrays.

    Args:
        group: Turn, and number of the group in its generation.
        prompt: [P] token ids.
        tokens: [C] token ids.
        mask: [C] 1 on tokens that the policy wrote; None if it wrote all of them.
        values: Other fields of the completion and extras by name: a number, or [C] values.
    """

    group: tuple[int, int]
    prompt: NDArray[np.int32]
    tokens: NDArray[np.int32]
    mask: NDArray[np.float32] | None = None
    values: Mapping[str, Any] = field(default_factory=dict)


def rows_of(served: Served, columns: Mapping[str, Tensor]) -> Iterator[Row]:
    """Yield the rows of a micro-batch, without padding. A row that TRL masked out as truncated has no tokens.

    Args:
        served: The micro-batch.
        columns: Values of the rows by name: [b], or [b, C] with one per token.
    """
    arrays = {name: _array(served.batch[name]) for name in ("prompt_ids", "prompt_mask", "completion_ids")}
    kept, groups = _array(served.batch["completion_mask"]) != 0, _array(served.batch[GROUP])
    tools = _array(served.batch["tool_mask"]) if "tool_mask" in served.batch else None
    values = {name: _array(column) for name, column in columns.items()}
    for row, where in enumerate(kept):
        yield Row(
            group=(served.turn, int(groups[row])),
            prompt=arrays["prompt_ids"][row][arrays["prompt_mask"][row] != 0].astype(np.int32),
            tokens=arrays["completion_ids"][row][where].astype(np.int32),
            mask=None if tools is None else tools[row][where].astype(np.float32),
            values={name: each[row][where] if each.ndim > 1 else each[row].item() for name, each in values.items()},
        )


def groups_of(rows: Iterable[Row]) -> list[Group]:
    """Return the groups of rows, in ascending order, whatever the order of the rows' groups."""
    found: dict[tuple[int, int], list[Row]] = defaultdict(list)
    for row in rows:
        found[row.group].append(row)
    return [
        Group(members[0].prompt.tolist(), [_completion(row) for row in members]) for _, members in sorted(found.items())
    ]


def _completion(row: Row) -> Completion:
    extras = dict(row.values)
    return Completion(
        row.tokens.tolist(),
        reward=extras.pop("reward", None),
        mask=row.mask,
        ref_logprobs=extras.pop("ref_logprobs", None),
        old_logprobs=extras.pop("old_logprobs", None),
        extras=extras,
    )


def comparable(groups: Sequence[Group]) -> list[Group]:
    """Return the groups with at least two rows; a single row cannot be compared with anything."""
    return [group for group in groups if len(group.completions) > 1]


def usable(batch: Batch, *, mask_truncated: bool) -> Tensor:
    """Return [b] bool, False for rows without a reward and for rows that TRL masked out as truncated."""
    scored: Tensor = batch[REWARD].isfinite()
    return scored & (batch["completion_mask"].sum(1) > 0) if mask_truncated else scored


def part_of(batch: Batch, where: Tensor) -> dict[str, Any]:
    """Return some rows of a micro-batch.

    Args:
        batch: Tensors with b rows, and scalars.
        where: [b] bool, or indices.
    """
    return {
        name: value[where] if isinstance(value, Tensor) and value.ndim > 0 else value for name, value in batch.items()
    }


def joined(batches: Sequence[Batch]) -> dict[str, Any]:
    """Return the rows of micro-batches of one generation as one batch."""
    return {
        name: torch.cat([batch[name] for batch in batches]) if isinstance(value, Tensor) and value.ndim > 0 else value
        for name, value in batches[0].items()
    }


def window(buffered: Sequence[Batch], number: int, count: int, size: int) -> list[dict[str, Any]]:
    """Return the micro-batches of one optimizer step out of `count` that share a generation, with whole groups.

    Args:
        buffered: All micro-batches of the generation on this rank.
        number: Number of the step, from 0. It gets each `count`-th group.
        count: Number of steps.
        size: Number of rows per micro-batch.
    """
    rows = joined(buffered)
    own = (rows[GROUP] % count == number).nonzero().squeeze(1)
    own = own[rows[GROUP][own].argsort(stable=True)]
    return [part_of(rows, part) for part in own.split(size)]


def _array(tensor: Tensor) -> NDArray[Any]:
    tensor = tensor.detach()
    array: NDArray[Any] = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).cpu().numpy()
    return array
