"""From groups to tokens: the positions of prompts and completions in the micro-batches of an update.

A micro-batch stays within the token budget. There are two layouts, each with one call of the model:

    trees    one lane of whole groups one after another, each prompt once, then its completions; nothing is padded

                            P P P P │ a a a │ b b │ c c c c ║ Q Q │ d d d │ e e ║ R R │ f f
                 position   0 1 2 3   4 5 6   4 5   4 5 6 7   0 1   2 3 4   2 3   0 1   2 3

             positions restart after the prompt; a token attends to its own prompt and its own completion, but not to a
             sibling or another group (`tree_attention`)

    rows     each completion after its own copy of the prompt, one per lane, longest first, padded on the right

The last token of a completion is only a target, so it is not laid out. A group over the budget is split into parts,
each with the prompt again. A completion that exceeds the budget by itself gets its own micro-batch. All results depend
only on the groups, the budget and the layout, so two passes over the same groups compute the same, bit by bit.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import count
from typing import Any, ClassVar

import numpy as np
import torch

from gvpo import model_config
from gvpo.types import Group
from gvpo.update.attention.tree_attention import TREES, tree_attention
from gvpo.update.layouts.base import Call, MicroBatch, PackedRow, Piece, Tokens
from gvpo.update.layouts.forest import Forest, Tree


@dataclass(frozen=True)
class Rows:
    """Each completion in its own lane, after its own copy of the prompt. This is correct for every model."""

    name: ClassVar[str] = "a prompt for each row"
    one_call: ClassVar[bool] = True

    def why_not(self, model: Any) -> str:
        """Return "", because it is always allowed."""
        return ""

    def pays(self, groups: Sequence[Group]) -> bool:
        """Return True, because the other layouts are compared with it."""
        return True

    def cut(self, groups: Sequence[Group], budget: int) -> list[MicroBatch]:
        """Split groups into micro-batches, the longest rows first."""
        pieces = _longest_first(_pieces(groups, 0))
        microbatches = list[MicroBatch]()
        while pieces:
            fitting = max(1, budget // pieces[0].length)
            microbatches.append(tuple(pieces[:fitting]))
            pieces = pieces[fitting:]
        return microbatches

    def lay_out(self, microbatch: MicroBatch, device: torch.device) -> Call:
        """Convert a micro-batch to [n, L] with a mask [n, L], 0 on padding. The model's own positions are correct."""
        canvas = _Canvas(len(microbatch), max(piece.length for piece in microbatch))
        for lane, piece in enumerate(microbatch):
            canvas.draw(piece, lane, 0)
        return canvas.call(device, {"attention_mask": torch.from_numpy(canvas.drawn).to(device)})

    def attention(self, model: Any) -> AbstractContextManager[None]:
        """Return a context that leaves the model's attention unchanged."""
        return nullcontext()


ROWS = Rows()


@dataclass(frozen=True)
class Trees:
    """Whole groups in one lane, with each prompt once, by attention over trees."""

    name: ClassVar[str] = "shared prompts"
    one_call: ClassVar[bool] = True

    def why_not(self, model: Any) -> str:
        """Return what in a model forbids attention over trees, or "" if it is allowed."""
        reason = model_config.why_not_shared(model.config.get_text_config())
        return reason or ("it has recurrent layers" if getattr(model, "_is_stateful", False) else "")

    def pays(self, groups: Sequence[Group]) -> bool:
        """Return True, because attention over trees has no extra cost."""
        return True

    def cut(self, groups: Sequence[Group], budget: int) -> list[MicroBatch]:
        """Split groups into micro-batches, the longest pieces first."""
        pieces = _longest_first(_pieces(groups, budget))
        microbatches = list[MicroBatch]()
        while pieces:
            microbatch, pieces = _fill(pieces, budget)
            microbatches.append(microbatch)
        return microbatches

    def lay_out(self, microbatch: MicroBatch, device: torch.device) -> Call:
        """Convert a micro-batch to [1, L], with positions [1, L] that restart and the forest for the attention."""
        canvas = _Canvas(1, sum(piece.length for piece in microbatch))
        start = 0
        for piece in microbatch:
            canvas.draw(piece, 0, start)
            start += piece.length
        inputs = {
            "position_ids": torch.from_numpy(canvas.position_ids).to(device),
            "attention_mask": torch.zeros(1, 1, 1, 1, device=device),  # a 4D mask is passed on unchanged
            TREES: Forest(tuple(canvas.trees)),
        }
        return canvas.call(device, inputs)

    def attention(self, model: Any) -> AbstractContextManager[None]:
        """Return a context in which the model attends over trees."""
        return tree_attention(model)


