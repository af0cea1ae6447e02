"""The parts of an update's passes: the forward passes of a batch, and the table that they fill.

    groups of this rank ──cut──▶ micro-batches ──lay out──▶ run ──▶ rows of the table [B, T] ──combine──▶ rows of all

With several ranks, all ranks run the same number of forward passes, because these may communicate (DDP, FSDP2). A rank
with fewer micro-batches computes `IDLE` at the end, which fills a separate row that is never read.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gvpo import activity
from gvpo.errors import ConfigError, DataError, ModelError
from gvpo.model.known_tokens import missing_tokens, refuse_missing
from gvpo.model.matmul import fast_linears
from gvpo.model.model import no_dropout
from gvpo.model.runtime import compute_dtype
from gvpo.types import Completion, Group
from gvpo.update.choose_path import PrefixSharing, choose_path, length_limit
from gvpo.update.distributed import fsdp, ranks
from gvpo.update.distributed.ranks import RankBatch
from gvpo.update.experts.routing import Experts, Routing
from gvpo.update.forward import Path, embedding_weight, token_scores, unwrap
from gvpo.update.head import TokenScores
from gvpo.update.layouts.base import Calls, MicroBatch
from gvpo.update.layouts.packed import ROWS

ONE_ROW = 1
"""Budget with which no two rows share a micro-batch."""

IDLE = Group([0], [Completion([0])])
"""Group that a rank computes, without effect, while another rank has one more micro-batch."""


@dataclass(frozen=True)
class PlacedCalls:
    """The calls of a micro-batch, and the positions of its S tokens in the batch.

    Args:
        calls: Calls for this rank's own rows, by their own numbers.
        row: [S] int64, row in the batch.
        token: [S] int64, position in that row.
        idle: Whether their scores are unused.
    """

    calls: Calls
    row: Tensor
    token: Tensor
    idle: bool = False


@dataclass(frozen=True)
class Forwards:
    """This rank's forward passes of a batch, the same list for every pass over it.

    Args:
        model: Policy.
        path: Path of micro-batches through the model.
        temperature: Divisor of the logits.
        microbatches: Micro-batches of this rank's own groups.
        rows: Row of the batch, of B, for each row of the own groups.
        count: Number of forward passes, the same on every rank. Those after the micro-batches are idle; their row is B.
        idle_row: B.
        routing: Records or forces the experts of a mixture; None does neither.
    """

    model: nn.Module
    path: Path
    temperature: float
    microbatches: list[MicroBatch]
    rows: Tensor
    count: int
    idle_row: int
    routing: Routing | None = None

    @classmethod
    def over(
        cls,
        model: nn.Module,
        batch: RankBatch,
        budget: int,
        prefix_sharing: PrefixSharing,
        temperature: float,
        routing: Routing | None = None,
    ) -> "Forwards":
        """Plan the passes over a batch. Every rank must call this.

        Raises:
            ConfigError: If a setting is out of range.
            ModelError: If prompts must be shared but cannot be.
            DataError: If a completion has a token that the policy's tokenizer does not have.
        """
        if not temperature > 0:
            raise ConfigError(f"temperature is {temperature}; log-probs need one above 0, also of greedy samples")
        if budget < 1:
            raise ConfigError(f"tokens_per_microbatch is {budget}; use at least 1, typically a few thousand")
        refuse_missing(missing_tokens(unwrap(model)), batch.own)
        path = _agreed(choose_path(model, prefix_sharing))
        if not path.layout.one_call and ranks.count() > 1 and fsdp.communicates(model):
            path = _unforked(path, prefix_sharing)
        limit = length_limit(unwrap(model))
        longest = max((len(g.prompt) + len(row.tokens) for g in batch.groups for row in g.completions), default=0)
        if limit is not None and longest > limit:
            path, budget = path.unshared, ONE_ROW
        elif prefix_sharing == "auto" and not path.layout.pays(batch.groups):
            path = path.unshared
        microbatches = path.layout.cut(batch.own, budget)
        rows = torch.tensor(batch.own_rows, dtype=torch.int64, device=embedding_weight(model).device)
        total = sum(len(group.completions) for group in batch.groups)
        return cls(model, path, temperature, microbatches, rows, ranks.largest(len(microbatches)), total, routing)

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Set up the layout's attention and the recording of routers. Run backward passes in this context too."""
        routers = nullcontext() if self.routing is None else self.routing.installed()
        model = unwrap(self.model)
        linears = fast_linears(model, head=model.get_output_embeddings())
        with self.path.layout.attention(model), linears, routers:
            yield

    def placed(self) -> Iterator[PlacedCalls]:
        """Lay out the micro-batches of a pass, one forward pass each."""
        if self.routing is not None:
            self.routing.start_pass()
        layout, device = self.path.layout, embedding_weight(self.model).device
        for number, microbatch in enumerate(self.microbatches):
            activity.count(number, self.count if self.count > 1 else 0, "passes")
            calls = layout.lay_out(microbatch, device)
            yield PlacedCalls(calls, self.rows[calls.row], calls.token)
        for _ in range(self.count - len(self.microbatches)):
            (nothing,) = layout.cut([IDLE], ONE_ROW)
            calls = layout.lay_out(nothing, device)
            yield PlacedCalls(calls, torch.full_like(calls.row, self.idle_row), calls.token, idle=True)

    def run(self, placed: PlacedCalls, coefficients: Tensor | None = None) -> TokenScores:
        """Run one forward pass. With coefficients [B, T] of the whole batch, call `backward` on its `weighted`."""
        scores = token_scores(
            self.model,
            placed.calls,
            self.path,
            temperature=self.temperature,
            coefficients=None if coefficients is None else self.pushed(placed, coefficients),
            routing=None if placed.idle else self.routing,
        )
        term = self.router_term(placed)
        if scores.weighted is None or term is None:
            return scores
        return replace(scores, weighted=scores.weighted + term)

    def router_term(self, placed: PlacedCalls) -> Tensor | None:
        """Return the router loss's part of the push for the calls that were run last, or None if it has none."""
        term = None if placed.idle or self.routing is None else self.routing.term()
        return None if term is None else term * fsdp.gradient_scale(self.model)

    def experts(self) -> list[Experts | None]:
        """Return the recorded experts of each row of the batch, or None for rows of other ranks."""
        found: list[Experts | None] = [None] * self.idle_row
        if self.routing is not None:
            for row, experts in zip(self.rows.tolist(), self.routing.experts(), strict=True):
                found[row] = experts
        return found

    def pushed(self, placed: PlacedCalls, coefficients: Tensor) -> Tensor:
        """Return [S] the coefficients of the calls' log-probs for the backward pass, from [B, T]; 0 if idle."""
        return F.pad(coefficients, (0, 0, 0, 1))[placed.row, placed.token] * fsdp.gradient_scale(self.model)

    @property
    def in_step(self) -> bool:
        """True if ranks communicate in each forward pass. Then no rank may skip one, or raise an error early."""
        return fsdp.communicates(self.model)

    def together(self) -> AbstractContextManager[None]:
        """Return a context that raises an error of any rank on all ranks at its end."""
        return nullcontext() if self.in_step else ranks.together()


