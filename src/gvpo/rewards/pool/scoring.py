"""The calls of one scoring: which calls are made, what follows from a failed one, and which row gets the worst value.

a group's call ──fails──▶ each row by itself ──fails──▶ a control call ──┬─ works: the completion gets the worst value
                                                                         └─ fails: the row has no reward
"""

import itertools
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace

from gvpo.rewards.base import RewardBatch, RewardFunc, RewardSignature
from gvpo.rewards.pool.checks import cannot_send, require_columns
from gvpo.rewards.pool.local import is_local, judge_locally
from gvpo.rewards.pool.outcomes import Outcomes
from gvpo.rewards.pool.serial import SerialReward, is_serial
from gvpo.workers.calls import Call
from gvpo.workers.process import WorkerProcess
from gvpo.workers.replies import Reply
from gvpo.workers.wire import packed

GIVE_UP_AFTER = 8
"""A function that failed on this many single rows and never succeeded is not called again in the same scoring."""
PIECES = 4
"""Minimum number of messages per worker for a function that is called row by row, if there are enough rows."""


class Scoring:
    """The dispatcher's queue for one scoring, and the outcomes.

    Args:
        functions: Reward functions by name.
        batches: One per group.
        workers: Number of processes that share the calls.

    Raises:
        RewardError: If a function needs a column that no group has.
    """

    def __init__(self, functions: Mapping[str, RewardFunc], batches: Sequence[RewardBatch], workers: int) -> None:
        self._names, self._functions, self._batches = list(functions), list(functions.values()), batches
        self._wanted = [RewardSignature.by(function) for function in self._functions]
        self._local = {n: function for n, function in enumerate(self._functions) if is_local(function)}
        self._serial = {n for n, function in enumerate(self._functions) if is_serial(function)} - self._local.keys()
        apart = self._local.keys() | self._serial
        self._sent = [function for function in range(len(self._names)) if function not in apart]
        self._alone = {n for n, function in enumerate(self._functions) if getattr(function, "row_by_row", False)}
        self.outcomes = Outcomes(self._names)
        self._succeeded: set[int] = set()
        self._failed_alone = [0] * len(self._names)
        self._suspects: dict[tuple[int, int], list[tuple[Call, Reply]]] = {}  # by function, group
        self._controls: dict[tuple[int, int], Reply] = {}
        self._waiting: deque[Call] = deque()
        self._piece = max(1, sum(map(len, batches)) // (PIECES * workers))
        for group, batch in enumerate(batches):
            for function in range(len(self._names)):
                self._begin(function, group, len(batch))
        require_columns(self._names, self._wanted, batches)

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self, worker: WorkerProcess, new: int) -> Call:
        """Remove and return the next call, for any worker."""
        return self._waiting.popleft()

    def put_back(self, parts: Sequence[Call]) -> None:
        """Take back parts of calls that were not run; the parts of one message travel together again."""
        whole = []
        for _, same in itertools.groupby(parts, key=lambda part: replace(part, rows=() if part.each else part.rows)):
            listed = list(same)
            rows = [row for part in listed for row in part.rows]
            whole.append(replace(listed[0], rows=tuple(rows)) if listed[0].each else listed[0])
        self._waiting.extendleft(reversed(whole))

    def payload(self, call: Call) -> bytes:
        """Return the message to a worker: function, whether each row is a call, number of rows, arguments.

        Raises:
            RewardError: If a column cannot be sent.
        """
        whole = self._batches[call.group]
        batch = whole if len(call.rows) == len(whole) else whole.only(call.rows)
        if call.control:
            batch = whole.written(getattr(self._functions[call.function], "control", ""))
        arguments = self._wanted[call.function].arguments(batch)
        try:
            return packed((self._sent.index(call.function), call.each, len(batch), arguments, None))
        except Exception as error:
            raise cannot_send(self._names[call.function], arguments, error) from error

    def done(self, call: Call, reply: Reply) -> None:
        """Record the values of a call, or handle its failure."""
        if call.control:
            self._settle((call.function, call.group), reply)
        elif reply.failed is None:
            self._succeeded.add(call.function)
            self._note(call, reply)
        elif reply.again and not self._is_hopeless(call.function):
            self._try_again(call, reply)
        else:
            self._fail(call, reply)

    def judge_locally(self) -> None:
        """Call the rewards of this process on the rows of all groups that have their columns, each in one call."""
        for function, reward in self._local.items():
            groups = [n for n in range(len(self._batches)) if not self.outcomes.has(n, function)]
            rows = [(group, row) for group in groups for row in range(len(self._batches[group]))]
            if rows:
                batches = [self._batches[group] for group in groups]
                self.outcomes.note(function, rows, judge_locally(reward, self._wanted[function], batches))

    def score_serially(self, rewards: Mapping[str, SerialReward]) -> None:
        """Call the rewards that ask for whole batches or keep a state, each in its own worker."""
        for function in sorted(self._serial):
            rewards[self._names[function]].score(function, self._batches, self.outcomes)

    def _begin(self, function: int, group: int, rows: int) -> None:
        call = Call(function, group, tuple(range(rows)), each=function in self._alone)
        missing = self._wanted[function].missing(self._batches[group])
        if missing:
            self._note(call, Reply(failed=("missing column", f"needs {missing[0]!r}, which the data does not have")))
        elif function not in self._sent or not rows:
            pass  # `judge_locally` and `score_serially` call it
        elif call.each:
            starts = range(0, rows, self._piece)
            self._waiting.extend(replace(call, rows=call.rows[start : start + self._piece]) for start in starts)
        else:
            self._waiting.append(call)

    def _try_again(self, call: Call, reply: Reply) -> None:
        """Call the rows of a group one by one, before other calls; repeat a single row if the worker was spent."""
        if len(call.rows) > 1:
            self._waiting.extendleft(replace(call, rows=(row,)) for row in reversed(call.rows))
        elif reply.spent and not call.repeated:
            self._waiting.appendleft(replace(call, repeated=True))
        elif hasattr(self._functions[call.function], "worst") and not reply.stated:
            self._suspect(call, reply)
        else:
            self._fail(call, reply)

    def _suspect(self, call: Call, reply: Reply) -> None:
        """Find out what is to blame for a failed row, with one control call per function and group."""
        key = call.function, call.group
        if key not in self._suspects and key not in self._controls:
            self._waiting.appendleft(Call(*key, (call.rows[0],), control=True))
        self._suspects.setdefault(key, []).append((call, reply))
        if key in self._controls:
            self._settle(key, self._controls[key])

    def _settle(self, key: tuple[int, int], control: Reply) -> None:
        """Give the worst value to the rows that failed if the control call succeeded."""
        self._controls[key] = control
        works = control.failed is None and control.reasons[0] is None
        if works:
            self._succeeded.add(key[0])
        for call, reply in self._suspects.pop(key, []):
            kind, detail = reply.failed or ("", "")
            if works:
                worst: float = self._functions[call.function].worst  # type: ignore[attr-defined]
                self.outcomes.note_paid(call.function, (call.group, call.rows[0]), worst, (kind, detail))
            else:
                self._fail(call, replace(reply, failed=(kind, f"{detail}, as on a harmless completion of this row")))

    def _note(self, call: Call, reply: Reply) -> None:
        self.outcomes.note(call.function, [(call.group, row) for row in call.rows], reply)

    def _fail(self, call: Call, reply: Reply) -> None:
        self._note(call, reply)
        self._failed_alone[call.function] += reply.again
        if self._is_hopeless(call.function) and reply.failed:
            self._give_up(call.function, reply.failed)

    def _is_hopeless(self, function: int) -> bool:
        tried = function in self._succeeded or function in self._alone
        return self._failed_alone[function] >= GIVE_UP_AFTER and not tried

    def _give_up(self, function: int, last: tuple[str, str]) -> None:
        """Drop a function's waiting calls: each costs up to the timeout, and a function that hangs would cost hours."""
        reply = Reply(
            failed=(last[0], f"failed on {GIVE_UP_AFTER} rows out of {GIVE_UP_AFTER} and was not called again")
        )
        given_up = [call for call in self._waiting if call.function == function]
        self._waiting = deque(call for call in self._waiting if call.function != function)
        for call in given_up:
            self.done(call, reply)
