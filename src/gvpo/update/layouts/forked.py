"""The calls of a model for rows that fork from a prompt; see the drawing in `fork_cache`.

A micro-batch is one call for prompts of one length and further calls for the rows that continue them. Rows of similar
length are batched together, padded on the right. Padding is not scored and does not affect scored tokens. A call has a
fixed cost, so rows are split where that saves more padding than a call costs.

All results depend only on the groups, the budget and the layout, so two passes over the same groups compute the same,
bit by bit.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import count
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from gvpo.types import Group
from gvpo.update.layouts.base import Call, MicroBatch, PackedRow, Piece, Tokens
from gvpo.update.layouts.fork_cache import Continuation, ForkedCalls

CALL_TOKENS = 128
"""Fixed cost of one more call of a model, in tokens, which is small compared with a real prompt."""

_FEWEST = 2.0**40
"""Cost of a part, in tokens, at which rows are split into as few parts as possible."""

_SHORTEST = 2
"""Minimum number of tokens per row. With one token, layers use decoding kernels, which write states in place."""


@dataclass(frozen=True)
class Forked:
    """Prompts in one call, and rows in further calls that continue from forks of its cache.

    Args:
        call_tokens: Cost of a further call for the rows of a micro-batch, in tokens.
    """

    call_tokens: float = CALL_TOKENS

    name: ClassVar[str] = "forked prompts"
    one_call: ClassVar[bool] = False

    def why_not(self, model: Any) -> str:
        """Return what in a model forbids forks of its cache, or "" if they are allowed."""
        if model.training and getattr(model, "is_gradient_checkpointing", False):
            return "its layers keep no cache under gradient checkpointing"
        return ""

    def pays(self, groups: Sequence[Group]) -> bool:
        """Return whether this costs fewer tokens than a prompt for each row, including further calls."""
        prompts = sum(len(group.prompt) for group in groups)
        repeated = sum(len(group.prompt) * sum(len(row.tokens) > 0 for row in group.completions) for group in groups)
        return prompts + self.call_tokens * len({len(group.prompt) for group in groups}) < repeated

    def cut(self, groups: Sequence[Group], budget: int) -> list[MicroBatch]:
        """Split groups into micro-batches of prompts of one length, with the longest prompts and rows first."""
        lengths: dict[int, list[Piece]] = {}
        for piece in _pieces(groups, budget):
            lengths.setdefault(len(piece.prompt), []).append(piece)
        microbatches = list[MicroBatch]()
        for length in sorted(lengths, reverse=True):
            microbatches += _bundles(sorted(lengths[length], key=lambda piece: -_width(piece.rows)), budget)
        return microbatches

    def lay_out(self, microbatch: MicroBatch, device: torch.device) -> ForkedCalls:
        """Convert a micro-batch to the tensors of its calls."""
        rows = _longest_first((parent, row) for parent, piece in enumerate(microbatch) for row in piece.rows)
        widths = np.array([_width([row]) for _, row in rows])
        parts = [_rows_call(rows[part], device) for part in _cut(widths, self.call_tokens)]
        return ForkedCalls(_prompt_call(microbatch, device), tuple(parts))

    def attention(self, model: Any) -> AbstractContextManager[None]:
        """Return a context that leaves the model's attention unchanged."""
        return nullcontext()


def _pieces(groups: Sequence[Group], budget: int) -> Iterator[Piece]:
    """Split each group into as few pieces within the budget as possible, with rows of similar length together.

    Each further piece repeats the prompt.
    """
    index = count()
    for group in groups:
        prompt = np.asarray(group.prompt, dtype=np.int64)
        rows = [PackedRow(next(index), np.asarray(row.tokens, dtype=np.int64)) for row in group.completions]
        ordered = [row for _, row in _longest_first((0, row) for row in rows if len(row.tokens))]
        widths = np.array([_width([row]) for row in ordered])
        for part in _cut(widths, _FEWEST, most=budget - len(prompt)):
            yield Piece(prompt, tuple(ordered[part]))


