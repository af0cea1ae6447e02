"""What the layouts of a batch have in common: pieces of groups, calls of a model, and the protocol of a layout.

    groups ──cut──▶ micro-batches of pieces ──lay_out──▶ calls of the model ──scores──▶ a log-prob of every token

`Rows` and `Trees` are in `packed`, `Forked` is in `forked`.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gvpo.types import Group
from gvpo.update.head import TokenScores

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
        rows: completions, at least one.
    """

    prompt: Tokens
    rows: tuple[PackedRow, ...]

    @property
    def length(self) -> int:
        """Tokens that the piece takes: the last token of each completion is only a target."""
        return len(self.prompt) + sum(len(row.tokens) - 1 for row in self.rows)


MicroBatch = tuple[Piece, ...]
"""Pieces that go through the model together."""


@dataclass(frozen=True)
class Call:
    """One call of the model: its inputs, and where its S scored tokens are.

    Args:
        inputs: keywords of the model, with `input_ids` [n, L] int64 among them.
        source: [S] int64 into the flattened [n * L]: the position whose output predicts the token.
        target: [S] int64, the token's id.
        row: [S] int64, the completion it belongs to.
        token: [S] int64, its place in that completion.
    """

    inputs: dict[str, Any]
    source: Tensor
    target: Tensor
    row: Tensor
    token: Tensor

    @property
    def input_ids(self) -> Tensor:
        """[n, L] int64."""
        ids: Tensor = self.inputs["input_ids"]
        return ids

    def scores(self, run: "Run", coefficients: Tensor | None) -> TokenScores:
        """Score the tokens by this one call; see `Calls`."""
        return run(self, coefficients)[0]


Run = Callable[[Call, Tensor | None], tuple[TokenScores, Any]]
"""Calls the model; takes the coefficients of the call's tokens, and returns their scores and the model's output."""


class Calls(Protocol):
    """The calls that one micro-batch takes."""

    @property
    def row(self) -> Tensor:
        """[S] int64, the completion that each scored token belongs to."""

    @property
    def token(self) -> Tensor:
        """[S] int64, its place in that completion."""

    def scores(self, run: Run, coefficients: Tensor | None) -> TokenScores:
        """Score the S tokens, in the order of `row` and `token`.

        Args:
            run: makes one call.
            coefficients: [S] c = d loss / d logprobs when known.
        """


class Layout(Protocol):
    """A way to lay out groups as calls of a model. Everything that it does is a function of its arguments alone.

    Attributes:
        name: what a warning calls it.
        one_call: each micro-batch is one call. Otherwise states go from call to call, where a gradient can get lost,
            and two micro-batches may differ in how many calls they take.
    """

    name: ClassVar[str]
    one_call: ClassVar[bool]

    def why_not(self, model: Any) -> str:
        """Return what forbids this layout for a transformers model before anything is tried; "" if nothing does."""

    def pays(self, groups: Sequence[Group]) -> bool:
        """Return whether these groups cost less in this layout than with a prompt for each row."""

    def cut(self, groups: Sequence[Group], budget: int) -> list[MicroBatch]:
        """Cut groups into micro-batches of at most `budget` tokens, padding included.

        Args:
            groups: the optimizer batch. Completions without tokens have nothing to score and are left out.
            budget: tokens per micro-batch; exceeded only by a single completion that does not fit with its prompt.

        Returns:
            Micro-batches; each non-empty completion is in exactly one.
        """

    def lay_out(self, microbatch: MicroBatch, device: torch.device) -> Calls:
        """Write one of the micro-batches from `cut` as tensors on a device."""

    def attention(self, model: Any) -> AbstractContextManager[None]:
        """Return what the calls of a transformers model and their backwards have to run in."""
