"""A policy that learns from groups: reference and old log-probs attached, the group-exact update, the optimizer.

learn(groups):  cut into optimizer batches ──▶ attach log-probs ──▶ per batch: group_backward ──▶ AdamW
"""

import dataclasses
import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from gvpo.config import TrainConfig
from gvpo.errors import TrainingError
from gvpo.objectives import kl_in_reward
from gvpo.policy.reference import Reference
from gvpo.training import optim
from gvpo.training.objective import BoundObjective, updates_per_step
from gvpo.training.sources import TrainingGroup
from gvpo.training.update import Scored, UpdateOutput, group_backward, score

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MAX_NON_FINITE = 5


@dataclass(frozen=True)
class Update:
    """One optimizer update.

    Args:
        groups: what it trained on, with the log-probs that were attached.
        output: the loss, the objective's metrics and each row's log-probs, entropies and coefficients.
        grad_norm: before clipping.
        rate: the learning rate.
        applied: False where loss or gradient was not finite and the update was skipped.
    """

    groups: Sequence[TrainingGroup]
    output: UpdateOutput
    grad_norm: float
    rate: float
    applied: bool


@dataclass(frozen=True)
class Learned:
    """All updates of a rollout, and the seconds they took."""

    updates: Sequence[Update]
    scoring: float
    updating: float


class Learner:
    """The policy, its optimizer and its reference.

    Args:
        model: float32 weights; trained in place.
        objective: what to minimise.
        config: of the optimizer, the reference and the update.
    """

    def __init__(self, model: "PreTrainedModel", objective: BoundObjective, config: TrainConfig) -> None:
        self.model, self.objective, self.config = model, objective, config
        self.optimizer = optim.make_optimizer(model, config)
        self.non_finite = 0
        stored = objective.needs_reference and config.reference != "previous"
        self.reference = Reference(model) if stored else None

    def learn(self, groups: Sequence[TrainingGroup], step: int) -> Learned:
        """Run every update of step `step` (from 1) on its usable groups; none of them still refreshes the reference.

        Raises:
            TrainingError: too many updates in a row were not finite.
        """
        started = time.perf_counter()
        self._refresh_reference(step)
        batches = self._prepare(groups)
        scored_at = time.perf_counter()
        updates: list[Update] = []
        for turn in range(self.config.passes):
            for index, batch in enumerate(batches):
                update = self._update(batch, step, number=len(updates), on_policy=turn == index == 0)
                if turn == index == 0 and self._needs_old_pass() and self.config.passes * len(batches) > 1:
                    batches[0] = self._attach_old(batch, _scored(update.output))
                    update = dataclasses.replace(update, groups=batches[0])
                updates.append(update)
        return Learned(updates, scored_at - started, time.perf_counter() - scored_at)

    def autocast(self) -> AbstractContextManager[Any]:
        """Mixed precision as `model.compute_dtype` says; weights stay as they are."""
        device = next(self.model.parameters()).device.type
        wanted = self.config.compute_dtype
        if wanted == "bfloat16" or (wanted == "auto" and device == "cuda"):
            return torch.autocast(device, dtype=torch.bfloat16)
        return nullcontext()

    def _refresh_reference(self, step: int) -> None:
        kind, _, every = self.config.reference.partition(":")
        if self.reference is not None and kind == "every" and step > 1 and (step - 1) % int(every) == 0:
            self.reference.refresh(self.model)

    def _prepare(self, groups: Sequence[TrainingGroup]) -> list[list[TrainingGroup]]:
        """Cut into optimizer batches and attach what each needs before the weights move.

        The first batch meets the very policy that sampled it, so its old log-probs (and, with reference "previous", its
        reference ones) are those of its own update: no pass is needed for it.
        """
        size = self.config.groups_per_update or max(1, len(groups))
        batches = [list(groups[i : i + size]) for i in range(0, len(groups), size)]
        if self.reference is not None:
            batches = [_attach(batch, "ref_logprobs", self._score(self.reference.model, batch)) for batch in batches]
        first = 0 if self.config.kl_in_reward > 0 else 1
        if self._needs_old_pass():
            batches[first:] = [self._attach_old(b, self._score(self.model, b)) for b in batches[first:]]
        if self.config.kl_in_reward > 0:
            batches = [_with_kl_in_reward(batch, self.config.kl_in_reward) for batch in batches]
        return batches

    def _needs_old_pass(self) -> bool:
        return self.objective.needs_old or self._refers_to_previous or self.config.kl_in_reward > 0

    @property
    def _refers_to_previous(self) -> bool:
        """The reference is the policy as it was when the step began: its old log-probs serve."""
        return self.objective.needs_reference and self.reference is None

    def _attach_old(self, batch: Sequence[TrainingGroup], scored: Sequence[Scored]) -> list[TrainingGroup]:
        """Old log-probs, which are the reference's too where the objective has one and it is the previous policy."""
        attached = _attach(batch, "old_logprobs", scored)
        return _attach(attached, "ref_logprobs", scored) if self._refers_to_previous else attached

    def _score(self, model: "PreTrainedModel", batch: Sequence[TrainingGroup]) -> list[Scored]:
        with self.autocast():
            return score(
                model,
                [entry.group for entry in batch],
                tokens_per_microbatch=self.config.tokens_per_microbatch,
                prefix_sharing=self.config.prefix_sharing,
                temperature=self.config.temperature,
            )

    def _update(self, batch: Sequence[TrainingGroup], step: int, *, number: int, on_policy: bool) -> Update:
        with self.autocast():
            output = group_backward(
                self.model,
                [entry.group for entry in batch],
                self.objective.function,
                tokens_per_microbatch=self.config.tokens_per_microbatch,
                prefix_sharing=self.config.prefix_sharing,
                temperature=self.config.temperature,
                on_policy=on_policy,
            )
        per_step = updates_per_step(self.config)
        rate = optim.learning_rate(self.config, (step - 1) * per_step + number, self.config.steps * per_step)
        norm = math.nan
        if math.isfinite(float(output.loss)):
            norm = optim.step(
                self.optimizer, self.model.parameters(), rate=rate, max_grad_norm=self.config.max_grad_norm
            )
        else:  # micro-batches before the one that was not finite have left gradients
            self.optimizer.zero_grad(set_to_none=True)
        applied = math.isfinite(norm)
        self._count_non_finite(applied)
        return Update(batch, output, norm, rate, applied)

    def _count_non_finite(self, applied: bool) -> None:
        self.non_finite = 0 if applied else self.non_finite + 1
        if self.non_finite >= MAX_NON_FINITE:
            raise TrainingError(
                f"loss or gradient was not finite in {MAX_NON_FINITE} updates in a row; lower train.learning_rate, "
                "or look at the rewards and log-ratios of the last rollout file"
            )


