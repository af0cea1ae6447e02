"""Reward functions in worker processes with deadlines: groups in, verdicts out, whatever the functions do.

batches ─▶ one call a function and group ─▶ workers ─▶ parts ─▶ weighted sums ─▶ verdicts
                 ▲                            │
                 └── a failed call's rows, each alone: only the guilty ones lose their reward
"""

import functools
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import cloudpickle

from gvpo.rewards.base import RewardBatch, RewardFunc, Wanted, check_ready
from gvpo.rewards.checks import cannot_send, check_limits, checked_weights, pickled, require_columns
from gvpo.rewards.dispatch import Call, Dispatcher, Reply
from gvpo.rewards.local import LocalReward, is_local, judge_locally
from gvpo.types import Verdict

GIVE_UP_AFTER = 8
"""A function that failed on this many rows alone and succeeded on nothing is not called again in the same scoring."""


@dataclass(frozen=True)
class Failure:
    """Why a row has no value of a function.

    Args:
        reason: "timeout: NAME gave no answer in 10 s", "exception: NAME raised ValueError: ...", ...
        traceback: of an exception; "" where there is none.
    """

    reason: str
    traceback: str = ""


@dataclass(frozen=True)
class _Outcome:
    """A function's word on a row: a value, an abstention (neither), or a failure."""

    value: float | None = None
    failure: Failure | None = None


class RewardPool:
    """Scores groups with reward functions that run in processes of their own, and survives what they do.

    Args:
        functions: reward functions (`RewardFunc`) by name. They reach the workers by cloudpickle: lambdas, closures and
            functions of the main script by value, others by the name of their module. A `LocalReward` runs here.
        weights: each function's weight; default 1. Weight 0 only logs: it never decides whether a row has a reward.
        workers: processes at most; they start when first needed and stay.
        timeout: seconds a call may take: one function on one group, or on one completion if it is `row_by_row`.
        log: file that the functions' prints are appended to; None drops them.
        memory_limit: bytes that a worker may allocate (RLIMIT_DATA, where the system has it); None for no limit.

    Not to be used by several threads at once; a pool each.

    Raises:
        RewardError: a function cannot be sent to a worker, or weights that do not fit.

    >>> with RewardPool({"short": lambda completions, **_: [float(len(text) < 5) for text in completions]}) as pool:
    ...     (group,) = pool.score([RewardBatch("Say hi.", ["hi", "good day"])])
    >>> [verdict.reward for verdict in group]
    [1.0, 0.0]
    """

    def __init__(
        self,
        functions: Mapping[str, RewardFunc],
        weights: Mapping[str, float] | None = None,
        *,
        workers: int = 2,
        timeout: float = 10.0,
        log: str | Path | None = None,
        memory_limit: int | None = 4 << 30,
    ) -> None:
        self.first_failure: Failure | None = None
        self._names = list(functions)
        self._weights = checked_weights(self._names, weights)
        self._wanted = [Wanted.by(function) for function in functions.values()]
        self._alone = frozenset(n for n, f in enumerate(functions.values()) if getattr(f, "row_by_row", False))
        check_limits(workers, timeout)
        self._ready = functools.cache(lambda: check_ready(functions.values()))
        self._local = {n: f for n, f in enumerate(functions.values()) if is_local(f)}
        sent = {name: pickled(name, function) for name, function in functions.items() if not is_local(function)}
        setup = {"functions": sent, "timeout": timeout, "memory_limit": memory_limit}
        self._dispatcher = Dispatcher(setup, workers=workers, timeout=timeout, log=None if log is None else Path(log))

    def score(self, batches: Sequence[RewardBatch]) -> list[list[Verdict]]:
        """Judge every completion of every group.

        A row's reward is the weighted sum of the functions' values, over those that did not abstain. It has none where
        a function with a weight failed on it, or all of them abstained; the verdict's reason says why. Afterwards
        `first_failure` is the first failure of this scoring in the order of groups, functions and rows, or None.

        Args:
            batches: one per group.

        Returns:
            A verdict per completion, in the order of batches and rows, whatever the order in which workers finished.

        Raises:
            RewardError: a function needs a column that no group has, cannot work here, or cannot be loaded in a worker;
                a column cannot be sent to one.
        """
        self.check_ready()
        scoring = _Scoring(self._names, self._wanted, self._alone, self._local, batches)
        self._dispatcher.run(scoring)
        scoring.judge_locally()
        self.first_failure = scoring.first_failure()
        return [
            [self._verdict(scoring.outcomes(group, row)) for row in range(len(batch))]
            for group, batch in enumerate(batches)
        ]

    def check_ready(self) -> None:
        """Let the functions say what they lack, the first time; `score` does so by itself.

        Raises:
            GvpoError: one of them cannot work here.
        """
        self._ready()

    def require_columns(self, batches: Sequence[RewardBatch]) -> None:
        """Find out before scoring whether the functions get the columns that they need.

        Raises:
            RewardError: a function needs a column that none of the groups has.
        """
        require_columns(self._names, self._wanted, batches)

    def close(self) -> None:
        """End the workers and all that they started. A later `score` starts new ones."""
        self._dispatcher.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _verdict(self, outcomes: Sequence[_Outcome]) -> Verdict:
        parts = {name: outcome.value for name, outcome in zip(self._names, outcomes, strict=True)}
        weighted = [(weight, each) for weight, each in zip(self._weights, outcomes, strict=True) if weight != 0]
        failed = next((outcome.failure for _, outcome in weighted if outcome.failure is not None), None)
        if failed is not None:
            return Verdict(None, parts, failed.reason)
        terms = [weight * outcome.value for weight, outcome in weighted if outcome.value is not None]
        if not terms:
            return Verdict(None, parts, "abstained: every reward function returned None")
        total = sum(terms)
        if not math.isfinite(total):
            return Verdict(None, parts, "infinite: the weighted sum of the rewards is too large")
        return Verdict(total, parts)


