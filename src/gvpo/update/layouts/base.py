"""Common parts of the layouts of a batch: pieces of groups, calls of a model, and the protocol of a layout.

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
        index: Its index in the batch: groups in order, then completions in order.
        tokens: Its C >= 1 token ids.
    """

    index: int
    tokens: Tokens


@dataclass(frozen=True)
class Piece:
    """A prompt and completions of its group, which are laid out without a gap.

    Args:
        prompt: P token ids.
        rows: Completions, at least one.
    """

    prompt: Tokens
    rows: tuple[PackedRow, ...]

    @property
    def length(self) -> int:
        """Number of laid-out tokens. The last token of each completion is only a target."""
        return len(self.prompt) + sum(len(row.tokens) - 1 for row in self.rows)


MicroBatch = tuple[Piece, ...]
"""Pieces that go through the model together."""


@dataclass(frozen=True)
class Call:
    """One call of the model: its inputs, and the positions of its S scored tokens.

    Args:
        inputs: Keywords of the model, including `input_ids` [n, L] int64.
        source: [S] int64 into the flattened [n * L]: the position whose output predicts the token.
        target: [S] int64, id of the token.
        row: [S] int64, completion of the token.
        token: [S] int64, index of the token in its completion.
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
        """Score the tokens with this one call; see `Calls`."""
        return run(self, coefficients)[0]


Run = Callable[[Call, Tensor | None], tuple[TokenScores, Any]]
"""Calls the model with the coefficients of the call's tokens, and returns their scores and the model's output."""


class Calls(Protocol):
    """The calls of the model for one micro-batch."""

    @property
    def row(self) -> Tensor:
        """[S] int64, completion of each scored token."""

    @property
    def token(self) -> Tensor:
        """[S] int64, index of each token in its completion."""

    def scores(self, run: Run, coefficients: Tensor | None) -> TokenScores:
        """Score the S tokens, in the order of `row` and `token`.

        Args:
            run: Makes one call.
            coefficients: [S] c = d loss / d logprobs, if known.
        """


class Layout(Protocol):
    """A way to lay out groups as calls of a model. Its results depend only on its arguments.

    Attributes:
        name: Name in warnings.
        one_call: Whether each micro-batch is one call. Otherwise states pass from call to call, where a gradient can be
            lost, and two micro-batches may need different numbers of calls.
    """

    name: ClassVar[str]
    one_call: ClassVar[bool]

    def why_not(self, model: Any) -> str:
        """Return what forbids this layout for a transformers model, without running it, or "" if it is allowed."""

    def pays(self, groups: Sequence[Group]) -> bool:
        """Return whether this layout costs less for these groups than a prompt for each row."""

    def cut(self, groups: Sequence[Group], budget: int) -> list[MicroBatch]:
        """Split groups into micro-batches of at most `budget` tokens, including padding.

        Args:
            groups: Optimizer batch. Completions without tokens are skipped.
            budget: Tokens per micro-batch, exceeded only by a single completion that does not fit with its prompt.

        Returns:
            Micro-batches; each non-empty completion is in exactly one.
        """

    def lay_out(self, microbatch: MicroBatch, device: torch.device) -> Calls:
        """Convert one of the micro-batches from `cut` to tensors on a device."""

    def attention(self, model: Any) -> AbstractContextManager[None]:
        """Return the context for the calls of a transformers model and their backward passes."""
