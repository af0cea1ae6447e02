"""Groups that are sampled and scored in the background while the policy is trained.

    rollout(t):   dispatch the steps up to t + max_staleness ──▶ pipeline     wait for the groups of step t
    updates of t:                                                 samples and scores the groups of later steps

A rollout has the problems and the noise of the step that it is dispatched for, and is dispatched in the order of the
steps. Groups are used in the order of their dispatch, never in the order of their arrival.
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gvpo import activity
from gvpo.errors import CheckpointError, EngineError
from gvpo.rewards import RewardPool
from gvpo.rollout.collect import EncodedProblem, Rollout, distinct
from gvpo.rollout.order import ShuffledOrder
from gvpo.rollout.packed import Problems, pack_rollout, unpack_rollout
from gvpo.rollout.pipeline import Dispatch, Pipeline, ScoredGroup, rollout_of, scored_groups
from gvpo.rollout.sources.base import Source
from gvpo.update.distributed import ranks


@dataclass(frozen=True)
class Bounds:
    """Limits of asynchronous sampling.

    Args:
        steps: Number of steps of the run.
        max_staleness: Maximum age in steps of the groups of a step.
        late_groups: Maximum number of unfinished groups that a step does not wait for if their age allows a later step.
    """

    steps: int
    max_staleness: int
    late_groups: int = 0

    @property
    def ahead(self) -> int:
        """Return how many steps before its own a rollout is dispatched. A group that may be late needs one more."""
        return max(0, self.max_staleness - (self.late_groups > 0))


class AsynchronousSource(Source):
    """Groups that a pipeline samples and scores in the background, of an age of at most `max_staleness` steps.

    Only the first rank runs the pipeline; the others receive its groups.

    Args:
        order: Problems in shuffled epochs; step s takes the s-th slice.
        pipeline: Threads that sample and score.
        rewards: Pool of reward workers, whose states are part of the source's.
        problems: Problems of the run, which stored groups refer to.
        bounds: Limits.
        recorded_reference: Whether the log-probs that the sampler recorded are the reference of the rows.
    """

    def __init__(
        self,
        order: ShuffledOrder[EncodedProblem],
        pipeline: Pipeline,
        rewards: RewardPool,
        problems: Problems,
        bounds: Bounds,
        *,
        recorded_reference: bool = False,
    ) -> None:
        self._order, self._pipeline, self._rewards, self._problems = order, pipeline, rewards, problems
        self._bounds, self._recorded_reference = bounds, recorded_reference
        self._open: list[_Open] = []  # dispatches with groups that were not trained on
        self._chosen: list[tuple[_Open, int]] = []  # the groups of the latest rollout
        self._latest: Rollout | None = None

    def rollout(self, step: int) -> Rollout:
        """Return the groups of this step, after later steps are dispatched.

        Raises:
            EngineError: If a group is older than `max_staleness`.
            GvpoError: If sampling or scoring has failed in the background.
        """
        if self._latest is None:
            self._latest = ranks.on_first(lambda: self._collect(step))
        return self._latest

    def _collect(self, step: int) -> Rollout:
        self._dispatch(step)
        began = time.perf_counter()
        with activity.phase("sampling"):
            self._pipeline.wait(lambda: self._may_begin(step), lambda: self._report(step))
        waited = time.perf_counter() - began
        with self._pipeline.changed:
            return self._choose(step, waited)

    def _dispatch(self, step: int) -> None:
        """Dispatch the steps up to the last one that may be sampled now, and again what a checkpoint had in flight."""
        known = max([step - 1, *(each.dispatch.step for each in self._open)])
        last = min(step + self._bounds.ahead, self._bounds.steps)
        self._open += [_Open(Dispatch(self._order.at(later), later)) for later in range(known + 1, last + 1)]
        for dispatch in [each.dispatch for each in self._open if each.dispatch.version is None]:
            dispatch.version = step - 1
            self._pipeline.start(dispatch)

    def _may_begin(self, step: int) -> bool:
        """Return whether enough groups are finished, so that none that is left would be too old in the next step."""
        late = [each for each in self._due(step) if not each.is_finished]
        last_moment = step - 1 - self._bounds.max_staleness
        waits = step == self._bounds.steps or any((each.version or 0) <= last_moment for each in late)
        return not late if waits else sum(len(each.missing()) for each in late) <= self._bounds.late_groups

    def _due(self, step: int) -> list[Dispatch]:
        """Return the dispatches of this step and of earlier ones, in order."""
        return [each.dispatch for each in self._open if each.dispatch.step <= step]

    def _report(self, step: int) -> None:
        due = self._due(step)
        finished, total = sum(len(each.finished) for each in due), sum(len(each.items) for each in due)
        activity.count(finished, total, "groups")

    def _choose(self, step: int, waited: float) -> Rollout:
        """Return the finished groups of the dispatches that are due, in order."""
        self._chosen = [
            (each, place)
            for each in self._open
            if each.dispatch.step <= step
            for place in sorted(each.dispatch.finished.keys() - each.used)
        ]
        groups = _distinct([each.dispatch.finished[place] for each, place in self._chosen])
        self._check_ages(groups, step)
        if self._recorded_reference:
            groups = [_with_recorded_reference(each) for each in groups]
        own = next(each.dispatch for each in self._open if each.dispatch.step == step)
        trace = next((each.traceback for each in self._due(step) if each.traceback), "")
        seconds = {**own.seconds, "sampler_idle": self._pipeline.idle.take(), "trainer_idle": waited}
        return dataclasses.replace(rollout_of(groups, seconds, trace), metrics=self._metrics(step))

    def _check_ages(self, groups: Sequence[ScoredGroup], step: int) -> None:
        ages = [age for each in groups for row in each.group.completions if (age := row.age(step)) is not None]
        if max(ages, default=0) > self._bounds.max_staleness:
            raise EngineError(
                f"a completion of step {step} is {max(ages)} steps old, and rollout.max_staleness is "
                f"{self._bounds.max_staleness}; the engine has not taken the latest weights"
            )

    def _metrics(self, step: int) -> dict[str, float]:
        if self._bounds.max_staleness == 0:
            return {}
        late = sum(len(each.missing()) for each in self._due(step))
        return {"groups/late": late, "groups/in_flight": sum(len(each.dispatch.missing()) for each in self._open)}

    def commit(self, step: int) -> None:
        """Drop the groups of the step."""
        for each, place in self._chosen:
            each.used.add(place)
        self._open = [each for each in self._open if len(each.used) < len(each.dispatch.items)]
        self._chosen, self._latest = [], None

    def state_dict(self) -> dict[str, Any]:
        """Return the finished groups that were not trained on, which others are in flight, and states of rewards."""
        with self._pipeline.changed:
            dispatched = [each.state() for each in self._open]
        states = self._rewards.state_dict()
        return {"dispatched": dispatched, **({"rewards": states} if states else {})}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with the finished groups; the next `rollout` dispatches the others again.

        Raises:
            CheckpointError: If the checkpoint was made with another source, or the data does not contain its problems.
        """
        if "dispatched" not in state:
            raise CheckpointError(
                "the checkpoint has no groups of an asynchronous run; resume the run with the rollout.asynchronous "
                "that it was started with"
            )
        self._open = [self._dispatched(each) for each in state["dispatched"]]
        self._rewards.load_state_dict(state.get("rewards", {}))

    def _dispatched(self, state: Mapping[str, Any]) -> "_Open":
        """Return a dispatch of the groups of a step that were not trained on."""
        items = self._order.at(state["step"])
        known = dict(zip(distinct([item.problem.id for item in items]), items, strict=True))
        found = unpack_rollout({**state["finished"], "metrics": {}}, self._problems)
        missing = next((name for name in state["names"] if name not in known), None)
        if missing is not None:
            raise CheckpointError(
                f"the training data has no prompt {missing!r} in step {state['step']}; resume the run "
                "with the data that it was started with"
            )
        names: list[str] = list(state["names"])
        finished = {names.index(each.group.id): each for each in scored_groups(found)}
        dispatch = Dispatch([known[name] for name in names], state["step"], names=names, finished=finished)
        dispatch.version = state["version"] if dispatch.is_finished else None
        return _Open(dispatch)

    def close(self) -> None:
        """End the threads."""
        self._pipeline.close()