class _Scoring:
    """The calls of one `score`, and what came of them. It is the dispatcher's queue."""

    def __init__(
        self,
        names: Sequence[str],
        wanted: Sequence[Wanted],
        alone: frozenset[int],
        local: Mapping[int, LocalReward],
        batches: Sequence[RewardBatch],
    ) -> None:
        self._names, self._wanted, self._alone, self._batches = names, wanted, alone, batches
        self._local, self._sent = local, [function for function in range(len(names)) if function not in local]
        self._outcomes: dict[tuple[int, int, int], _Outcome] = {}  # by group, function, row
        self._succeeded: set[int] = set()
        self._failed_alone = [0] * len(names)
        self._waiting: deque[Call] = deque()
        for group, batch in enumerate(batches):
            for function in range(len(names)):
                self._begin(function, group, len(batch))
        require_columns(names, wanted, batches)

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self) -> Call:
        """The next call."""
        return self._waiting.popleft()

    def done(self, call: Call, reply: Reply) -> None:
        """Note the values of a call; the rows of one that failed go to the front of the queue, each alone."""
        if reply.failed is None:
            self._succeeded.add(call.function)
            self._note(call.function, [(call.group, row) for row in call.rows], reply)
        elif reply.again and len(call.rows) > 1 and not self._is_hopeless(call.function):
            self._waiting.extendleft(self._call(call.function, call.group, (row,)) for row in reversed(call.rows))
        else:
            self._fail(call, reply.failed, reply.traceback)
            self._failed_alone[call.function] += reply.again
            if self._is_hopeless(call.function):
                self._give_up(call.function, reply.failed)

    def judge_locally(self) -> None:
        """Let the rewards of this process judge the rows of all groups that have their columns, each in one call."""
        for function, reward in self._local.items():
            groups = [n for n in range(len(self._batches)) if (n, function, 0) not in self._outcomes]
            rows = [(group, row) for group in groups for row in range(len(self._batches[group]))]
            if rows:
                batches = [self._batches[group] for group in groups]
                self._note(function, rows, judge_locally(reward, self._wanted[function], batches))

    def outcomes(self, group: int, row: int) -> list[_Outcome]:
        """Each function's word on a row."""
        return [self._outcomes[group, function, row] for function in range(len(self._names))]

    def first_failure(self) -> Failure | None:
        """The first in the order of groups, functions and rows."""
        failures = (outcome.failure for _, outcome in sorted(self._outcomes.items(), key=lambda item: item[0]))
        return next((failure for failure in failures if failure is not None), None)

    def _begin(self, function: int, group: int, rows: int) -> None:
        call = self._call(function, group, tuple(range(rows)))
        missing = self._wanted[function].missing(self._batches[group])
        if missing:
            self._fail(call, ("missing column", f"needs {missing[0]!r}, which the data does not have"))
        elif function in self._local:
            pass  # `judge_locally` does not wait for workers
        elif function in self._alone:
            self._waiting.extend(self._call(function, group, (row,)) for row in call.rows)
        elif rows:
            self._waiting.append(call)

    def _call(self, function: int, group: int, rows: tuple[int, ...]) -> Call:
        return Call(function, group, rows, lambda: self._payload(function, group, rows))

    def _payload(self, function: int, group: int, rows: tuple[int, ...]) -> bytes:
        whole = self._batches[group]
        batch = whole if len(rows) == len(whole) else whole.row(rows[0])
        arguments = self._wanted[function].arguments(batch)
        try:
            return bytes(cloudpickle.dumps((self._sent.index(function), len(rows), arguments)))
        except Exception as error:
            raise cannot_send(self._names[function], arguments, error) from error

    def _note(self, function: int, rows: Sequence[tuple[int, int]], reply: Reply) -> None:
        """The values, or the one failure, of some (group, row)."""
        nothing = [None] * len(rows)
        values, reasons = (
            (reply.values, reply.reasons) if reply.failed is None else (nothing, [reply.failed] * len(rows))
        )
        for (group, row), value, reason in zip(rows, values, reasons, strict=True):
            self._outcomes[group, function, row] = _Outcome(value, self._failure(function, reason, reply.traceback))

    def _failure(self, function: int, reason: tuple[str, str] | None, trace: str = "") -> Failure | None:
        if reason is None:
            return None
        kind, detail = reason
        return Failure(f"{kind}: {self._names[function]} {detail}", trace)

    def _fail(self, call: Call, reason: tuple[str, str], trace: str = "") -> None:
        self._note(call.function, [(call.group, row) for row in call.rows], Reply(failed=reason, traceback=trace))

    def _is_hopeless(self, function: int) -> bool:
        tried = function in self._succeeded or function in self._alone
        return self._failed_alone[function] >= GIVE_UP_AFTER and not tried

    def _give_up(self, function: int, last: tuple[str, str]) -> None:
        """Every call costs up to the timeout: a function that always hangs must not take all day to say so."""
        reason = (last[0], f"failed on {GIVE_UP_AFTER} rows out of {GIVE_UP_AFTER} and was not called again")
        for call in self._waiting:
            if call.function == function:
                self._fail(call, reason)
        self._waiting = deque(call for call in self._waiting if call.function != function)