def _pieces(groups: Sequence[Group], budget: int) -> Iterator[Piece]:
    """Split each group into pieces within the budget, equal lengths together. A budget of 0 gives one row per piece."""
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


def _longest_first(pieces: Iterable[Piece]) -> list[Piece]:
    return sorted(pieces, key=lambda piece: -piece.length)


def _fill(pieces: list[Piece], budget: int) -> tuple[MicroBatch, list[Piece]]:
    """Fill a micro-batch with the longest piece and then each piece that still fits. Return it and the other pieces."""
    room = budget - pieces[0].length
    taken, rest = pieces[:1], []
    for piece in pieces[1:]:
        if piece.length <= room:
            taken.append(piece)
            room -= piece.length
        else:
            rest.append(piece)
    return tuple(taken), rest


class _Canvas:
    """The arrays of one call, on which pieces are drawn."""

    def __init__(self, lanes: int, length: int) -> None:
        self.length = length
        self.input_ids = np.zeros((lanes, length), dtype=np.int64)
        self.position_ids = np.zeros((lanes, length), dtype=np.int64)
        self.drawn = np.zeros((lanes, length), dtype=np.int64)
        self.trees: list[Tree] = []
        self.scored: dict[str, list[Tokens]] = {"source": [], "target": [], "row": [], "token": []}

    def draw(self, piece: Piece, lane: int, start: int) -> None:
        """Draw a piece into a lane, starting at a position."""
        prompt = len(piece.prompt)
        self.trees.append(Tree(start, prompt, tuple(len(row.tokens) - 1 for row in piece.rows)))
        self._write(lane, start, piece.prompt, position=0)
        last, start = start + prompt - 1, start + prompt
        for row in piece.rows:
            self._write(lane, start, row.tokens[:-1], position=prompt)
            self._score(lane, last, start, row)
            start += len(row.tokens) - 1

    def call(self, device: torch.device, inputs: dict[str, Any]) -> Call:
        """Return the call with everything that was drawn and further inputs of the model, on a device."""
        own = {"input_ids": torch.from_numpy(self.input_ids).to(device), "use_cache": False}
        scored = {name: torch.from_numpy(np.concatenate(parts)).to(device) for name, parts in self.scored.items()}
        return Call({**own, **inputs}, **scored)

    def _write(self, lane: int, start: int, tokens: Tokens, *, position: int) -> None:
        where = (lane, slice(start, start + len(tokens)))
        self.input_ids[where] = tokens
        self.position_ids[where] = np.arange(position, position + len(tokens))
        self.drawn[where] = 1

    def _score(self, lane: int, last: int, start: int, row: PackedRow) -> None:
        """Record where a completion is predicted: the first token by the prompt's last, others by the previous one."""
        count = len(row.tokens)
        source = np.arange(start - 1, start + count - 1, dtype=np.int64)
        source[0] = last
        self.scored["source"].append(source + lane * self.length)
        self.scored["target"].append(row.tokens)
        self.scored["row"].append(np.full(count, row.index, dtype=np.int64))
        self.scored["token"].append(np.arange(count, dtype=np.int64))
