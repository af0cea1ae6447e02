"""The group-exact update: score, weigh, push.

Every objective here has the gradient  sum_{i,t} c_it * grad log pi(y_it), and c depends on the whole optimizer batch
only through detached numbers. So, however the batch is cut:

    score   log-probs of every row, without gradient              one forward a micro-batch
    weigh   the objective once, on the whole batch:  c = d loss / d logprobs
    push    backward of  sum c * logprobs                         one forward and backward a micro-batch

The score pass is left out where one micro-batch holds everything (its forward serves both), and where it cannot matter:
when c does not depend on the log-probs, as in the first, on-policy update of GVPO, GRPO and RLOO, and in `sft`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gvpo.errors import ConfigError, DataError, ObjectiveError
from gvpo.objectives import ObjectiveOutput
from gvpo.policy.fork_layout import ForkedLayout
from gvpo.policy.forward import (
    Path,
    PrefixSharing,
    arrange,
    attention_of,
    choose_path,
    compute_dtype,
    cut,
    length_limit,
    token_scores,
    unwrap,
    worth_sharing,
)
from gvpo.policy.logprobs import TokenScores
from gvpo.policy.model import no_dropout
from gvpo.policy.packing import Layout, MicroBatch
from gvpo.training.collate import Batch, collate
from gvpo.types import Group

ONE_ROW = 1
"""A budget that no two rows share."""

Objective = Callable[..., ObjectiveOutput]


@dataclass(frozen=True)
class Scored:
    """What a policy says of one completion of C tokens.

    Args:
        logprobs: [C] on the CPU, float32 (float64 of a float64 model), in nats.
        entropy: [C] of the distribution each token was drawn from, in nats.
    """

    logprobs: Tensor
    entropy: Tensor


@dataclass(frozen=True)
class Row(Scored):
    """A trained completion: its scores at the weights before the update, and how hard each token is pushed.

    Args:
        c: [C] d loss / d logprobs; 0 on masked tokens. A negative sum pushes the completion up.
    """

    c: Tensor


@dataclass(frozen=True)
class UpdateOutput:
    """What `group_backward` found.

    Args:
        loss: scalar, detached. Where it is not finite the gradient is of no use: skip the update.
        metrics: the objective's detached scalars.
        rows: one a completion, groups in order, then completions in order.
    """

    loss: Tensor
    metrics: dict[str, Tensor]
    rows: list[Row]


def score(
    model: nn.Module,
    groups: Sequence[Group],
    *,
    tokens_per_microbatch: int = 8192,
    prefix_sharing: PrefixSharing = "auto",
    temperature: float = 1.0,
) -> list[Scored]:
    """Log-probs and entropies of every completion, without gradient.

    The same groups at the same budget are laid out as `group_backward` lays them out, so at unchanged weights the two
    give the same log-probs bit by bit. Dropout is off; the model's mode is left as it is.

    Args:
        model: a causal language model; where its weights are, the work is done, and under the caller's autocast.
        groups: the optimizer batch.
        tokens_per_microbatch: tokens a forward, padding included.
        prefix_sharing: "auto", "on" or "off": compute the prompt of a group once.
        temperature: log-probs are those of softmax(logits / temperature).

    Returns:
        One `Scored` a completion, groups in order, then completions in order.

    Raises:
        ConfigError: temperature, tokens_per_microbatch or prefix_sharing is out of range.
        DataError: the batch has no completion.
        ModelError: prefix_sharing="on" and the model cannot share prompts.
    """
    with _passes(model), torch.no_grad():
        forwards = _Forwards.over(model, groups, tokens_per_microbatch, prefix_sharing, temperature)
        table = _Table.of(groups, forwards)
        with forwards.attention():
            _fill(forwards, table)
    return [Scored(logprobs, entropy) for logprobs, entropy in zip(*table.rows(), strict=True)]


def group_backward(
    model: nn.Module,
    groups: Sequence[Group],
    objective: Objective,
    *,
    tokens_per_microbatch: int = 8192,
    prefix_sharing: PrefixSharing = "auto",
    temperature: float = 1.0,
    on_policy: bool = False,
) -> UpdateOutput:
    """Add d loss / d parameters of the whole batch to `.grad`, exactly once, whatever the budget.

    Args:
        model: the policy; where its weights are, the work is done, and under the caller's autocast.
        groups: the optimizer batch, whole groups.
        objective: called as `objective(logprobs, **keywords)` with exactly the keywords that its signature names:
            `functools.partial(gvpo.objectives.gvpo, beta=0.1)`, say. It sees the whole batch at once.
        tokens_per_microbatch: tokens a forward, padding included; a limit of memory, never of the result.
        prefix_sharing: "auto", "on" or "off": compute the prompt of a group once.
        temperature: log-probs are those of softmax(logits / temperature).
        on_policy: missing reference and old log-probs are those of this very policy, detached.

    Returns:
        The loss, the objective's metrics and a `Row` a completion. A loss that is not finite says: drop the gradient
        and skip the update. Nothing was pushed then, unless a push without a score pass met it in a later micro-batch.

    Raises:
        ConfigError: temperature, tokens_per_microbatch or prefix_sharing is out of range.
        DataError: the batch has no completion.
        MissingLogprobs: reference or old log-probs are missing, from all rows and not on-policy, or from some.
        MissingInput: the objective requires something else that the completions lack.
        ModelError: prefix_sharing="on" and the model cannot share prompts.
    """
    with _passes(model), torch.enable_grad():
        forwards = _Forwards.over(model, groups, tokens_per_microbatch, prefix_sharing, temperature)
        table = _Table.of(groups, forwards)
        batch = collate(groups, objective, dtype=table.dtype, device=table.device, on_policy=on_policy)
        known = _fixed_coefficients(objective, batch)
        with forwards.attention():
            if known is not None:
                weighed = _push_first(forwards, table, objective, batch, known)
            elif len(forwards.microbatches) == 1:
                weighed = _at_once(forwards, table, objective, batch)
            else:
                weighed = _score_first(forwards, table, objective, batch)
    parts = zip(*table.rows(), table.cut(weighed.c), strict=True)
    return UpdateOutput(weighed.loss, weighed.metrics, [Row(logprobs, entropy, c) for logprobs, entropy, c in parts])


@dataclass(frozen=True)
class _Weighed:
    """An objective's value on the batch and c [B, T], its gradient by the log-probs."""

    loss: Tensor
    metrics: dict[str, Tensor]
    c: Tensor

    @property
    def finite(self) -> bool:
        return bool(self.loss.isfinite() & self.c.isfinite().all())


