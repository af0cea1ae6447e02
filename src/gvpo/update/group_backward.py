"""The group-exact update: score, weigh, push.

Every objective here has the gradient  sum_{i,t} c_it * grad log pi(y_it), and c depends on the whole optimizer batch
only through detached numbers. So, however the batch is cut:

    score   log-probs of every row, without gradient              one forward per micro-batch
    weigh   the objective once, on the whole batch:  c = d loss / d logprobs
    push    backward of  sum c * logprobs                         one forward and backward per micro-batch

The score pass is left out where one micro-batch contains everything (its forward serves both), and where it cannot
matter: when c does not depend on the log-probs, as in the first, on-policy update of GVPO, GRPO and RLOO, and in `sft`.

With several ranks (`gvpo.update.distributed.ranks`) the batch is that of all of them: each scores and pushes its own
groups, the log-probs are combined in between, and every rank runs the objective on the whole batch, which knows nothing
of ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from gvpo.types import Group
from gvpo.update.choose_path import PrefixSharing
from gvpo.update.coefficients import Objective, ObjectiveGradient, fixed_coefficients, same, weigh
from gvpo.update.collate import Batch, collate
from gvpo.update.distributed import fsdp, ranks
from gvpo.update.distributed.ranks import RankBatch
from gvpo.update.experts.aux_loss import RouterLoss, routing_of
from gvpo.update.experts.routing import Experts, RoutingMode
from gvpo.update.passes import Forwards, Table, passes


@dataclass(frozen=True)
class TokenLogprobs:
    """A policy's scores of one completion of C tokens.

    Args:
        logprobs: [C] on the CPU, float32 (float64 for a float64 model), in nats.
        entropy: [C] entropy of the distribution of each token, in nats.
        experts: Experts that processed its tokens, if they were recorded; for `Completion.experts`.
    """

    logprobs: Tensor
    entropy: Tensor
    experts: Experts | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class RowGradient(TokenLogprobs):
    """A trained completion: its scores at the weights before the update, and the gradient of each token's log-prob.

    Args:
        coefficients: [C] d loss / d logprobs; 0 on masked tokens. A negative sum makes the completion more likely.
    """

    coefficients: Tensor


@dataclass(frozen=True)
class UpdateOutput:
    """The result of `group_backward`.

    Args:
        loss: Scalar, detached. If it is not finite, the gradient is useless: skip the update.
        metrics: Detached scalars of the objective.
        rows: One per completion, groups in order, then completions in order.
    """

    loss: Tensor
    metrics: dict[str, Tensor]
    rows: list[RowGradient]


def score(
    model: nn.Module,
    groups: Sequence[Group] | RankBatch,
    *,
    tokens_per_microbatch: int = 8192,
    prefix_sharing: PrefixSharing = "auto",
    temperature: float = 1.0,
    routing: RoutingMode = "free",
) -> list[TokenLogprobs]:
    """Return log-probs and entropies of every completion, without gradient.

    The same groups at the same budget are laid out as in `group_backward`, so at unchanged weights the two return the
    same log-probs bit by bit. Dropout is off; the model's mode is left unchanged.

    Args:
        model: Causal language model. It runs on the device of its weights, under the caller's autocast.
        groups: Optimizer batch; with several ranks, only this rank's part, or the whole batch from `ranks.deal`.
        tokens_per_microbatch: Maximum number of tokens per forward pass, including padding.
        prefix_sharing: "auto", "on" or "off": whether to compute the prompt of a group once.
        temperature: Log-probs are computed from softmax(logits / temperature).
        routing: Treatment of a mixture of experts. "watch" records the experts of each token; "replay" uses the experts
            in `Completion.experts`.

    Returns:
        One `TokenLogprobs` per completion of all ranks, groups in order, then completions in order, on every rank.

    Raises:
        ConfigError: If temperature, tokens_per_microbatch or prefix_sharing is out of range.
        DataError: If the batch has no completion.
        MissingInput: If routing="replay" and completions have no experts.
        ModelError: If prefix_sharing="on" and the model cannot share prompts, or if routing needs routers that the
            model does not have.
    """
    batch = ranks.gathered(groups)
    watched = routing_of(model, batch, routing)
    with passes(model), torch.no_grad():
        forwards = Forwards.over(model, batch, tokens_per_microbatch, prefix_sharing, temperature, watched)
        table = Table.of(batch.groups, forwards)
        with forwards.prepared():
            _fill(forwards, table)
    rows = zip(*table.rows(), forwards.experts(), strict=True)
    return [TokenLogprobs(logprobs, entropy, experts=experts) for logprobs, entropy, experts in rows]


def group_backward(
    model: nn.Module,
    groups: Sequence[Group] | RankBatch,
    objective: Objective,
    *,
    tokens_per_microbatch: int = 8192,
    prefix_sharing: PrefixSharing = "auto",
    temperature: float = 1.0,
    on_policy: bool = False,
    routing: RoutingMode = "free",
    router_aux_coef: float = 0.0,
) -> UpdateOutput:
    """Add d loss / d parameters of the whole batch to `.grad`, exactly once, regardless of the budget.

    With several ranks, each rank passes its own whole groups; an empty list is allowed. The batch consists of the
    groups of all ranks, and each rank gets the same output and the gradient of the whole batch: the sum, where DDP and
    FSDP2 would average.

    Args:
        model: Policy. It runs on the device of its weights, under the caller's autocast. With several ranks it is a
            plain model that is the same on each, or a model wrapped by DDP or sharded by FSDP2 over all of them.
        groups: Optimizer batch, whole groups; with several ranks, only this rank's part, or the whole batch from
            `ranks.deal`.
        objective: Called as `objective(logprobs, **keywords)` with exactly the keywords of its signature, for example
            `functools.partial(gvpo.objectives.gvpo, beta=0.1)`. It receives the whole batch in one call.
        tokens_per_microbatch: Maximum number of tokens per forward pass, including padding. This bounds memory; it does
            not change the result.
        prefix_sharing: "auto", "on" or "off": whether to compute the prompt of a group once.
        temperature: Log-probs are computed from softmax(logits / temperature).
        on_policy: Whether missing reference and old log-probs, and experts, are taken from the current policy,
            detached.
        routing: Treatment of a mixture of experts. "watch" records the experts of each token and counts how many of the
            experts in `Completion.experts` the routers would no longer choose; "replay" also uses the latter instead.
        router_aux_coef: Weight of the load-balancing loss over the scored tokens of the whole batch.

    Returns:
        The loss, the objective's metrics and one `RowGradient` per completion. If the loss is not finite, drop the
        gradient and skip the update. No gradient was added then, unless a push without a score pass reached the problem
        only in a later micro-batch.

    Raises:
        ConfigError: If temperature, tokens_per_microbatch or prefix_sharing is out of range.
        DataError: If the batch has no completion.
        MissingLogprobs: If reference or old log-probs are missing from all rows off-policy, or from some rows.
        MissingInput: If the completions lack another input that the objective, or routing="replay", requires.
        ModelError: If prefix_sharing="on" and the model cannot share prompts, or if routing needs routers that the
            model does not have.
    """
    dealt = ranks.gathered(groups)
    watched = routing_of(model, dealt, routing, router_aux_coef, on_policy=on_policy)
    router = RouterLoss(watched, router_aux_coef)
    with passes(model), torch.enable_grad(), fsdp.summed_gradients(model):
        forwards = Forwards.over(model, dealt, tokens_per_microbatch, prefix_sharing, temperature, watched)
        table = Table.of(dealt.groups, forwards)
        batch = collate(dealt.groups, objective, dtype=table.dtype, device=table.device, on_policy=on_policy)
        known = None if router.pushes else fixed_coefficients(objective, batch)
        with forwards.prepared():
            if known is not None:
                weighed = _push_first(forwards, table, objective, batch, known)
            elif forwards.count == 1:
                weighed = _at_once(forwards, table, objective, batch, router)
            else:
                weighed = _score_first(forwards, table, objective, batch, router)
    weighed = router.added_to(weighed)
    parts = zip(*table.rows(), table.cut(weighed.coefficients), forwards.experts(), strict=True)
    rows = [RowGradient(logprobs, entropy, pushed, experts=experts) for logprobs, entropy, pushed, experts in parts]
    return UpdateOutput(weighed.loss, weighed.metrics, rows)


@torch.no_grad()
def _fill(forwards: Forwards, table: Table) -> None:
    """Run the score pass. Older torch would reuse weights that autocast cast here, without gradient, in the push."""
    with forwards.together():
        for placed in forwards.placed():
            table.fill(placed, forwards.run(placed))
    table.combine()
    torch.clear_autocast_cache()


def _score_first(
    forwards: Forwards, table: Table, objective: Objective, batch: Batch, router: RouterLoss
) -> ObjectiveGradient:
    """Score, weigh, push."""
    _fill(forwards, table)
    router.settle()
    weighed = weigh(objective, batch, table.logprobs)
    if ranks.every(weighed.finite):
        _push(forwards, weighed.coefficients)
    return weighed


def _at_once(
    forwards: Forwards, table: Table, objective: Objective, batch: Batch, router: RouterLoss
) -> ObjectiveGradient:
    """Weigh between the forward and the backward of the one micro-batch that contains everything (on each rank)."""
    (placed,) = forwards.placed()
    with forwards.together():
        scores = forwards.run(placed)
        table.fill(placed, scores)
    table.combine()
    router.settle()
    weighed = weigh(objective, batch, table.logprobs)
    if ranks.every(weighed.finite):
        with forwards.together(), torch.autocast(table.device.type, enabled=False):
            term = forwards.router_term(placed)
            roots, gradients = [scores.logprobs], [forwards.pushed(placed, weighed.coefficients)]
            if term is not None:
                roots, gradients = [*roots, term], [*gradients, torch.ones_like(term)]
            torch.autograd.backward(roots, gradients)
    return weighed


def _push_first(
    forwards: Forwards, table: Table, objective: Objective, batch: Batch, known: Tensor
) -> ObjectiveGradient:
    """Push with the known c, and evaluate the loss on the log-probs that the push gave.

    Then compare c with the objective's there, and push the difference if the guess was wrong.
    """
    finite = _push(forwards, known, table)
    if finite:
        table.combine()
    else:
        _fill(forwards, table)
    weighed = weigh(objective, batch, table.logprobs)
    if not finite:
        return ObjectiveGradient(torch.full_like(weighed.loss, torch.nan), weighed.metrics, weighed.coefficients)
    if ranks.every(weighed.finite) and not ranks.every(same(weighed.coefficients, known)):
        _push(forwards, weighed.coefficients - known)
    return weighed


def _push(forwards: Forwards, coefficients: Tensor, table: Table | None = None) -> bool:
    """Run the backward of sum(c * logprobs) by micro-batches, and return whether that sum was finite on all ranks.

    It stops where the sum is not finite, unless the ranks meet in each pass.
    """
    finite = True
    with forwards.together():
        for placed in forwards.placed():
            scores = forwards.run(placed, coefficients)
            if table is not None:
                table.fill(placed, scores)
            assert scores.weighted is not None
            finite = finite and bool(scores.weighted.isfinite())
            if not (finite or forwards.in_step):
                break
            with torch.autocast(coefficients.device.type, enabled=False):
                torch.autograd.backward(scores.weighted)
    return ranks.every(finite)
