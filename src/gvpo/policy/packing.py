"""From groups to tokens: how prompts and completions lie in the micro-batches of an update.

A micro-batch is a rectangle of `lanes` x `length` tokens, within the token budget. Two layouts:

    shared   whole groups: each prompt once, then its completions; small groups lie behind each other in one lane

                 lane 0   │ P P P P │ a a a │ b b │ c c c c │
                 lane 1   │ Q Q │ d d d │ e e │ R R │ f f │ . │        (. is padding)
             position     0 1 2 3   4 5 6   4 5   4 5 6 7               (restarts after the prompt)
             mask         a token sees its own prompt and its own completion, never a sibling or another group

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

Tokens = NDArray[np.int64]

_PADDING = -1
_PROMPT = 0


@dataclass(frozen=True)
class Row:
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
    rows: tuple[Row, ...]

    @property
    def length(self) -> int:
        """Tokens that the piece takes: the last token of each completion is only a target."""
        return len(self.prompt) + sum(len(row.tokens) - 1 for row in self.rows)


Lane = tuple[Piece, ...]
MicroBatch = tuple[Lane, ...]


@dataclass(frozen=True)
class Layout:
    """A micro-batch as tensors: the model's inputs and where its S scored tokens are.

    Args:
        input_ids: [n, L] int64.
        attention_mask: shared: [n, 1, L, L], added to the attention scores; rows: [n, L] int64, 0 on padding.
        position_ids: [n, L] int64 where positions restart, None where the model's own (0, 1, 2, ...) are right.
        source: [S] int64 into the flattened [n * L]: the position whose output predicts the token.
        target: [S] int64, the token's id.
        row: [S] int64, the completion it belongs to.
        token: [S] int64, its place in that completion.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor | None
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


def lay_out(microbatch: MicroBatch, *, shared: bool, dtype: torch.dtype, device: torch.device) -> Layout:
    """Write a micro-batch as tensors.

    Args:
        microbatch: lanes of pieces, from `plan`.
        shared: the layout that the plan was made for.
        dtype: of the additive mask: the attention's.
        device: where the tensors go.
    """
    canvas = _Canvas(len(microbatch), max(map(_length, microbatch)))
    for lane, pieces in enumerate(microbatch):
        canvas.draw(lane, pieces)

    def move(values: Tokens) -> Tensor:
        return torch.from_numpy(values).to(device)

    blocks, owners = move(canvas.blocks), move(canvas.owners)
    return Layout(
        input_ids=move(canvas.input_ids),
        attention_mask=_tree_mask(blocks, owners, dtype) if shared else (blocks != _PADDING).long(),
        position_ids=move(canvas.position_ids) if shared else None,
        source=move(np.concatenate(canvas.source)),
        target=move(np.concatenate(canvas.target)),
        row=move(np.concatenate(canvas.row)),
        token=move(np.concatenate(canvas.token)),
    )


def _pieces(groups: Sequence[Group], budget: int) -> Iterator[Piece]:
    """Cut each group into pieces within the budget; a budget of 0 gives one completion a piece."""
    index = count()
    for group in groups:
        prompt = np.asarray(group.prompt, dtype=np.int64)
        rows, length = list[Row](), len(prompt)
        for completion in group.completions:
            row = Row(next(index), np.asarray(completion.tokens, dtype=np.int64))
            if len(row.tokens) == 0:
                continue
            length += len(row.tokens) - 1
            if rows and length > budget:
                yield Piece(prompt, tuple(rows))
                rows, length = [], len(prompt) + len(row.tokens) - 1
            rows.append(row)
        if rows:
            yield Piece(prompt, tuple(rows))


