"""The exact GVPO gradient through TRL's own forward passes: score, weigh, push.

This engine works wherever TRL works, because each backward pass goes through accelerate. It costs one more forward pass
per completion than gvpo's update, and shares no prompts.

    score   l of each row, without gradient             one forward per micro-batch; none if c does not depend on it
    weigh   the objective once, on the rows of all ranks, of which only sums are needed
    push    backward of  sum c * logprobs               one forward and backward per micro-batch
"""

import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gvpo.integrations.trl.rows import GROUP, REWARD, Served, usable
from gvpo.model.model import no_dropout
from gvpo.objectives import ObjectiveOutput
from gvpo.update.coefficients import Objective
from gvpo.update.distributed import ranks


@dataclass(frozen=True)
class RowSums:
    """The rows of a micro-batch as sums over their tokens, in float64 on the CPU.

    Args:
        turn: See `Served`.
        group: [b] number of the group in its generation.
        rewards: [b].
        usable: [b] bool.
        policy: [b] sums of log-probs, nats.
        reference: [b] sums of the reference's log-probs; None where it is the policy itself.
    """

    turn: int
    group: Tensor
    rewards: Tensor
    usable: Tensor
    policy: Tensor
    reference: Tensor | None


def backward(trainer: Any, model: nn.Module, parts: Sequence[Served], objective: Objective) -> ObjectiveOutput | None:
    """Add the gradient of the objective over the rows of all ranks to `.grad`. Return None if no group is usable.

    Args:
        trainer: The trainer.
        model: The model as the trainer wraps it.
        parts: This rank's micro-batches, the same number on each rank.
        objective: A GVPO objective, of rows with one log-prob each.
    """
    with no_dropout(model):
        fixed = all(reference_of(part.batch) is None for part in parts)
        scored = [_sums(trainer, part, None if fixed else _score(trainer, model, part)) for part in parts]
        weighed = weigh(scored, objective)
        coefficients = [torch.zeros_like(each.policy) for each in scored] if weighed is None else weighed[1]
        pushed = [
            _push(trainer, model, part, row, number == len(parts) - 1, len(parts))
            for number, (part, row) in enumerate(zip(parts, coefficients, strict=True))
        ]
    found = weigh([_sums(trainer, *each) for each in zip(parts, pushed, strict=True)], objective) if fixed else weighed
    return None if found is None else found[0]


def loss_of(trainer: Any, model: nn.Module, batch: dict[str, Any], objective: Objective) -> Tensor:
    """Return the objective's loss on the rows of all ranks, without gradient; 0 if no group is usable."""
    part = Served(0, batch)
    with no_dropout(model), torch.no_grad():
        found = weigh([_sums(trainer, part, _score(trainer, model, part))], objective)
    return torch.zeros((), device=trainer.accelerator.device) if found is None else found[0].loss


def weigh(own: Sequence[RowSums], objective: Objective) -> tuple[ObjectiveOutput, list[Tensor]] | None:
    """Return the objective on the usable rows of all ranks, and c of each of the own rows, [b] per micro-batch.

    Return None if there are no two usable rows of one group on any rank.
    """
    gathered = ranks.gather(list(own))
    every = [sums for rank in gathered for sums in rank]
    first = sum(map(len, gathered[: ranks.rank()]))
    ids, compared = _compared(every)
    if not compared.any():
        return None
    leaf = torch.cat([sums.policy for sums in every])[compared].requires_grad_()
    own_reference = every[0].reference is None
    reference = leaf.detach() if own_reference else torch.cat([_reference(sums) for sums in every])[compared]
    rewards = torch.cat([sums.rewards for sums in every])[compared]
    column, ones = leaf[:, None], torch.ones(len(leaf), 1, dtype=leaf.dtype)
    output = objective(column, ref_logprobs=reference[:, None], rewards=rewards, group=ids[compared], mask=ones)
    coefficients = torch.zeros(len(compared), dtype=leaf.dtype)
    coefficients[compared] = torch.autograd.grad(output.loss, leaf)[0]
    cut = list(torch.split(coefficients, [len(sums.policy) for sums in every]))
    return ObjectiveOutput(output.loss.detach(), output.metrics), cut[first : first + len(own)]


