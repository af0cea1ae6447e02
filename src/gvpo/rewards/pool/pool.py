"""Reward functions in worker processes with deadlines: groups in, verdicts out, regardless of what the functions do.

batches ─▶ one call per function and group ─▶ workers ─▶ parts ─▶ weighted sums ─▶ verdicts
                 ▲                               │
                 └── the rows of a failed call, one by one: only the guilty ones lose their reward
"""

import contextlib
import functools
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from gvpo.rewards.base import RewardBatch, RewardFunc, RewardSignature, check_ready
from gvpo.rewards.pool.checks import PURPOSE, check_limits, checked_weights, require_columns, worker_setup
from gvpo.rewards.pool.in_process import InProcessReward
from gvpo.rewards.pool.local import is_local
from gvpo.rewards.pool.outcomes import Failure
from gvpo.rewards.pool.scoring import Scoring
from gvpo.rewards.pool.serial import SerialReward, is_serial
from gvpo.types import Verdict
from gvpo.workers.dispatch import Dispatcher


class RewardPool:
    """Scores groups with reward functions that run in separate processes, and survives their failures.

    Args:
        functions: Reward functions (`RewardFunc`) by name. They reach the workers by cloudpickle: lambdas, closures and
            functions of the main script by value, others by the name of their module. A `LocalReward` runs here, and a
            reward declared with `gvpo.reward` has a worker of its own.
        weights: Each function's weight; default 1. Weight 0 only logs: it never decides whether a row has a reward.
        workers: Maximum number of processes; they start when first needed and stay.
        timeout: Maximum seconds per call: one function on one group, or on one completion if it is `row_by_row`.
        log: File that the functions' prints are appended to; None discards them.
        memory_limit: Bytes that a worker may allocate (RLIMIT_DATA, if the system has it); None for no limit.

    Threads that use the same pool take turns at scoring.

    Raises:
        RewardError: If a function cannot be sent to a worker, or the weights do not fit.

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
        self._turn, self._latest = threading.Lock(), threading.local()
        self._functions, self._workers = dict(functions), workers
        self._weights = checked_weights(list(functions), weights)
        check_limits(workers, timeout)
        self._ready = functools.cache(lambda: check_ready(functions.values()))
        remote = {name: function for name, function in functions.items() if not is_local(function)}
        path = None if log is None else Path(log)
        self._serial = {
            name: SerialReward(name, function, timeout=timeout, log=path, memory_limit=memory_limit)
            for name, function in remote.items()
            if is_serial(function)
        }
        sent = {name: function for name, function in remote.items() if name not in self._serial}
        setup = worker_setup(sent, timeout=timeout, memory_limit=memory_limit)
        self._dispatcher = Dispatcher(setup, PURPOSE, workers=workers, timeout=timeout, log=path)

    def score(self, batches: Sequence[RewardBatch]) -> list[list[Verdict]]:
        """Score every completion of every group.

        A row's reward is the weighted sum of the values of the functions that did not abstain. It has no reward if a
        function with a weight failed on it, or all functions abstained; the verdict's reason states why.

        Args:
            batches: One per group.

        Returns:
            One verdict per completion, in the order of batches and rows, regardless of the order of the workers.

        Raises:
            RewardError: If a function needs a column that no group has, cannot work here, or cannot be loaded in a
                worker, or if a column cannot be sent to one.
        """
        with self._turn:
            self.check_ready()
            scoring = Scoring(self._functions, batches, self._workers)
            self._dispatcher.run(scoring)
            scoring.score_serially(self._serial)
            scoring.judge_locally()
        self._latest.failure = scoring.outcomes.first_failure()
        return [
            [scoring.outcomes.verdict(group, row, self._weights) for row in range(len(batch))]
            for group, batch in enumerate(batches)
        ]

    @property
    def first_failure(self) -> Failure | None:
        """The first failure of this thread's latest scoring in the order of groups, functions and rows, if any."""
        found: Failure | None = getattr(self._latest, "failure", None)
        return found

    @property
    def scores_rollouts(self) -> bool:
        """True if a reward must see all rows of a step in one scoring, or may return other values if it does not.

        A model, for example, computes rows together, and their number changes its rounding.
        """
        local = [function for function in self._functions.values() if is_local(function)]
        return self.scores_batches or any(not getattr(function, "row_by_row", False) for function in local)

    @property
    def scores_batches(self) -> bool:
        """True if a reward must see all rows of a step, or all of them in order."""
        return any(map(is_serial, self._functions.values()))

    def state_dict(self) -> dict[str, str]:
        """Return the states of the stateful rewards by name, without those that have not been called."""
        return {name: one.state for name, one in self._stateful().items() if one.state is not None}

    def load_state_dict(self, states: Mapping[str, str]) -> None:
        """Continue from states that `state_dict` returned; other rewards begin with their first state."""
        for name, one in self._stateful().items():
            one.state = states.get(name)

    @contextlib.contextmanager
    def unchanged(self) -> Iterator[None]:
        """Score in this context without an effect on the states afterwards."""
        before = self.state_dict()
        try:
            yield
        finally:
            self.load_state_dict(before)

    def _stateful(self) -> dict[str, SerialReward | InProcessReward]:
        local = {name: one for name, one in self._functions.items() if isinstance(one, InProcessReward)}
        return {**self._serial, **local}

    def check_ready(self) -> None:
        """Let the functions report what they lack, the first time; `score` calls this itself.

        Raises:
            GvpoError: If one of them cannot work here.
        """
        self._ready()

    def require_columns(self, batches: Sequence[RewardBatch]) -> None:
        """Check before scoring that the columns that the functions need exist.

        Raises:
            RewardError: If a function needs a column that none of the groups has.
        """
        wanted = [RewardSignature.by(function) for function in self._functions.values()]
        require_columns(list(self._functions), wanted, batches)

    def close(self) -> None:
        """End the workers and their descendants. A later `score` starts new ones."""
        for each in (self._dispatcher, *self._stateful().values()):
            each.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
