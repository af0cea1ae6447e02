"""Rewards that are called in order by one worker: on whole batches, with a state between their calls, or both.

    score ──▶ one call per step (batch) or group ──▶ the reward's own worker ──▶ values, the state after the call

The pool owns the state and passes it with each call. A call that fails leaves it as it was, and its rows are not tried
again one by one, because the reward is about more than one row.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gvpo.rewards.base import BATCH, RewardBatch, RewardFunc, RewardSignature
from gvpo.rewards.pool.checks import PURPOSE, cannot_send, worker_setup
from gvpo.rewards.pool.local import joined_arguments
from gvpo.rewards.pool.outcomes import Outcomes
from gvpo.workers.calls import Call
from gvpo.workers.dispatch import Dispatcher
from gvpo.workers.process import WorkerProcess
from gvpo.workers.replies import Reply
from gvpo.workers.state import STATEFUL, keeps_state
from gvpo.workers.wire import packed

LOST = ("timeout", "died")
"""Kinds of failures after which a worker is replaced."""


def is_serial(function: RewardFunc) -> bool:
    """Return whether a reward asks for whole batches or keeps a state."""
    return any(getattr(function, name, False) is True for name in (BATCH, STATEFUL))


class SerialReward:
    """A reward with a worker of its own.

    Args:
        name: Name of the reward.
        function: The reward.
        timeout: Maximum seconds per call.
        log: File for its output.
        memory_limit: Bytes that its worker may allocate.

    Attributes:
        state: State after the last call that succeeded, as text; None before the first, or if the reward has no
            `state_dict` and `load_state_dict`.
    """

    def __init__(
        self, name: str, function: RewardFunc, *, timeout: float, log: Path | None, memory_limit: int | None
    ) -> None:
        self.state: str | None = None
        self._name, self._function = name, function
        setup = worker_setup({name: function}, timeout=timeout, memory_limit=memory_limit)
        self._dispatcher = Dispatcher(setup, PURPOSE, workers=1, timeout=timeout, log=log, spares=0)

    def score(self, position: int, batches: Sequence[RewardBatch], outcomes: Outcomes) -> None:
        """Call the reward on the groups that have its columns, and record what it returns.

        Args:
            position: Index of the reward among the functions of the pool.
            batches: One per group.
            outcomes: Outcomes so far, which contain the groups without its columns.
        """
        groups = [n for n, batch in enumerate(batches) if len(batch) and not outcomes.has(n, position)]
        whole = getattr(self._function, BATCH, False) is True
        parts = ([groups] if groups else []) if whole else [[group] for group in groups]
        self._dispatcher.run(_Calls(self, position, parts, batches, outcomes))

    def payload(self, batches: Sequence[RewardBatch]) -> bytes:
        """Return the message to the worker for a call on the rows of some groups.

        Raises:
            RewardError: If a column cannot be sent.
        """
        arguments = joined_arguments(RewardSignature.by(self._function), batches)
        try:
            return packed((0, False, sum(map(len, batches)), arguments, self.state))
        except Exception as error:
            raise cannot_send(self._name, arguments, error) from error

    def after(self, reply: Reply) -> Reply:
        """Keep the state that a reply contains; add to a failure what became of the state."""
        if reply.failed is None:
            self.state = reply.state
            return reply
        kind, detail = reply.failed
        if keeps_state(self._function):
            detail += "; its state is that before the call"
        elif kind in LOST and getattr(self._function, STATEFUL, False) is True:
            detail += "; its state is lost"
        return replace(reply, failed=(kind, detail))

    def close(self) -> None:
        """End the worker; a later call starts a new one."""
        self._dispatcher.close()


class _Calls:
    """The dispatcher's queue: the calls of one scoring, of which the next begins when the last one has ended."""

    def __init__(
        self,
        reward: SerialReward,
        position: int,
        parts: Sequence[Sequence[int]],
        batches: Sequence[RewardBatch],
        outcomes: Outcomes,
    ) -> None:
        self._reward, self._position, self._batches, self._outcomes = reward, position, batches, outcomes
        self._rows = [[(group, row) for group in part for row in range(len(batches[group]))] for part in parts]
        self._parts = parts
        self._waiting = deque(Call(0, number, tuple(range(len(rows)))) for number, rows in enumerate(self._rows))
        self._running = False

    def __len__(self) -> int:
        return 0 if self._running else len(self._waiting)

    def take(self, worker: WorkerProcess, new: int) -> Call:
        """Remove and return the next call, for any worker."""
        self._running = True
        return self._waiting.popleft()

    def payload(self, call: Call) -> bytes:
        """Return the message to the worker."""
        return self._reward.payload([self._batches[group] for group in self._parts[call.group]])

    def done(self, call: Call, reply: Reply) -> None:
        """Record a reply; repeat a call once if its worker ended or ran out of memory."""
        self._running = False
        if reply.failed is not None and reply.spent and not call.repeated:
            self._waiting.appendleft(replace(call, repeated=True))
        else:
            self._outcomes.note(self._position, self._rows[call.group], self._reward.after(reply))

    def put_back(self, parts: Sequence[Call]) -> None:
        """Take back calls that were not run."""
        self._running = False
        self._waiting.extendleft(reversed(parts))