@dataclass
class _Open:
    """A dispatch with groups that were not trained on; `used` are the positions of the others."""

    dispatch: Dispatch
    used: set[int] = field(default_factory=set)

    def state(self) -> dict[str, Any]:
        """Return the names of the groups that were not trained on, and those that are finished."""
        left = [place for place in range(len(self.dispatch.items)) if place not in self.used]
        finished = [self.dispatch.finished[place] for place in left if place in self.dispatch.finished]
        return {
            "step": self.dispatch.step,
            "version": self.dispatch.version,
            "names": [self.dispatch.names[place] for place in left],
            "finished": pack_rollout(rollout_of(finished)),
        }


def _distinct(groups: Sequence[ScoredGroup]) -> list[ScoredGroup]:
    """Return groups of several rollouts under distinct names."""
    names = distinct([each.group.id for each in groups])
    renamed = [dataclasses.replace(each.group, id=name) for each, name in zip(groups, names, strict=True)]
    return [dataclasses.replace(each, group=group) for each, group in zip(groups, renamed, strict=True)]


def _with_recorded_reference(scored: ScoredGroup) -> ScoredGroup:
    """Return a group whose reference is the policy that sampled it, by the log-probs that the sampler recorded."""
    rows = [dataclasses.replace(row, ref_logprobs=row.sampler_logprobs) for row in scored.group.completions]
    if any(row.ref_logprobs is None for row in rows):
        raise EngineError(
            "objective.reference='sampler' needs the log-probs of the engine, which has returned none; set it to "
            "'initial' or 'every:N'"
        )
    return dataclasses.replace(scored, group=dataclasses.replace(scored.group, completions=rows))
