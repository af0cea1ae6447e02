"""How rows that fork from a prompt lie in the calls of a model: see the drawing in `forking`.

A micro-batch is one call for prompts of one length and calls for the rows that go on from them. Rows of similar length
go together, padded on the right: what follows a row's end is not scored and reaches nothing that is. A call has a fixed
cost, so rows are cut where that saves more padding than a call is worth.

Everything here is a function of the groups, the budget and the `Fork` only, so two passes over the same groups compute
the same, bit by bit.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gvpo.types import Group
from gvpo.update.layouts.packed import MicroBatch, PackedRow, Piece, Tokens

CALL_TOKENS = 128
"""Tokens that one more call of a model is worth: its fixed cost, small beside a real prompt."""

NEVER = 2.0**40
"""More than any number of tokens is worth."""

_SHORTEST = 2
"""Tokens of the shortest row: with one, layers take their decoding path, whose kernels write states in place."""


@dataclass(frozen=True)
class Fork:
    """How rows are distributed over calls.

    Args:
        call: tokens that a further call for the rows of a micro-batch is worth. `NEVER` makes two calls a micro-batch,
            whatever the lengths: ranks that gather each other's weights must all make the same number.
    """

    call: float = CALL_TOKENS


@dataclass(frozen=True)
class Call:
    """One call of the model: rows of tokens and where its S scored tokens are.

    Args:
        input_ids: [n, L] int64.
        parent: [n] int64, the prompt that each row goes on from; for prompts, themselves.
        source: [S] int64 into the flattened [n * L]: the position whose output predicts the token.
        target: [S] int64, the token's id.
        row: [S] int64, the completion it belongs to.
        token: [S] int64, its place in that completion.
    """

    input_ids: Tensor
    parent: Tensor
    source: Tensor
    target: Tensor
    row: Tensor
    token: Tensor


@dataclass(frozen=True)
class ForkedLayout:
    """A micro-batch as calls: the prompts [m, P], then rows that go on from them.

    `row` and `token` are those of all its tokens, call by call.
    """

    prompts: Call
    rows: tuple[Call, ...]

    @property
    def calls(self) -> tuple[Call, ...]:
        """All calls, in order."""
        return (self.prompts, *self.rows)

    @property
    def row(self) -> Tensor:
        """[S] int64, the completion of each scored token."""
        return torch.cat([call.row for call in self.calls])

    @property
    def token(self) -> Tensor:
        """[S] int64, its place in that completion."""
        return torch.cat([call.token for call in self.calls])


def pays(groups: Sequence[Group]) -> bool:
    """Whether forked prompts cost fewer tokens than a prompt for each row, further calls counted."""
    prompts = sum(len(group.prompt) for group in groups)
    repeated = sum(len(group.prompt) * sum(len(row.tokens) > 0 for row in group.completions) for group in groups)
    return prompts + CALL_TOKENS * len({len(group.prompt) for group in groups}) < repeated


def plan_forked(groups: Sequence[Group], budget: int, fork: Fork) -> list[MicroBatch]:
    """Cut groups into micro-batches of at most `budget` tokens, padding included, prompts of one length in each.

    Args:
        groups: the optimizer batch. Completions without tokens have nothing to score and are left out.
        budget: tokens a micro-batch; exceeded only by a single completion that does not fit with its prompt.
        fork: how rows will be distributed over calls.

    Returns:
        Micro-batches, the longest rows of a prompt length first.
    """
    lengths: dict[int, list[Piece]] = {}
    for piece in _pieces(groups, budget, fork):
        lengths.setdefault(len(piece.prompt), []).append(piece)
    microbatches = list[MicroBatch]()
    for length in sorted(lengths, reverse=True):
        pieces = sorted(lengths[length], key=lambda piece: -_width(piece.rows))
        microbatches += _bundles(pieces, budget, CALL_TOKENS if fork.call == NEVER else NEVER)
    return microbatches


def lay_out_forked(microbatch: MicroBatch, fork: Fork, device: torch.device) -> ForkedLayout:
    """Write a micro-batch as the tensors of its calls.

    Args:
        microbatch: pieces with prompts of one length, from `plan_forked`.
        fork: how rows are distributed over calls.
        device: where the tensors go.
    """
    rows = _longest_first((parent, row) for parent, piece in enumerate(microbatch) for row in piece.rows)
    widths = np.array([_width([row]) for _, row in rows])
    return ForkedLayout(
        prompts=_prompt_call(microbatch, device),
        rows=tuple(_rows_call(rows[part], device) for part in _cut(widths, fork.call)),
    )


def _pieces(groups: Sequence[Group], budget: int, fork: Fork) -> Iterator[Piece]:
    """Cut each group into pieces within the budget, rows of similar length together.

    A further piece costs the prompt again. Where the rows of a piece must go in one call that can still be the
    cheaper way around a long tail; otherwise pieces are as few as possible.
    """
    index = count()
    for group in groups:
        prompt = np.asarray(group.prompt, dtype=np.int64)
        rows = [PackedRow(next(index), np.asarray(row.tokens, dtype=np.int64)) for row in group.completions]
        ordered = [row for _, row in _longest_first((0, row) for row in rows if len(row.tokens))]
        widths = np.array([_width([row]) for row in ordered])
        cost = float(len(prompt)) if fork.call == NEVER else NEVER
        for part in _cut(widths, cost, most=budget - len(prompt)):
            yield Piece(prompt, tuple(ordered[part]))


def _longest_first(rows: Iterable[tuple[int, PackedRow]]) -> list[tuple[int, PackedRow]]:
    return sorted(rows, key=lambda each: -len(each[1].tokens))


def _width(rows: Sequence[PackedRow]) -> int:
    """Tokens of the longest of some rows; a last token is only a target."""
    return max(_SHORTEST, *(len(row.tokens) - 1 for row in rows))


def _cut(widths: NDArray[np.int64], cost: float, most: float = NEVER) -> list[slice]:
    """Cut rows, widest first, into parts that are padded to their widest, so that the tokens are fewest.

    Args:
        widths: [n] tokens of each row, descending.
        cost: tokens that a part costs besides.
        most: tokens of a part, unless a single row has more.
    """
    sizes = np.arange(len(widths), 0, -1)
    best, start = np.zeros(len(widths) + 1), np.zeros(len(widths) + 1, dtype=np.int64)
    for end in range(1, len(best)):  # the cheapest way to cut the first `end` rows, by where the last part starts
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


def _bundles(pieces: Sequence[Piece], budget: int, padding: float) -> Iterator[MicroBatch]:
    """Put pieces with prompts of one length together, as many as fit the budget when padded to the first one's width.

    Args:
        pieces: widest first.
        budget: tokens of a micro-batch.
        padding: tokens that a piece may be padded by to go with others.
    """
    taken: list[Piece] = []
    size = width = 0
    for piece in pieces:
        own, rows = _width(piece.rows), len(piece.rows)
        if taken and (size + len(piece.prompt) + rows * width > budget or rows * (width - own) > padding):
            yield tuple(taken)
            taken, size = [], 0
        width = width if taken else own
        taken.append(piece)
        size += len(piece.prompt) + rows * width
    if taken:
        yield tuple(taken)


def _prompt_call(pieces: Sequence[Piece], device: torch.device) -> Call:
    length = len(pieces[0].prompt)
    first = [(place * length + length - 1, row) for place, piece in enumerate(pieces) for row in piece.rows]
    return _call(
        input_ids=np.stack([piece.prompt for piece in pieces]),
        parent=np.arange(len(pieces)),
        source=np.array([source for source, _ in first]),
        target=np.array([row.tokens[0] for _, row in first]),
        row=np.array([row.index for _, row in first]),
        token=np.zeros(len(first), dtype=np.int64),
        device=device,
    )


def _rows_call(rows: Sequence[tuple[int, PackedRow]], device: torch.device) -> Call:
    width = _width([row for _, row in rows])
    input_ids = np.zeros((len(rows), width), dtype=np.int64)
    for lane, (_, row) in enumerate(rows):
        input_ids[lane, : len(row.tokens) - 1] = row.tokens[:-1]
    places = [np.arange(len(row.tokens) - 1) for _, row in rows]
    return _call(
        input_ids=input_ids,
        parent=np.array([parent for parent, _ in rows]),
        source=np.concatenate([lane * width + place for lane, place in enumerate(places)]),
        target=np.concatenate([row.tokens[1:] for _, row in rows]),
        row=np.concatenate([np.full_like(place, row.index) for place, (_, row) in zip(places, rows, strict=True)]),
        token=np.concatenate(places) + 1,
        device=device,
    )


def _call(*, device: torch.device, **arrays: Tokens) -> Call:
    return Call(**{name: torch.from_numpy(values).to(device) for name, values in arrays.items()})
