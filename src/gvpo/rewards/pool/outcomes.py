"""Results of the functions for each row of a scoring, and their combination into verdicts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gvpo.types import Verdict
from gvpo.workers.replies import Reply

PAID_WORST = "paid worst"
"""Kind of the reasons of rows that get a function's lowest reward because their completion made the function fail."""


@dataclass(frozen=True)
class Failure:
    """The reason why a row has no value of a function.

    Args:
        reason: "timeout: NAME gave no answer in 10 s", "exception: NAME raised ValueError: ...", ...
        traceback: Traceback of an exception; "" if there is none.
    """

    reason: str
    traceback: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A function's result for a row: a value (perhaps with a note), an abstention (neither), or a failure."""

    value: float | None = None
    failure: Failure | None = None
    note: str = ""


class Outcomes:
    """The outcomes of a scoring, by group, function and row.

    Args:
        names: Names of the functions.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._table: dict[tuple[int, int, int], Outcome] = {}

    def has(self, group: int, function: int) -> bool:
        """Return whether the first row of a group has an outcome of a function."""
        return (group, function, 0) in self._table

    def note(self, function: int, rows: Sequence[tuple[int, int]], reply: Reply) -> None:
        """Record the values, or the one failure, of some (group, row)."""
        nothing = [None] * len(rows)
        values, reasons = (
            (reply.values, reply.reasons) if reply.failed is None else (nothing, [reply.failed] * len(rows))
        )
        for (group, row), value, reason in zip(rows, values, reasons, strict=True):
            failure = None if reason is None else self._failure(function, reason, reply.traceback)
            self._table[group, function, row] = Outcome(value, failure)

    def note_paid(self, function: int, row: tuple[int, int], value: float, cause: tuple[str, str]) -> None:
        """Record the value that a (group, row) gets for a failure that its completion caused."""
        note = f"{PAID_WORST}: {self._failure(function, cause, '').reason}"
        self._table[(row[0], function, row[1])] = Outcome(value, note=note)

    def first_failure(self) -> Failure | None:
        """Return the first failure in the order of groups, functions and rows."""
        failed = [key for key, outcome in self._table.items() if outcome.failure is not None]
        return self._table[min(failed)].failure if failed else None

    def verdict(self, group: int, row: int, weights: Sequence[float]) -> Verdict:
        """Return the weighted sum over the functions that did not abstain, or why there is none."""
        parts: dict[str, float | None] = {}
        total, counted, reason, note = 0.0, False, "", ""
        for function, (name, weight) in enumerate(zip(self._names, weights, strict=True)):
            outcome = self._table[group, function, row]
            parts[name] = outcome.value
            note = note or outcome.note
            if weight != 0 and outcome.failure is not None:
                reason = reason or outcome.failure.reason
            elif weight != 0 and outcome.value is not None:
                total, counted = total + weight * outcome.value, True
        if not counted:
            reason = reason or "abstained: every reward function returned None"
        elif not math.isfinite(total):
            reason = reason or "infinite: the weighted sum of the rewards is too large"
        return Verdict(None, parts, reason) if reason else Verdict(total, parts, note)

    def _failure(self, function: int, reason: tuple[str, str], trace: str) -> Failure:
        kind, detail = reason
        return Failure(f"{kind}: {self._names[function]} {detail}", trace)