def _agreed(path: Path) -> Path:
    """Keep the parts of a path that are correct on every rank, because the checks may depend on the machine."""
    shared, fused = ranks.every(path.layout != ROWS), ranks.every(path.fused)
    return replace(path if shared else path.unshared, fused=fused)


def _unforked(path: Path, prefix_sharing: PrefixSharing) -> Path:
    """Drop a layout of several calls. If ranks communicate in each call, all must make the same number.

    Raises:
        ModelError: If prompts must be shared.
    """
    if prefix_sharing == "on":
        raise ModelError("prefix_sharing='on' cannot fork prompts of a model that is sharded over ranks; use 'auto'")
    return path.unshared


@dataclass(frozen=True)
class Table:
    """Log-probs and entropies of the batch, filled micro-batch by micro-batch.

    Args:
        values: [2, B + 1, T], log-probs before entropies; the last row is for idle forward passes.
        lengths: Number of tokens of each of the B rows.
    """

    values: Tensor
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, groups: Sequence[Group], forwards: Forwards) -> "Table":
        """Return an empty table for the rows of all ranks.

        Raises:
            DataError: If there are no rows.
        """
        lengths = tuple(len(row.tokens) for group in groups for row in group.completions)
        if not lengths:
            raise DataError("the batch has no completion; give at least one group with one")
        weight = embedding_weight(forwards.model)
        dtype = torch.promote_types(compute_dtype(weight), torch.float32)
        size = (2, len(lengths) + 1, max(1, *lengths))
        return cls(torch.zeros(size, dtype=dtype, device=weight.device), lengths)

    @property
    def logprobs(self) -> Tensor:
        """[B, T] log-probs."""
        return self.values[0, :-1]

    @property
    def dtype(self) -> torch.dtype:
        """float32, or float64 for a float64 model."""
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.values.device

    def fill(self, placed: PlacedCalls, scores: TokenScores) -> None:
        """Write the scores of a micro-batch."""
        self.values[0, placed.row, placed.token] = scores.logprobs.detach()
        self.values[1, placed.row, placed.token] = scores.entropy.detach()

    def combine(self) -> None:
        """Add the rows that other ranks have filled, which are 0 here."""
        ranks.sum_(self.values)

    def cut(self, values: Tensor) -> list[Tensor]:
        """Return the rows of values [B, T] on the CPU, without padding."""
        return [row[:length].clone() for row, length in zip(values.cpu(), self.lengths, strict=True)]

    def rows(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return log-probs and entropies of each row."""
        return self.cut(self.logprobs), self.cut(self.values[1, :-1])


@contextmanager
def passes(model: nn.Module) -> Iterator[None]:
    """Disable dropout during the passes of an update, and clear autocast's cache of weights before and after them.

    Within the caller's autocast context torch would otherwise reuse casts of weights that a step has changed since.
    """
    torch.clear_autocast_cache()
    try:
        with no_dropout(unwrap(model)):
            yield
    finally:
        fsdp.reshard(model)
        torch.clear_autocast_cache()