@dataclass(frozen=True)
class _Forwards:
    """The forwards of a batch: the same list for every pass over it."""

    model: nn.Module
    path: Path
    temperature: float
    microbatches: list[MicroBatch]

    @classmethod
    def over(
        cls, model: nn.Module, groups: Sequence[Group], budget: int, prefix_sharing: PrefixSharing, temperature: float
    ) -> "_Forwards":
        if not temperature > 0:
            raise ConfigError(f"temperature is {temperature}; log-probs need one above 0, also of greedy samples")
        if budget < 1:
            raise ConfigError(f"tokens_per_microbatch is {budget}; give at least 1, a few thousand as a rule")
        path = choose_path(model, prefix_sharing)
        limit = length_limit(unwrap(model))
        if limit is not None and _longest(groups) > limit:
            path, budget = path.unshared, ONE_ROW
        elif prefix_sharing == "auto" and not worth_sharing(groups, path):
            path = path.unshared
        return cls(model, path, temperature, cut(groups, budget, path))

    def attention(self) -> AbstractContextManager[None]:
        return attention_of(self.model, self.path)

    def layouts(self) -> Iterator[Layout | ForkedLayout]:
        return (arrange(self.model, microbatch, self.path) for microbatch in self.microbatches)

    def run(self, layout: Layout | ForkedLayout, c: Tensor | None = None) -> TokenScores:
        coefficients = None if c is None else c[layout.row, layout.token]
        return token_scores(self.model, layout, self.path, temperature=self.temperature, coefficients=coefficients)


def _longest(groups: Sequence[Group]) -> int:
    return max((len(g.prompt) + len(row.tokens) for g in groups for row in g.completions), default=0)


@dataclass(frozen=True)
class _Table:
    """Log-probs and entropies of the batch, [B, T], filled micro-batch by micro-batch."""

    logprobs: Tensor
    entropy: Tensor
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, groups: Sequence[Group], forwards: _Forwards) -> "_Table":
        lengths = tuple(len(row.tokens) for group in groups for row in group.completions)
        if not lengths:
            raise DataError("the batch has no completion; give at least one group with one")
        weight = unwrap(forwards.model).get_input_embeddings().weight
        dtype = torch.promote_types(compute_dtype(weight), torch.float32)
        empty = torch.zeros(len(lengths), max(1, *lengths), dtype=dtype, device=weight.device)
        return cls(empty, empty.clone(), lengths)

    @property
    def dtype(self) -> torch.dtype:
        return self.logprobs.dtype

    @property
    def device(self) -> torch.device:
        return self.logprobs.device

    def fill(self, layout: Layout | ForkedLayout, scores: TokenScores) -> None:
        self.logprobs[layout.row, layout.token] = scores.logprobs.detach()
        self.entropy[layout.row, layout.token] = scores.entropy.detach()

    def cut(self, values: Tensor) -> list[Tensor]:
        """The rows of a [B, T] on the CPU, without padding."""
        return [row[:length].clone() for row, length in zip(values.cpu(), self.lengths, strict=True)]

    def rows(self) -> tuple[list[Tensor], list[Tensor]]:
        return self.cut(self.logprobs), self.cut(self.entropy)


