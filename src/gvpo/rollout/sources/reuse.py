"""Groups that several steps train on: a buffer of groups, and fresh ones for the rest of each step.

    step t:   kept groups with uses left (oldest version first, then the fewest uses) ──┐
              policy after step t - 1 ──samples──▶ fresh groups ────────────────────────┴──▶ groups of the step

On average, `per_step / reuse` groups of a step are fresh; in the first step, all are. Of equal groups, the one that was
sampled first is used first.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gvpo.errors import CheckpointError
from gvpo.rollout.collect import Rollout, distinct
from gvpo.rollout.dynamic.dead import DeadGroups
from gvpo.rollout.packed import Problems, pack_rollout, unpack_rollout
from gvpo.rollout.sources.base import Source
from gvpo.rollout.sources.live import LiveSource
from gvpo.types import Group, Problem, Verdict


@dataclass(frozen=True)
class Kept:
    """A group that a step trains on, and that later steps may train on.

    Args:
        group: The group as it was sampled.
        verdicts: Results of the rewards for its rows.
        problem: Its problem.
        version: Number of completed training steps of the policy that sampled it.
        uses: Number of steps that have trained on it.
    """

    group: Group
    verdicts: Sequence[Verdict]
    problem: Problem
    version: int
    uses: int

    @property
    def rows(self) -> int:
        """Return the number of completions."""
        return len(self.group.completions)

    def used(self) -> "Kept":
        """Return the group after one more use."""
        return dataclasses.replace(self, uses=self.uses + 1)


def fresh_groups(step: int, per_step: int, reuse: int) -> int:
    """Return the number of groups that a step samples if enough others have uses left."""
    return per_step if step == 1 else step * per_step // reuse - (step - 1) * per_step // reuse


def most_groups(steps: int, per_step: int, reuse: int, *, evicts: bool) -> int:
    """Return how many groups some steps sample, or at most sample if kept groups may be evicted."""
    return steps * per_step if evicts else sum(fresh_groups(step, per_step, reuse) for step in range(1, steps + 1))


def steps_for(groups: int, per_step: int, reuse: int) -> int:
    """Return the number of steps after which at least `groups` groups were sampled, if none is evicted."""
    after_the_first = groups - per_step + per_step // reuse if reuse > 1 else groups
    return max(1, -(-after_the_first * reuse // per_step))


class ReuseSource(Source):
    """Groups that `reuse` different steps train on.

    Args:
        live: Source of fresh groups.
        per_step: Number of groups per step.
        reuse: Number of steps that train on a group.
        problems: Problems of the run, which stored groups refer to.
        max_age: Maximum age in steps of a kept group; None without a limit.
        capacity: Maximum number of completions that are kept for later steps; None without a limit.
        dead: Definition of the groups that no step trains on, which are not kept; None if there are none.
    """

    def __init__(
        self,
        live: LiveSource,
        per_step: int,
        reuse: int,
        problems: Problems,
        *,
        max_age: int | None = None,
        capacity: int | None = None,
        dead: DeadGroups | None = None,
    ) -> None:
        self._live, self._per_step, self._reuse, self._problems = live, per_step, reuse, problems
        self._max_age, self._capacity, self._dead = max_age, capacity, dead
        self._kept: list[Kept] = []
        self._next: list[Kept] = []  # what is kept after the latest rollout

    def rollout(self, step: int) -> Rollout:
        """Return fresh groups and kept ones. Kept groups have the verdicts of the step that sampled them."""
        alive = [kept for kept in self._kept if not self._is_too_old(kept, step)]
        wanted = self._per_step - fresh_groups(step, self._per_step, self._reuse)
        chosen = sorted(alive, key=lambda kept: (kept.version, kept.uses))[:wanted]
        sampled = self._live.rollout(step, self._per_step - len(chosen))
        used = [kept.used() if any(kept is one for one in chosen) else kept for kept in alive]
        left = [kept for kept in (*used, *self._first_use(sampled, step)) if kept.uses < self._reuse]
        self._next = self._within_capacity(left)
        evicted = len(self._kept) - len(alive) + len(left) - len(self._next)
        return _with_kept(sampled, chosen, evicted, sum(kept.rows for kept in self._next))

    def _first_use(self, sampled: Rollout, step: int) -> list[Kept]:
        """Return the groups of a step's rollout after their first use, without dead ones."""
        verdicts = sampled.verdicts or [[]] * len(sampled.groups)
        parts = zip(sampled.groups, verdicts, sampled.problems, strict=True)
        dead = set() if self._dead is None else self._dead.of(sampled)
        found = [Kept(group, judged, problem, version=step - 1, uses=1) for group, judged, problem in parts]
        return [kept for place, kept in enumerate(found) if place not in dead]

    def _is_too_old(self, kept: Kept, step: int) -> bool:
        """Return whether a completion is too old; history is older than the policy that sampled the rest."""
        ages = [step - 1 - kept.version, *(row.age(step) or 0 for row in kept.group.completions)]
        return self._max_age is not None and max(ages) > self._max_age

    def _within_capacity(self, groups: Sequence[Kept]) -> list[Kept]:
        """Return the newest groups whose completions fit, in the order in which they were sampled."""
        newest_first = sorted(groups, key=lambda kept: -kept.version)
        rows, found = 0, list[Kept]()
        for kept in newest_first:
            rows += kept.rows
            if self._capacity is not None and rows > self._capacity:
                break
            found.append(kept)
        return sorted(found, key=lambda kept: kept.version)

    def commit(self, step: int) -> None:
        """Count the uses of the step's groups, and drop those without uses left."""
        self._kept = self._next
        self._live.commit(step)

    def state_dict(self) -> dict[str, Any]:
        """Return the kept groups with their uses and versions, and the state of the live source."""
        rollout = Rollout(
            [kept.group for kept in self._kept],
            [kept.verdicts for kept in self._kept if kept.verdicts],  # there are none without rewards
            [kept.problem for kept in self._kept],
        )
        facts = {name: [getattr(kept, name) for kept in self._kept] for name in ("version", "uses")}
        return {**self._live.state_dict(), "kept": {**facts, "groups": pack_rollout(rollout)}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with the kept groups.

        Raises:
            CheckpointError: If the checkpoint was made without reuse, or the data does not contain their problems.
        """
        if "kept" not in state:
            raise CheckpointError(
                "the checkpoint has no kept groups; resume the run with the rollout.reuse that it was started with"
            )
        kept = state["kept"]
        found = unpack_rollout(kept["groups"], self._problems)
        verdicts = found.verdicts or [[]] * len(found.groups)
        parts = zip(found.groups, verdicts, found.problems, kept["version"], kept["uses"], strict=True)
        self._kept = [Kept(*each) for each in parts]
        self._live.load_state_dict({key: value for key, value in state.items() if key != "kept"})

    def close(self) -> None:
        """Close the live source."""
        self._live.close()


def _with_kept(sampled: Rollout, chosen: Sequence[Kept], evicted: int, rows: int) -> Rollout:
    """Return a rollout with kept groups after the fresh ones, under distinct names."""
    groups = [*sampled.groups, *(kept.group for kept in chosen)]
    names = distinct([group.id for group in groups])
    counts = {"groups/fresh": len(sampled.groups), "groups/kept": len(chosen), "groups/evicted": evicted}
    return dataclasses.replace(
        sampled,
        groups=[dataclasses.replace(group, id=name) for group, name in zip(groups, names, strict=True)],
        verdicts=[*sampled.verdicts, *(kept.verdicts for kept in chosen if kept.verdicts)],
        problems=[*sampled.problems, *(kept.problem for kept in chosen)],
        metrics={**sampled.metrics, **counts, "rows/stored": rows},
        fresh=len(sampled.groups),
    )
