"""A policy that learns from groups: the optimizer updates of a run's steps.

learn(groups):  split into batches ──▶ plan ──▶ prepare: attach log-probs ──▶ per batch: push a gradient, apply it

`gvpo.training.step.plan` decides which passes a step makes; no pass repeats the work of another one.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from gvpo import activity
from gvpo.config import TrainConfig, updates_per_step
from gvpo.config.settings import OWN_REFERENCES
from gvpo.errors import TrainingError
from gvpo.model.reference import Reference, make_reference
from gvpo.rollout.usable import TrainingGroup
from gvpo.system_errors import is_out_of_memory
from gvpo.training import optimizer
from gvpo.training.budget import Budget, MeasuredBudget, find_budget, probe_objective
from gvpo.training.constraints import Constraints
from gvpo.training.objective import BoundObjective
from gvpo.training.step.attach import attach, attach_extra, detach, own_scores, penalise, recorded
from gvpo.training.step.plan import StepPlan, plan_step
from gvpo.training.step.teacher import LOGPROBS
from gvpo.types import Group
from gvpo.update.choose_path import choose_path, known_paths
from gvpo.update.coefficients import Objective
from gvpo.update.distributed import fsdp, ranks
from gvpo.update.experts.routing import RoutingMode
from gvpo.update.group_backward import TokenLogprobs, UpdateOutput, group_backward, score
from gvpo.update.passes import passes
from gvpo.update.precision import autocast, is_half

if TYPE_CHECKING:
    from transformers import PreTrainedModel

T = TypeVar("T")

MAX_NON_FINITE = 5


@dataclass(frozen=True)
class Update:
    """One optimizer update.

    Args:
        groups: Groups that it trained on, with the attached log-probs.
        output: The loss, the objective's metrics and each row's log-probs, entropies and coefficients.
        grad_norm: Gradient norm before clipping.
        rate: Learning rate.
        applied: False if loss or gradient was not finite and the update was skipped.
        step: Number of the step that it belongs to, from 1.
        number: Index of the update within the step, from 0.
    """

    groups: Sequence[TrainingGroup]
    output: UpdateOutput
    grad_norm: float
    rate: float
    applied: bool
    step: int
    number: int


@dataclass(frozen=True)
class StepResult:
    """All updates of a rollout, their duration in seconds, and the token budget after them.

    The budget is None if "auto" has not been resolved by a group yet.
    """

    updates: Sequence[Update]
    scoring: float
    updating: float
    budget: int | None = None


class Learner:
    """The policy, its optimizer and its reference.

    Args:
        model: Model with float32 weights; trained in place.
        objective: Objective to minimise.
        config: Settings of the optimizer, the reference and the update.
        reference_given: Whether the groups contain the reference's log-probs, so that no reference is stored.
        teacher: Frozen model whose log-probs the objective reads, if it reads a teacher's.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        objective: BoundObjective,
        config: TrainConfig,
        *,
        reference_given: bool = False,
        teacher: "PreTrainedModel | None" = None,
    ) -> None:
        self.model, self.objective, self.config, self.teacher = model, objective, config, teacher
        self.budget = Budget(config.tokens_per_microbatch)
        self.non_finite = 0
        self.constraints = Constraints.of(config)
        self._makes_reference = objective.needs_reference and not reference_given
        self._old_given = objective.needs_old and config.rollout_old_logprobs == "sampler"
        stored = self._makes_reference and config.reference not in OWN_REFERENCES
        known_paths(model)  # the reference shares it
        self.reference = make_reference(model) if stored else None
        if config.sharding == "full":
            self._shard()
        self.optimizer = optimizer.make_optimizer(model, config)

    def learn(self, groups: Sequence[TrainingGroup], step: int) -> StepResult:
        """Run every update of step `step` (from 1) on its usable groups; without groups, only refresh the reference.

        If memory runs out, halve the token budget and repeat the update. Until the weights have changed, every log-prob
        of the step is computed again as well, so that at unchanged weights all ratios to the start policy are 1.

        Raises:
            DataError: If rollout.old_logprobs is "sampler" and a completion has no recorded log-probs.
            TrainingError: If too many updates in a row were not finite, or memory runs out with one completion per
                forward.
        """
        started = time.perf_counter()
        groups = recorded(groups) if self._old_given else groups
        size = self.config.groups_per_update or max(1, len(groups))
        batches = [list(groups[i : i + size]) for i in range(0, len(groups), size)]
        plan = self._plan(groups, step, self.config.passes * len(batches))
        if plan.refresh and self.reference is not None:
            self.reference.refresh(self.model)
        if not groups:
            return StepResult([], time.perf_counter() - started, 0.0, self.budget.tokens)
        self.budget.resolve(lambda: self._find_budget(groups))
        batches, output, scored_at = self._attempt(functools.partial(self._start, batches, plan), groups)
        updates = [self._apply(batches[0], output, step, number=0)]
        if plan.late:
            batches[0] = attach(batches[0], plan.start_logprobs, own_scores(output), experts=True)
            updates = [dataclasses.replace(updates[0], groups=batches[0])]
        for number in range(1, self.config.passes * len(batches)):
            batch = batches[number % len(batches)]
            output = self._attempt(functools.partial(self._push, batch, on_policy=False), batch)
            updates.append(self._apply(batch, output, step, number=number))
        return StepResult(updates, scored_at - started, time.perf_counter() - scored_at, self.budget.tokens)

    def score(self, groups: Sequence[Group]) -> list[TokenLogprobs]:
        """Return log-probs of groups under the current policy, computed within the token budget.

        Raises:
            TrainingError: If memory runs out with one completion per forward.
        """
        batch = [
            TrainingGroup(group, index, tuple(range(len(group.completions)))) for index, group in enumerate(groups)
        ]
        self.budget.resolve(lambda: self._find_budget(batch))
        return self._attempt(functools.partial(self._score, self.model, batch), batch)

    def compare_paths(self) -> None:
        """Compare the fast paths of the update with the plain one now, so that the first step does not do it.

        A split model leaves it to the first step. If memory runs out, that step repeats it.

        Raises:
            ModelError: If train.prefix_sharing is "on" and the model cannot share prompts.
        """
        if fsdp.is_sharded(self.model):
            return
        try:
            with passes(self.model):
                choose_path(self.model, self.config.prefix_sharing)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of mixed precision according to `model.compute_dtype`; weights stay unchanged."""
        return autocast(self.config)

    def _shard(self) -> None:
        """Split policy, stored reference and teacher over the ranks, then build the optimizer from the parts."""
        half = is_half(self.config)
        fsdp.shard(self.model, half=half)
        if isinstance(self.reference, Reference):
            fsdp.shard(self.reference.model, half=half)
        if self.teacher is not None:
            fsdp.shard(self.teacher, half=half)

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Enter the context for sampling: mixed precision, and the whole policy on every rank."""
        with self.autocast(), fsdp.unsharded(self.model):
            yield

    def _attempt(self, work: Callable[[int], T], groups: Sequence[TrainingGroup]) -> T:
        """Run `work` within the token budget, which shrinks if memory runs out.

        It does not shrink if the ranks communicate in each forward, because a rank that fails has lost the others.
        """
        if fsdp.is_sharded(self.model) and self.budget.tokens is not None:
            return work(self.budget.tokens)
        forget = functools.partial(self.optimizer.zero_grad, set_to_none=True)
        return self.budget.attempt(work, _plain(groups), forget)

    def _find_budget(self, groups: Sequence[TrainingGroup]) -> MeasuredBudget:
        """Try micro-batches of growing size as an update makes them, and clear their gradients.

        Each rank tries its own, and all use the smallest budget of all ranks.
        """
        trainable = sum(p.numel() * p.element_size() for p in self.model.parameters() if p.requires_grad)
        moments = 0 if self.optimizer.state else 2 * trainable  # AdamW creates them in its first step
        device = next(self.model.parameters()).device
        probe = functools.partial(self._backward, objective=probe_objective)
        try:
            with ranks.together(), ranks.alone():
                found = find_budget(probe, _plain(groups), device, owed=moments)
        finally:
            self.optimizer.zero_grad(set_to_none=True)
        return min(ranks.gather(found), key=lambda each: each.tokens)

    def _plan(self, groups: Sequence[TrainingGroup], step: int, updates: int) -> StepPlan:
        """Return the passes of a step. Rows that carry the log-probs of the policy that sampled them need none."""
        carried = self.config.reference == "sampler" and _carry_reference(groups)
        return plan_step(
            reads_old=self.objective.needs_old,
            reads_reference=self._makes_reference and not carried,
            reference=self.config.reference,
            step=step,
            updates=updates,
            watches_experts=self.config.routing != "free",
            penalised=self.config.kl_in_reward > 0,
            old_given=self._old_given,
        )

    def _start(
        self, batches: Sequence[list[TrainingGroup]], plan: StepPlan, budget: int
    ) -> tuple[list[list[TrainingGroup]], UpdateOutput, float]:
        """Compute everything that precedes the first weight change: all log-probs, and the first batch's gradient.

        Returns:
            The batches with log-probs, the output of the first one, and the time at which the log-probs were ready.
        """
        prepared = self._prepare(list(batches), plan, budget)
        scored_at = time.perf_counter()
        return prepared, self._push(prepared[0], budget, on_policy=True), scored_at

    def _prepare(self, batches: list[list[TrainingGroup]], plan: StepPlan, budget: int) -> list[list[TrainingGroup]]:
        """Attach the log-probs that each batch needs before the weights change."""
        if plan.reference_pass and self.reference is not None:
            with self.reference.scoring() as reference:
                batches = [attach(batch, ("ref_logprobs",), self._score(reference, batch, budget)) for batch in batches]
        if self.teacher is not None:
            batches = [attach_extra(batch, LOGPROBS, self._score(self.teacher, batch, budget)) for batch in batches]
        if plan.start_pass != "none":
            first = 0 if plan.start_pass == "all" else 1
            watch: RoutingMode = "free" if self.config.routing == "free" else "watch"
            scores = [self._score(self.model, batch, budget, watch) for batch in batches[first:]]
            batches[first:] = [
                attach(batch, plan.start_logprobs, found, experts=True)
                for batch, found in zip(batches[first:], scores, strict=True)
            ]
        if self.config.kl_in_reward > 0:
            batches = [penalise(batch, self.config.kl_in_reward) for batch in batches]
            batches[0] = detach(batches[0], plan.start_logprobs)
        return batches

    def _score(
        self, model: "PreTrainedModel", batch: Sequence[TrainingGroup], budget: int, routing: RoutingMode = "free"
    ) -> list[TokenLogprobs]:
        with activity.phase("scoring"), self.autocast():
            return score(
                model,
                ranks.deal(_plain(batch)),
                tokens_per_microbatch=budget,
                prefix_sharing=self.config.prefix_sharing,
                temperature=self.config.temperature,
                routing=routing,
            )

    def _push(self, batch: Sequence[TrainingGroup], budget: int, *, on_policy: bool) -> UpdateOutput:
        """Compute the gradient of a batch into `.grad`."""
        function = self.objective.function
        objective = function if self.constraints is None else self.constraints.bound(function)
        routers = {"routing": self.config.routing, "router_aux_coef": self.config.router_aux_coef}
        return self._backward(_plain(batch), budget, objective=objective, on_policy=on_policy, **routers)

    def _backward(
        self, groups: Sequence[Group], budget: int, *, objective: Objective, on_policy: bool = False, **routers: Any
    ) -> UpdateOutput:
        with activity.phase("updating"), self.autocast():
            return group_backward(
                self.model,
                ranks.deal(groups),
                objective,
                tokens_per_microbatch=budget,
                prefix_sharing=self.config.prefix_sharing,
                temperature=self.config.temperature,
                on_policy=on_policy,
                **routers,
            )

    def _apply(self, batch: Sequence[TrainingGroup], output: UpdateOutput, step: int, *, number: int) -> Update:
        """Take the optimizer's step on the pushed gradient. It must never be repeated, so it is not attempted."""
        per_step = updates_per_step(self.config)
        rate = optimizer.learning_rate(self.config, (step - 1) * per_step + number, self.config.steps * per_step)
        norm = math.nan
        if math.isfinite(float(output.loss)):
            norm = optimizer.step(
                self.optimizer, self.model.parameters(), rate=rate, max_grad_norm=self.config.max_grad_norm
            )
        else:  # micro-batches before the non-finite one have left gradients
            self.optimizer.zero_grad(set_to_none=True)
        applied = math.isfinite(norm)
        self._count_non_finite(applied)
        return Update(batch, output, norm, rate, applied, step, number)

    def _count_non_finite(self, applied: bool) -> None:
        self.non_finite = 0 if applied else self.non_finite + 1
        if self.non_finite >= MAX_NON_FINITE:
            raise TrainingError(
                f"loss or gradient was not finite in {MAX_NON_FINITE} updates in a row; lower train.learning_rate, "
                "or look at the rewards and log-ratios of the last rollout file"
            )


def _carry_reference(batch: Sequence[TrainingGroup]) -> bool:
    return all(row.ref_logprobs is not None for entry in batch for row in entry.group.completions)


def _plain(batch: Sequence[TrainingGroup]) -> list[Group]:
    return [entry.group for entry in batch]
