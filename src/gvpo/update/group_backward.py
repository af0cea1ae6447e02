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
        logprobs: [C] on the CPU, float32 (float64 of a float64 model), in nats.
        entropy: [C] of the distribution each token was drawn from, in nats.
        experts: the experts that its tokens went to, if they were watched; for `Completion.experts`.
    """

    logprobs: Tensor
    entropy: Tensor
    experts: Experts | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class RowGradient(TokenLogprobs):
    """A trained completion: its scores at the weights before the update, and how hard each token is pushed.

    Args:
        coefficients: [C] d loss / d logprobs; 0 on masked tokens. A negative sum pushes the completion up.
    """

    coefficients: Tensor


@dataclass(frozen=True)
class UpdateOutput:
    """The result of `group_backward`.

    Args:
        loss: scalar, detached. Where it is not finite the gradient is of no use: skip the update.
        metrics: the objective's detached scalars.
        rows: one per completion, groups in order, then completions in order.
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

    The same groups at the same budget are laid out as `group_backward` lays them out, so at unchanged weights the two
    give the same log-probs bit by bit. Dropout is off; the model's mode is left as it is.

    Args:
        model: a causal language model; it runs on the device of its weights, under the caller's autocast.
        groups: the optimizer batch; with several ranks, this rank's own part of it, or the whole as `ranks.deal`
            deals it.
        tokens_per_microbatch: tokens per forward, padding included.
        prefix_sharing: "auto", "on" or "off": compute the prompt of a group once.
        temperature: log-probs are those of softmax(logits / temperature).
        routing: how a mixture of experts is treated. "watch" records the experts of each token; "replay"
            takes those in `Completion.experts`.

    Returns:
        One `TokenLogprobs` per completion of all ranks, groups in order, then completions in order, on every rank.

    Raises:
        ConfigError: temperature, tokens_per_microbatch or prefix_sharing is out of range.
        DataError: the batch has no completion.
        MissingInput: routing="replay" without experts.
        ModelError: prefix_sharing="on" and the model cannot share prompts, or routing and it has no known routers.
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
    """Add d loss / d parameters of the whole batch to `.grad`, exactly once, whatever the budget.

    With several ranks, each calls this with whole groups of its own; an empty list is allowed. The batch is that of all
    of them, and each gets the same output and the gradient of the whole: the sum, where DDP and FSDP2 would average.

    Args:
        model: the policy; it runs on the device of its weights, under the caller's autocast. On several ranks it is a
            plain model that is the same on each, or one wrapped by DDP or split by FSDP2 over all of them.
        groups: the optimizer batch, whole groups; with several ranks, this rank's own part of it, or the whole as
            `ranks.deal` deals it.
        objective: called as `objective(logprobs, **keywords)` with exactly the keywords that its signature names:
            for example `functools.partial(gvpo.objectives.gvpo, beta=0.1)`. It sees the whole batch at once.
        tokens_per_microbatch: tokens per forward, padding included; a limit of memory, never of the result.
        prefix_sharing: "auto", "on" or "off": compute the prompt of a group once.
        temperature: log-probs are those of softmax(logits / temperature).
        on_policy: missing reference and old log-probs, and experts, are taken from the current policy, detached.
        routing: how a mixture of experts is treated. "watch" records the experts of each token and counts how many
            in `Completion.experts` the routers would no longer choose; "replay" also takes those in their place.
        router_aux_coef: weight of the load-balancing loss over the scored tokens of the whole batch.

    Returns:
        The loss, the objective's metrics and one `RowGradient` per completion. If the loss is not finite, drop the
        gradient and skip the update. Nothing was pushed then, unless a push without a score pass met the loss in a
        later micro-batch.

    Raises:
        ConfigError: temperature, tokens_per_microbatch or prefix_sharing is out of range.
        DataError: the batch has no completion.
        MissingLogprobs: reference or old log-probs are missing, from all rows and not on-policy, or from some.
        MissingInput: the objective, or routing="replay", requires something else that the completions lack.
        ModelError: prefix_sharing="on" and the model cannot share prompts, or routing and it has no known routers.
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