@contextmanager
def _passes(model: nn.Module) -> Iterator[None]:
    """What holds during the passes of an update: dropout off, and no weight cast by autocast before or kept after.

    Inside the caller's autocast context torch would otherwise reuse casts of weights that a step has since changed.
    """
    torch.clear_autocast_cache()
    try:
        with no_dropout(unwrap(model)):
            yield
    finally:
        torch.clear_autocast_cache()


@torch.no_grad()
def _fill(forwards: _Forwards, table: _Table) -> None:
    """The score pass. Older torch would serve the push from weights that autocast cast here, without gradient."""
    for layout in forwards.layouts():
        table.fill(layout, forwards.run(layout))
    torch.clear_autocast_cache()


def _weigh(objective: Objective, batch: Batch, logprobs: Tensor) -> _Weighed:
    """Run the objective on the whole batch, with `logprobs` [B, T] as a leaf.

    c is 0 on masked tokens whatever the objective says of them, and everywhere if the loss ignores the log-probs.
    """
    leaf = logprobs.detach().clone().requires_grad_()
    own = {name: leaf.detach() for name in batch.own}
    with torch.autocast(leaf.device.type, enabled=False):
        output = objective(leaf, **batch.inputs, **own)
        if not isinstance(output, ObjectiveOutput):
            raise ObjectiveError(
                f"the objective returned a {type(output).__name__}; return ObjectiveOutput(loss, metrics)"
            )
        c = torch.zeros_like(leaf)
        if output.loss.requires_grad:
            (found,) = torch.autograd.grad(output.loss, leaf, allow_unused=True)
            c = c if found is None else found.masked_fill(batch.mask == 0, 0.0)
    return _Weighed(output.loss.detach(), output.metrics, c)


def _fixed_coefficients(objective: Objective, batch: Batch) -> Tensor | None:
    """c, if it does not depend on the log-probs: if two quite different random ones give it bit by bit alike."""
    generator = torch.Generator().manual_seed(0)
    near, far = (-scale * torch.rand(batch.mask.shape, generator=generator).to(batch.mask) for scale in (0.1, 10.0))
    first, second = _weigh(objective, batch, near).c, _weigh(objective, batch, far).c
    return first if torch.equal(first, second) and bool(first.isfinite().all()) else None


def _score_first(forwards: _Forwards, table: _Table, objective: Objective, batch: Batch) -> _Weighed:
    """Score, weigh, push."""
    _fill(forwards, table)
    weighed = _weigh(objective, batch, table.logprobs)
    if weighed.finite:
        _push(forwards, weighed.c)
    return weighed


def _at_once(forwards: _Forwards, table: _Table, objective: Objective, batch: Batch) -> _Weighed:
    """One micro-batch holds everything: weigh between its forward and its backward."""
    (layout,) = forwards.layouts()
    scores = forwards.run(layout)
    table.fill(layout, scores)
    weighed = _weigh(objective, batch, table.logprobs)
    if weighed.finite:
        with torch.autocast(table.device.type, enabled=False):
            torch.autograd.backward(scores.logprobs, weighed.c[layout.row, layout.token])
    return weighed


def _push_first(forwards: _Forwards, table: _Table, objective: Objective, batch: Batch, known: Tensor) -> _Weighed:
    """Push with the known c, and evaluate the loss on the log-probs that the push gave.

    c is then compared with what the objective says there; were the guess wrong, the difference would be pushed too.
    """
    finite = _push(forwards, known, table)
    if not finite:
        _fill(forwards, table)
    weighed = _weigh(objective, batch, table.logprobs)
    if not finite:
        return _Weighed(torch.full_like(weighed.loss, torch.nan), weighed.metrics, weighed.c)
    if weighed.finite and not _same(weighed.c, known):
        _push(forwards, weighed.c - known)
    return weighed


def _same(one: Tensor, other: Tensor) -> bool:
    """Equal but for the rounding of a few operations."""
    rounding = 64 * torch.finfo(one.dtype).eps
    return torch.allclose(one, other, rtol=rounding, atol=rounding * float(other.abs().max()))


def _push(forwards: _Forwards, c: Tensor, table: _Table | None = None) -> bool:
    """Backward of sum(c * logprobs), micro-batch by micro-batch; stops where that sum is not finite, and says so."""
    for layout in forwards.layouts():
        scores = forwards.run(layout, c)
        if table is not None:
            table.fill(layout, scores)
        if scores.weighted is None or not scores.weighted.isfinite():
            return False
        with torch.autocast(c.device.type, enabled=False):
            torch.autograd.backward(scores.weighted)
    return True
