"""This run's own earlier completions of a prompt."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gvpo.rollout.collect import LIVE, EncodedProblem, Rollout
from gvpo.rollout.packed import ScoredRow, pack, unpack
from gvpo.rollout.usable import is_usable
from gvpo.types import Completion, Verdict


class History:
    """Completions that earlier policies of the run sampled, with the rewards that they received then.

    Only the newest `per_group` completions of a prompt can ever be used, so no more of them are kept.

    Args:
        per_group: Maximum number of completions per prompt.
        max_age: Maximum age in steps of a completion that is used; None for no limit.
        capacity: Maximum number of completions of all prompts together, of which the oldest are dropped; None for no
            limit.
        rewarded: Whether a completion needs a reward to be kept.
    """

    name = "history"

    def __init__(
        self, per_group: int, *, max_age: int | None = None, capacity: int | None = None, rewarded: bool = True
    ) -> None:
        self.per_group, self._max_age, self._capacity, self._rewarded = per_group, max_age, capacity, rewarded
        self._kept: dict[str, list[ScoredRow]] = {}

    def rows(self, items: Sequence[EncodedProblem], step: int) -> list[list[ScoredRow]]:
        """Return the earlier completions of each prompt, the newest first, that are young enough at `step`."""
        return [
            [
                (dataclasses.replace(row, source=self.name), verdict)
                for row, verdict in self._kept.get(item.problem.id, [])
                if self._is_young(row, step)
            ]
            for item in items
        ]

    def note(self, rollout: Rollout, step: int) -> None:
        """Keep the usable live rows of step `step`, and drop what is too old or too much after it."""
        for problem, group, verdicts in zip(rollout.problems, rollout.groups, verdicts_of(rollout), strict=True):
            judged = zip(group.completions, verdicts, strict=True)
            fresh = [each for each in judged if each[0].source == LIVE and is_usable(each[0], rewarded=self._rewarded)]
            known = sorted([*fresh, *self._kept.get(problem.id, [])], key=_newest_first)  # stable
            self._kept[problem.id] = known[: self.per_group]
        if self._max_age is not None:
            self._keep(lambda row: self._is_young(row, step + 1))
        if self._capacity is not None:
            self._drop_oldest(self._capacity)

    def _is_young(self, row: Completion, step: int) -> bool:
        age = row.age(step)
        return self._max_age is None or age is None or age <= self._max_age

    def _keep(self, condition: Callable[[Completion], bool]) -> None:
        kept = {name: [row for row in rows if condition(row[0])] for name, rows in self._kept.items()}
        self._kept = {name: rows for name, rows in kept.items() if rows}

    def _drop_oldest(self, capacity: int) -> None:
        """Keep the newest rows of all prompts; of one version, the first rows of each prompt come first."""
        rows = [
            (*_newest_first(row), place, name) for name, known in self._kept.items() for place, row in enumerate(known)
        ]
        counts = Counter(name for *_, name in sorted(rows)[:capacity])
        self._kept = {name: self._kept[name][: counts[name]] for name in self._kept if counts[name]}

    def state_dict(self) -> dict[str, Any]:
        """Return the kept rows, and the id of the problem of each of them."""
        names = [name for name, rows in self._kept.items() for _ in rows]
        return {"problems": names, "rows": pack([row for rows in self._kept.values() for row in rows])}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the rows of the checkpoint."""
        self._kept = {}
        for name, row in zip(state["problems"], unpack(state["rows"]), strict=True):
            self._kept.setdefault(name, []).append(row)


def verdicts_of(rollout: Rollout) -> Sequence[Sequence[Verdict]]:
    """Return the verdicts of a rollout; empty ones if its rows have none."""
    return rollout.verdicts or [[Verdict(None)] * len(group.completions) for group in rollout.groups]


def _newest_first(row: ScoredRow) -> tuple[int]:
    """Return a key that sorts rows of newer policies to the front."""
    return (-(row[0].version or 0),)
