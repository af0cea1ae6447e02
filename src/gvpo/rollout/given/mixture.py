"""Groups of given and live rows: history, logged, expert, then the rows that the policy samples for what is missing.

logged, expert ──┐
policy ──────────┴──▶ rewards ──┬──▶ group
history, with its rewards ──────┘
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gvpo.rewards import RewardPool
from gvpo.rollout.collect import EncodedProblem, Rollout
from gvpo.rollout.collect_shared import collect_shared
from gvpo.rollout.given.history import History, verdicts_of
from gvpo.rollout.packed import ScoredRow
from gvpo.sampling import Request, Sampler, SamplingParams, shares_model
from gvpo.types import Completion, Group, Verdict


class WrittenRows(Protocol):
    """A source of rows without rewards (logged, expert)."""

    name: str
    per_group: int

    def rows(self, items: Sequence[EncodedProblem], names: Sequence[str], step: int) -> list[list[Completion]]:
        """Return at most `per_group` rows of each prompt, the same on every rank.

        Args:
            items: Prompts.
            names: Distinct names of their groups.
            step: Number of the rollout.
        """
        ...


@dataclass(frozen=True)
class Mixture:
    """Sources of the given rows of each group; it samples the rest of a group and scores what has no reward.

    Args:
        history: The run's own earlier rows, if groups contain some.
        written: Sources of rows that are scored together with the live rows.
        rewarded: Whether rows get verdicts.
    """

    history: History | None
    written: Sequence[WrittenRows]
    rewarded: bool = True

    def collect(
        self,
        items: Sequence[EncodedProblem],
        sampler: Sampler,
        params: SamplingParams,
        rewards: RewardPool,
        *,
        seed: int,
        step: int,
        names: Sequence[str],
    ) -> Rollout:
        """Collect groups of `params.group_size` rows; see `gvpo.rollout.collect.collect`."""
        old = self.history.rows(items, step) if self.history is not None else [[] for _ in items]
        began = time.perf_counter()
        found = [source.rows(items, names, step) for source in self.written]
        seconds = time.perf_counter() - began
        new = [[row for rows in found for row in rows[place]] for place in range(len(items))]
        live = [params.group_size - len(a) - len(b) for a, b in zip(old, new, strict=True)]
        asked = [place for place in range(len(items)) if new[place] or live[place]]
        rollout = collect_shared(
            [items[place] for place in asked],
            _Filling(sampler, dict(zip(names, zip(new, live, strict=True), strict=True))),
            params,
            rewards,
            seed=seed,
            step=step,
            names=[names[place] for place in asked],
        )
        judged = dict(zip(asked, zip(rollout.groups, verdicts_of(rollout), strict=True), strict=True))
        groups = [_group(item, names[place], old[place], judged.get(place)) for place, item in enumerate(items)]
        return dataclasses.replace(
            rollout,
            seconds={**rollout.seconds, "sampling": rollout.seconds.get("sampling", 0.0) + seconds},
            groups=[group for group, _ in groups],
            verdicts=[verdicts for _, verdicts in groups] if self.rewarded else [],
            problems=[item.problem for item in items],
            metrics=self._missing(old, found),
        )

    def note(self, rollout: Rollout, step: int) -> None:
        """Keep the live rows of a finished step as history."""
        if self.history is not None:
            self.history.note(rollout, step)

    def state_dict(self) -> dict[str, Any]:
        """Return the history; the rows of other sources are not kept."""
        return {} if self.history is None else {"history": self.history.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the history of the checkpoint, if it has one."""
        if self.history is not None and "history" in state:
            self.history.load_state_dict(state["history"])

    def _missing(
        self, old: Sequence[Sequence[ScoredRow]], found: Sequence[Sequence[Sequence[Completion]]]
    ) -> dict[str, float]:
        """Return the number of rows of each source that were sampled live instead."""
        sources: list[tuple[History | WrittenRows, Sequence[Sequence[object]]]] = list(
            zip(self.written, found, strict=True)
        )
        if self.history is not None:
            sources.insert(0, (self.history, old))
        return {
            f"rows/{source.name}_missing": source.per_group * len(rows) - sum(map(len, rows))
            for source, rows in sources
        }


def _group(
    item: EncodedProblem, name: str, old: Sequence[ScoredRow], judged: tuple[Group, Sequence[Verdict]] | None
) -> tuple[Group, list[Verdict]]:
    """Return a group that begins with its history, and its verdicts."""
    rows, verdicts = (judged[0].completions, judged[1]) if judged is not None else ([], [])
    completions = [*(row for row, _ in old), *rows]
    group = Group(item.prompt, completions, id=name, columns=item.problem.columns)
    return group, [*(verdict for _, verdict in old), *verdicts]


class _Filling:
    """A sampler of groups that begin with given rows.

    Args:
        sampler: Sampler of the live rows.
        wanted: Given rows and number of live rows, by the id of a request.
    """

    def __init__(self, sampler: Sampler, wanted: Mapping[str, tuple[Sequence[Completion], int]]) -> None:
        self._sampler, self._wanted = sampler, wanted
        self.shares_model = shares_model(sampler)

    def sample(
        self, requests: Sequence[Request], params: SamplingParams, *, seed: int, step: int
    ) -> list[list[Completion]]:
        """Return the given rows of each request, and its live rows, whose noise is that of the rows 0, 1, ..."""
        live: dict[str, list[Completion]] = {}
        for count in sorted({self._wanted[request.id][1] for request in requests} - {0}):
            same = [request for request in requests if self._wanted[request.id][1] == count]
            sampled = self._sampler.sample(same, dataclasses.replace(params, group_size=count), seed=seed, step=step)
            live |= {request.id: rows for request, rows in zip(same, sampled, strict=True)}
        return [[*self._wanted[request.id][0], *live.get(request.id, [])] for request in requests]