def _longest_first(rows: Iterable[tuple[int, PackedRow]]) -> list[tuple[int, PackedRow]]:
    return sorted(rows, key=lambda each: -len(each[1].tokens))


def _width(rows: Sequence[PackedRow]) -> int:
    """Return the number of tokens of the longest row. A last token is only a target."""
    return max(_SHORTEST, *(len(row.tokens) - 1 for row in rows))


def _cut(widths: Tokens, cost: float, most: float = math.inf) -> list[slice]:
    """Split rows, widest first, into parts that are padded to their widest row, with the fewest tokens in total.

    Args:
        widths: [n] number of tokens of each row, descending.
        cost: Additional cost of each part, in tokens.
        most: Maximum number of tokens per part, unless a single row has more.
    """
    sizes = np.arange(len(widths), 0, -1)
    best, start = np.zeros(len(widths) + 1), np.zeros(len(widths) + 1, dtype=np.int64)
    for end in range(1, len(best)):  # the cheapest split of the first `end` rows, by the start of the last part
        rows = sizes[-end:]
        tokens = rows * widths[:end]
        total = np.where((tokens > most) & (rows > 1), np.inf, best[:end] + tokens + cost)
        start[end] = total.argmin()
        best[end] = total[start[end]]
    parts, end = list[slice](), len(widths)
    while end > 0:
        parts.append(slice(int(start[end]), end))
        end = int(start[end])
    return parts[::-1]


def _bundles(pieces: Sequence[Piece], budget: int) -> Iterator[MicroBatch]:
    """Combine pieces with prompts of one length, as many as fit the budget when padded to the width of the first one.

    Args:
        pieces: Pieces, widest first.
        budget: Maximum number of tokens per micro-batch.
    """
    taken: list[Piece] = []
    size = width = 0
    for piece in pieces:
        rows = len(piece.rows)
        if taken and size + len(piece.prompt) + rows * width > budget:
            yield tuple(taken)
            taken, size = [], 0
        width = width if taken else _width(piece.rows)
        taken.append(piece)
        size += len(piece.prompt) + rows * width
    if taken:
        yield tuple(taken)


def _prompt_call(pieces: Sequence[Piece], device: torch.device) -> Call:
    length = len(pieces[0].prompt)
    first = [(place * length + length - 1, row) for place, piece in enumerate(pieces) for row in piece.rows]
    return Call(
        {"input_ids": _move(np.stack([piece.prompt for piece in pieces]), device), "use_cache": True},
        source=_move(np.array([source for source, _ in first]), device),
        target=_move(np.array([row.tokens[0] for _, row in first]), device),
        row=_move(np.array([row.index for _, row in first]), device),
        token=_move(np.zeros(len(first), dtype=np.int64), device),
    )


def _rows_call(rows: Sequence[tuple[int, PackedRow]], device: torch.device) -> Continuation:
    width = _width([row for _, row in rows])
    input_ids = np.zeros((len(rows), width), dtype=np.int64)
    for lane, (_, row) in enumerate(rows):
        input_ids[lane, : len(row.tokens) - 1] = row.tokens[:-1]
    places = [np.arange(len(row.tokens) - 1) for _, row in rows]
    owners = [np.full_like(place, row.index) for place, (_, row) in zip(places, rows, strict=True)]
    call = Call(
        {"input_ids": _move(input_ids, device)},
        source=_move(np.concatenate([lane * width + place for lane, place in enumerate(places)]), device),
        target=_move(np.concatenate([row.tokens[1:] for _, row in rows]), device),
        row=_move(np.concatenate(owners), device),
        token=_move(np.concatenate(places) + 1, device),
    )
    return Continuation(call, parent=_move(np.array([parent for parent, _ in rows]), device))


def _move(values: Tokens, device: torch.device) -> Tensor:
    return torch.from_numpy(values).to(device)