def _reference(sums: RowSums) -> Tensor:
    return sums.policy if sums.reference is None else sums.reference


def _compared(every: Sequence[RowSums]) -> tuple[Tensor, Tensor]:
    """Return [B] an id of each row's group, and [B] bool, True for usable rows of groups with at least two of them."""
    pairs = torch.cat([torch.stack([torch.full_like(sums.group, sums.turn), sums.group], dim=1) for sums in every])
    _, ids = torch.unique(pairs, dim=0, return_inverse=True)
    good = torch.cat([sums.usable for sums in every])
    return ids, good & (torch.bincount(ids[good], minlength=int(ids.max()) + 1)[ids] > 1)


def _sums(trainer: Any, part: Served, logprobs: Tensor | None) -> RowSums:
    """Return the sums of a micro-batch. Without log-probs they are 0, where c does not depend on them."""
    mask, reference = loss_mask(part.batch).double(), reference_of(part.batch)
    policy = torch.zeros(len(mask), dtype=torch.float64) if logprobs is None else _row_sums(logprobs, mask)
    good = usable(part.batch, mask_truncated=trainer.mask_truncated_completions).cpu()
    return RowSums(
        turn=part.turn,
        group=part.batch[GROUP].cpu(),
        rewards=part.batch[REWARD].double().cpu(),
        usable=good,
        policy=policy,
        reference=None if reference is None else _row_sums(reference, mask),
    )


def _row_sums(values: Tensor, mask: Tensor) -> Tensor:
    return (values.detach().double() * mask).sum(1).cpu()


def loss_mask(batch: Any) -> Tensor:
    """Return [b, C], 1 on tokens that the policy wrote."""
    mask: Tensor = batch["completion_mask"]
    return mask * batch["tool_mask"] if "tool_mask" in batch else mask


def reference_of(batch: Any) -> Tensor | None:
    """Return [b, C] the reference's log-probs, or None where the reference is the policy itself.

    With `reference="initial"` TRL scores the reference's model. Otherwise the reference is the policy that generated,
    whose log-probs TRL computes where the weights may have changed since.
    """
    found: Tensor | None = batch.get("ref_per_token_logps", batch.get("old_per_token_logps"))
    return found


@torch.no_grad()
def _score(trainer: Any, model: nn.Module, part: Served) -> Tensor:
    return _forward(trainer, model, part)[0]


def _push(trainer: Any, model: nn.Module, part: Served, row: Tensor, last: bool, parts: int) -> Tensor:
    """Run the backward pass of a micro-batch, and return its log-probs [b, C]. Gradients meet in the last one."""
    with _unsynchronized(trainer, model, last):
        logprobs, router_loss = _forward(trainer, model, part, router_loss=trainer.aux_loss_enabled)
        weights = row.to(logprobs)[:, None] * loss_mask(part.batch)
        loss = (weights * logprobs).sum() * trainer.accelerator.num_processes  # DDP and its kind average over ranks
        if router_loss is not None:
            loss = loss + trainer.router_aux_loss_coef * router_loss / parts
        named = {"scale_wrt_gas": False} if trainer.is_deepspeed_enabled else {}
        trainer.accelerator.backward(loss, **named)
    return logprobs.detach()


def _unsynchronized(trainer: Any, model: nn.Module, last: bool) -> AbstractContextManager[Any]:
    """Return the context in which ranks exchange gradients only in the last backward pass of an optimizer step."""
    trainer.accelerator.gradient_state._set_sync_gradients(last)
    if last or trainer.is_deepspeed_enabled:
        return nullcontext()
    context: AbstractContextManager[Any] = trainer.accelerator.no_sync(model=model)
    return context


def _forward(
    trainer: Any, model: nn.Module, part: Served, *, router_loss: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Return log-probs [b, C] from TRL's forward pass, and the router loss of a mixture of experts."""
    batch = part.batch
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    score = trainer._get_per_token_logps_and_entropies
    images = {name: batch[name] for name in inspect.signature(score).parameters if name in batch}
    named = {"compute_aux_loss": True} if router_loss else {}
    logprobs, _, router = score(model, ids, attention, batch["completion_ids"].shape[1], **images, **named)
    return logprobs, router