def _attach(batch: Sequence[TrainingGroup], name: str, scored: Sequence[Scored]) -> list[TrainingGroup]:
    """The batch with each completion's `name` set from the scores, in order."""
    remaining = iter(scored)
    return [
        _with_completions(entry, [{name: next(remaining).logprobs} for _ in entry.group.completions]) for entry in batch
    ]


def _with_completions(entry: TrainingGroup, changes: Sequence[dict[str, Any]]) -> TrainingGroup:
    rows = [dataclasses.replace(row, **change) for row, change in zip(entry.group.completions, changes, strict=True)]
    return dataclasses.replace(entry, group=dataclasses.replace(entry.group, completions=rows))


def _scored(output: UpdateOutput) -> list[Scored]:
    """An update's own log-probs as scores: what the policy gave just before it moved."""
    return [Scored(row.logprobs, row.entropy) for row in output.rows]


def _with_kl_in_reward(batch: Sequence[TrainingGroup], beta: float) -> list[TrainingGroup]:
    """Rewards less beta times the log-ratio of old policy and reference."""
    return [
        _with_completions(entry, [{"reward": _penalised(row, beta)} for row in entry.group.completions])
        for entry in batch
    ]


def _penalised(row: Any, beta: float) -> float:
    old, ref = torch.as_tensor(row.old_logprobs), torch.as_tensor(row.ref_logprobs)
    mask = torch.ones_like(old) if row.mask is None else torch.as_tensor(row.mask)
    reward = torch.tensor([row.reward], dtype=old.dtype)
    return kl_in_reward(reward, logprobs=old[None], ref_logprobs=ref[None], mask=mask[None], beta=beta).item()
