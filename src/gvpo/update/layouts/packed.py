"""From groups to tokens: how prompts and completions lie in the micro-batches of an update.

A micro-batch is within the token budget. Two layouts:

    shared   one lane of whole groups behind one another, each prompt once, then its completions; nothing is padded

                            P P P P │ a a a │ b b │ c c c c ║ Q Q │ d d d │ e e ║ R R │ f f
                 position   0 1 2 3   4 5 6   4 5   4 5 6 7   0 1   2 3 4   2 3   0 1   2 3

             positions restart after the prompt; a token sees its own prompt and its own completion, and neither a
             sibling nor another group (`attention`)

    rows     each completion behind a prompt of its own, alone in its lane, longest first, padded on the right

The last token of a completion is only a target: nothing follows it, so it is not laid out. A group over the budget is
cut into parts, each with the prompt again; a completion that is over the budget alone goes alone. Everything here is a
function of the groups, the budget and the layout only, so two passes over the same groups compute the same, bit by bit.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gvpo.types import Group
from gvpo.update.layouts.tree import Tree, Trees

Tokens = NDArray[np.int64]


@dataclass(frozen=True)
class PackedRow:
    """A completion to lay out.

    Args:
        index: its place in the batch: groups in order, then completions in order.
        tokens: its C >= 1 token ids.
    """

    index: int
    tokens: Tokens


@dataclass(frozen=True)
class Piece:
    """A prompt and completions of its group: what is laid out without a gap.

    Args:
        prompt: P token ids.
        rows: at least one completion.
    """

    prompt: Tokens
    rows: tuple[PackedRow, ...]

    @property
    def length(self) -> int:
        """Tokens that the piece takes: the last token of each completion is only a target."""
        return len(self.prompt) + sum(len(row.tokens) - 1 for row in self.rows)


MicroBatch = tuple[Piece, ...]
"""Pieces: behind one another in the one lane of the shared layout, or one of a single row in each lane."""


@dataclass(frozen=True)
class Layout:
    """A micro-batch as tensors: the model's inputs and where its S scored tokens are.

    Args:
        input_ids: [n, L] int64; n is 1 where prompts are shared.
        attention_mask: rows: [n, L] int64, 0 on padding; None where prompts are shared.
        position_ids: [n, L] int64 where positions restart, None where the model's own (0, 1, 2, ...) are right.
        trees: who sees whom, where prompts are shared.
        source: [S] int64 into the flattened [n * L]: the position whose output predicts the token.
        target: [S] int64, the token's id.
        row: [S] int64, the completion it belongs to.
        token: [S] int64, its place in that completion.
    """

    input_ids: Tensor
    attention_mask: Tensor | None
    position_ids: Tensor | None
    trees: Trees | None
    source: Tensor
    target: Tensor
    row: Tensor
    token: Tensor


def plan(groups: Sequence[Group], budget: int, *, shared: bool) -> list[MicroBatch]:
    """Cut groups into micro-batches of at most `budget` tokens, padding included.

    Args:
        groups: the optimizer batch. Completions without tokens have nothing to score and are left out.
        budget: tokens a micro-batch; exceeded only by a single completion that does not fit with its prompt.
        shared: prompts shared by the completions of a group, or one completion a lane.

    Returns:
        Micro-batches, the longest pieces first; each non-empty completion lies in exactly one.
    """
    pieces = sorted(_pieces(groups, budget if shared else 0), key=lambda piece: -piece.length)
    microbatches = []
    while pieces:
        microbatch, pieces = _fill(pieces, budget, shared)
        microbatches.append(microbatch)
    return microbatches


def lay_out(microbatch: MicroBatch, *, shared: bool, device: torch.device) -> Layout:
    """Write a micro-batch as tensors.

    Args:
        microbatch: pieces, from `plan`.
        shared: the layout that the plan was made for.
        device: where the tensors go.
    """
    lengths = [piece.length for piece in microbatch]
    canvas = _Canvas(1, sum(lengths)) if shared else _Canvas(len(lengths), max(lengths))
    for index, piece in enumerate(microbatch):
        canvas.draw(piece, *((0, sum(lengths[:index])) if shared else (index, 0)))

    def move(values: Tokens) -> Tensor:
        return torch.from_numpy(values).to(device)

    return Layout(
        input_ids=move(canvas.input_ids),
        attention_mask=None if shared else move(canvas.drawn),
        position_ids=move(canvas.position_ids) if shared else None,
        trees=Trees(tuple(canvas.trees)) if shared else None,
        source=move(np.concatenate(canvas.source)),
        target=move(np.concatenate(canvas.target)),
        row=move(np.concatenate(canvas.row)),
        token=move(np.concatenate(canvas.token)),
    )


def _pieces(groups: Sequence[Group], budget: int) -> Iterator[Piece]:
    """Cut each group into pieces within the budget, equal lengths together; a budget of 0 gives one row a piece."""
    index = count()
    for group in groups:
        prompt = np.asarray(group.prompt, dtype=np.int64)
        every = [PackedRow(next(index), np.asarray(row.tokens, dtype=np.int64)) for row in group.completions]
        rows, length = list[PackedRow](), len(prompt)
        for row in sorted((row for row in every if len(row.tokens) > 0), key=lambda row: -len(row.tokens)):
            added = len(row.tokens) - 1
            if rows and length + added > budget:
                yield Piece(prompt, tuple(rows))
                rows, length = [], len(prompt)
            rows.append(row)
            length += added
        if rows:
            yield Piece(prompt, tuple(rows))


def _fill(pieces: list[Piece], budget: int, shared: bool) -> tuple[MicroBatch, list[Piece]]:
    """Fill a micro-batch, the longest piece first and then each that still fits; return it and what is left."""
    longest = pieces[0].length
    room = budget if shared else budget // longest * longest
    taken, rest = pieces[:1], []
    room -= longest
    for piece in pieces[1:]:
        size = piece.length if shared else longest
        if size <= room:
            taken.append(piece)
            room -= size
        else:
            rest.append(piece)
    return tuple(taken), rest


class _Canvas:
    """The arrays of one layout while pieces are drawn on them."""

    def __init__(self, lanes: int, length: int) -> None:
        self.length = length
        self.input_ids = np.zeros((lanes, length), dtype=np.int64)
        self.position_ids = np.zeros((lanes, length), dtype=np.int64)
        self.drawn = np.zeros((lanes, length), dtype=np.int64)
        self.trees: list[Tree] = []
        self.source: list[Tokens] = []
        self.target: list[Tokens] = []
        self.row: list[Tokens] = []
        self.token: list[Tokens] = []

    def draw(self, piece: Piece, lane: int, start: int) -> None:
        """Draw a piece into a lane, from a place on."""
        prompt = len(piece.prompt)
        self.trees.append(Tree(start, prompt, tuple(len(row.tokens) - 1 for row in piece.rows)))
        self._write(lane, start, piece.prompt, position=0)
        last, start = start + prompt - 1, start + prompt
        for row in piece.rows:
            self._write(lane, start, row.tokens[:-1], position=prompt)
            self._score(lane, last, start, row)
            start += len(row.tokens) - 1

    def _write(self, lane: int, start: int, tokens: Tokens, *, position: int) -> None:
        where = (lane, slice(start, start + len(tokens)))
        self.input_ids[where] = tokens
        self.position_ids[where] = np.arange(position, position + len(tokens))
        self.drawn[where] = 1

    def _score(self, lane: int, last: int, start: int, row: PackedRow) -> None:
        """Note where a completion is predicted: its first token by the prompt's last, the others by the one before."""
        count = len(row.tokens)
        source = np.arange(start - 1, start + count - 1, dtype=np.int64)
        source[0] = last
        self.source.append(source + lane * self.length)
        self.target.append(row.tokens)
        self.row.append(np.full(count, row.index, dtype=np.int64))
        self.token.append(np.arange(count, dtype=np.int64))