def _fill(pieces: list[Piece], budget: int, shared: bool) -> tuple[MicroBatch, list[Piece]]:
    """Fill a micro-batch, first-fit decreasing, in lanes as long as the longest piece; return it and what is left."""
    length = pieces[0].length
    most = max(1, budget // length)
    lanes: list[list[Piece]] = []
    free: list[int] = []
    rest = []
    for piece in pieces:
        lane = next((i for i, room in enumerate(free) if shared and room >= piece.length), None)
        if lane is not None:
            lanes[lane].append(piece)
            free[lane] -= piece.length
        elif len(lanes) < most:
            lanes.append([piece])
            free.append(length - piece.length)
        else:
            rest.append(piece)
    return tuple(map(tuple, lanes)), rest


def _length(lane: Lane) -> int:
    return sum(piece.length for piece in lane)


class _Canvas:
    """The arrays of one layout while pieces are drawn on them."""

    def __init__(self, lanes: int, length: int) -> None:
        self.length = length
        self.input_ids = np.zeros((lanes, length), dtype=np.int64)
        self.position_ids = np.zeros((lanes, length), dtype=np.int64)
        self.blocks = np.full((lanes, length), _PADDING, dtype=np.int64)  # which piece of its lane
        self.owners = np.zeros((lanes, length), dtype=np.int64)  # which completion of its lane; _PROMPT for prompts
        self.source: list[Tokens] = []
        self.target: list[Tokens] = []
        self.row: list[Tokens] = []
        self.token: list[Tokens] = []

    def draw(self, lane: int, pieces: Lane) -> None:
        """Draw pieces behind each other into a lane."""
        start, owner = 0, _PROMPT
        for block, piece in enumerate(pieces):
            prompt = len(piece.prompt)
            self._write(lane, start, piece.prompt, position=0, block=block, owner=_PROMPT)
            last, start = start + prompt - 1, start + prompt
            for row in piece.rows:
                owner += 1
                self._write(lane, start, row.tokens[:-1], position=prompt, block=block, owner=owner)
                self._score(lane, last, start, row)
                start += len(row.tokens) - 1

    def _write(self, lane: int, start: int, tokens: Tokens, *, position: int, block: int, owner: int) -> None:
        where = (lane, slice(start, start + len(tokens)))
        self.input_ids[where] = tokens
        self.position_ids[where] = np.arange(position, position + len(tokens))
        self.blocks[where] = block
        self.owners[where] = owner

    def _score(self, lane: int, last: int, start: int, row: Row) -> None:
        """Note where a completion is predicted: its first token by the prompt's last, the others by the one before."""
        count = len(row.tokens)
        source = np.arange(start - 1, start + count - 1, dtype=np.int64)
        source[0] = last
        self.source.append(source + lane * self.length)
        self.target.append(row.tokens)
        self.row.append(np.full(count, row.index, dtype=np.int64))
        self.token.append(np.arange(count, dtype=np.int64))


def _tree_mask(blocks: Tensor, owners: Tensor, dtype: torch.dtype) -> Tensor:
    """The additive mask [n, 1, L, L] of the shared layout.

    A query sees the keys before it and itself that are of its own piece and either prompt or of its own completion.
    Padding sees itself, so that no softmax is over nothing.

    Args:
        blocks: [n, L] piece of each token, -1 on padding.
        owners: [n, L] completion of each token, 0 on prompts.
        dtype: of the result.
    """
    places = torch.arange(blocks.shape[1], device=blocks.device)
    seen = (blocks[:, :, None] == blocks[:, None, :]) & (blocks != _PADDING)[:, None, :]
    seen &= (owners[:, None, :] == _PROMPT) | (owners[:, :, None] == owners[:, None, :])
    seen &= places[:, None] >= places[None, :]
    seen |= torch.eye(len(places), dtype=torch.bool, device=blocks.device)
    mask = torch.zeros(seen.shape, dtype=dtype, device=blocks.device)
    return mask.masked_fill_(~seen, hidden_score(dtype))[:, None]


def hidden_score(dtype: torch.dtype) -> float:
    """What is added to the attention score of a key that is not seen: finite, also after a cast to bfloat16.

    float32's own minimum becomes minus infinity in bfloat16, and a kernel or autocast may make that cast.
    """
    return max(torch.finfo(dtype).min, torch.finfo(torch.bfloat16).min)
