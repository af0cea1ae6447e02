"""Calls to workers: one loop that starts workers, sends them calls, and kills those that miss their deadline.

    queue ──take──▶ worker ──reply──▶ queue.done          a late or dead worker is killed and replaced

A worker with quick calls receives the next ones before it has finished the current one, so that it never waits for the
pool. This module does not know about rewards: the queue decides what is called and what follows from a failure.
"""

import math
import os
import select
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from gvpo.errors import RewardError
from gvpo.workers.process import WorkerDied, WorkerProcess

START_SECONDS = 120.0
"""Maximum number of seconds until a worker is ready; it first imports the modules of the reward functions."""
START_ATTEMPTS = 3
AHEAD = 0.02
"""Seconds of work that a worker receives in advance."""
LATE = 0.5
"""Fraction of the timeout after which a call will probably be killed, so that a spare worker is started."""


@dataclass(frozen=True)
class Call:
    """One call of one function, or one call per row.

    Args:
        function: Index of the function.
        group: Index of the group.
        rows: Rows of the group that are passed to the function.
        each: True if each row is a separate call with its own deadline; the calls travel together.
        control: True if the completion is replaced by one that no policy wrote (see `scoring.py`).
        repeated: True if the same call failed before because memory ran out or the worker ended.
    """

    function: int
    group: int
    rows: tuple[int, ...]
    each: bool = False
    control: bool = False
    repeated: bool = False

    def parts(self) -> "list[Call]":
        """Return the calls that are answered one after the other."""
        return [replace(self, rows=(row,)) for row in self.rows] if self.each else [self]


@dataclass(frozen=True)
class Reply:
    """The result of a call: values, or a failure of the whole call.

    Args:
        values: One per row; None if the function abstained or its value cannot be used.
        reasons: One per row: (kind, detail) if the value cannot be used, else None.
        failed: (kind, detail) of a failure of the whole call; values and reasons are then empty.
        traceback: Traceback of an exception.
        again: True if the rows may succeed when they are called one by one.
        spent: True if the worker ran out of memory or ended, so that the call may succeed in another worker.
        stated: True if gvpo itself raised the error, which is then about the data or the machine.
        state: State of the function after the call, if it keeps one.
    """

    values: Sequence[float | None] = ()
    reasons: Sequence[tuple[str, str] | None] = ()
    failed: tuple[str, str] | None = None
    traceback: str = ""
    again: bool = False
    spent: bool = False
    stated: bool = False
    state: str | None = None


class Queue(Protocol):
    """Source of the calls and destination of their replies."""

    def __len__(self) -> int:
        """Return the number of waiting calls."""
        ...

    def take(self) -> Call:
        """Remove and return the next call."""
        ...

    def payload(self, call: Call) -> bytes:
        """Return the message to a worker for a call."""
        ...

    def done(self, call: Call, reply: Reply) -> None:
        """Record the reply to a call or to a part of one; this may add calls."""
        ...

    def put_back(self, parts: Sequence[Call]) -> None:
        """Take back parts of calls that were sent to a worker and not run."""
        ...


class Dispatcher:
    """Worker processes that live from their first use until `close`, or until this object or the program ends.

    Args:
        setup: Setup that each worker reads first.
        workers: Maximum number of working processes; one more may be kept warm.
        timeout: Maximum number of seconds per call.
        log: File for the output of the functions; None discards it.
        spare: Whether to start a worker before a late one is killed. Another worker does not have a function's state.
    """

    def __init__(
        self, setup: Mapping[str, Any], *, workers: int, timeout: float, log: Path | None, spare: bool = True
    ) -> None:
        self._setup, self._limit, self._timeout, self._log = setup, workers, timeout, log
        self._spare = spare
        self._workers: list[WorkerProcess] = []
        self._pace: dict[int, float] = {}  # seconds per call of a function
        self._failed_starts = 0
        self._finalizer = weakref.finalize(self, _kill_all, self._workers, os.getpid())

    def close(self) -> None:
        """End all workers; the next `run` starts new ones."""
        _kill_all(self._workers, os.getpid())

    def run(self, queue: Queue) -> None:
        """Run the queue's calls until none is waiting or running.

        Raises:
            RewardError: If workers do not start, or a function cannot be loaded in them.
        """
        try:
            while len(queue) or any(worker.pending for worker in self._workers):
                self._assign(queue)
                self._attend(queue)
        except BaseException:
            self.close()  # the running calls are no longer needed after Ctrl-C or an error above
            raise

    def _assign(self, queue: Queue) -> None:
        """Send calls to workers that have little to do, and start workers for calls that are still waiting."""
        while len(queue) and (worker := self._least_loaded()) is not None:
            if worker.pending or worker.is_alive():
                self._give(worker, queue)
            else:
                self._drop(worker)
        starting = sum(not worker.ready for worker in self._workers)
        while len(self._workers) < self._limit and starting < len(queue):
            self._start()
            starting += 1
        if self._spare_is_due() <= time.monotonic():
            self._start()

    def _least_loaded(self) -> WorkerProcess | None:
        """Return the worker to send the next call to, or None if all of them have enough."""
        ready = [worker for worker in self._workers if worker.ready]
        if sum(bool(worker.pending) for worker in ready) >= self._limit:
            ready = [worker for worker in ready if worker.pending]
        worker = min(ready, key=lambda worker: worker.load, default=None)
        return worker if worker is not None and worker.load < AHEAD else None

    def _give(self, worker: WorkerProcess, queue: Queue) -> None:
        call = queue.take()
        payload = queue.payload(call)
        if not worker.pending:
            worker.deadline = time.monotonic() + self._timeout
        parts = call.parts()
        worker.pending.extend(parts)
        worker.load += len(parts) * self._pace.get(call.function, AHEAD)
        worker.send(payload)

    def _spare_is_due(self) -> float:
        """Return when to start a spare worker to replace a late one; infinity if there already is a spare one."""
        if len(self._workers) > self._limit or not self._spare:
            return float("inf")
        late = [worker.deadline for worker in self._workers if worker.pending]
        return min(late, default=float("inf")) - (1 - LATE) * self._timeout

    def _start(self) -> None:
        try:
            worker = WorkerProcess(self._setup, self._log)
        except OSError as error:
            raise RewardError(
                f"a reward worker cannot be started: {error}; free memory, processes or disk, then use --resume"
            ) from error
        worker.deadline = time.monotonic() + START_SECONDS
        self._workers.append(worker)

    def _attend(self, queue: Queue) -> None:
        """Wait for replies, deaths or the next deadline, and handle them."""
        active = [worker for worker in self._workers if worker.pending or not worker.ready]
        for worker in _ready(active, self._spare_is_due()):
            worker.flush()
            self._listen(worker, queue)
        now = time.monotonic()
        for worker in [worker for worker in active if worker in self._workers and worker.deadline <= now]:
            self._expire(worker, queue)

    def _listen(self, worker: WorkerProcess, queue: Queue) -> bool:
        """Handle the messages that a worker has written; return whether there were any."""
        try:
            messages = worker.receive()
            for message in messages:
                self._hear(worker, message, queue)
        except WorkerDied:
            self._lose(worker, queue)
            return True
        return bool(messages)

    def _hear(self, worker: WorkerProcess, message: Mapping[str, Any], queue: Queue) -> None:
        if not worker.ready:
            _require_loaded(message.get("problem"))
            worker.ready, worker.deadline, self._failed_starts = True, float("inf"), 0
            return
        replies = _as_replies(message, len(worker.pending))
        answered = [(worker.answered(), reply) for reply, _ in replies]
        self._measure(
            worker,
            [
                (call, seconds)
                for (call, _), (reply, seconds) in zip(answered, replies, strict=True)
                if reply.failed is None
            ],
        )
        worker.deadline = time.monotonic() + self._timeout if worker.pending else float("inf")
        if any(reply.spent for _, reply in answered):
            self._drop(worker)
            queue.put_back(worker.pending)
        for call, reply in answered:
            queue.done(call, reply)

    def _measure(self, worker: WorkerProcess, taken: Sequence[tuple[Call, float]]) -> None:
        """Update the seconds per successful call (a moving average with weight 1/2) and the worker's load."""
        for call, seconds in taken:
            self._pace[call.function] = (self._pace.get(call.function, seconds) + seconds) / 2
        worker.load = sum(self._pace.get(call.function, AHEAD) for call in worker.pending)

    def _lose(self, worker: WorkerProcess, queue: Queue) -> None:
        """Handle a worker that ended by itself: the call in progress failed, or the worker never became ready."""
        place, end = worker.at_work(), self._drop(worker)
        if worker.pending:
            hint = "; the system may have run out of memory" if end == "signal SIGKILL" else ""
            reply = Reply(failed=("died", f"ended its process ({end}{hint})"), again=True, spent=True)
            _fail(worker, place, reply, queue)
        elif not worker.ready:
            self._count_failed_start(f"ended immediately ({end})")

    def _expire(self, worker: WorkerProcess, queue: Queue) -> None:
        place = worker.at_work()
        if not worker.ready:
            self._drop(worker)
            self._count_failed_start(f"was not ready after {START_SECONDS:g} s")
        elif not self._listen(worker, queue):  # otherwise the answer has arrived in the meantime
            self._drop(worker)
            reply = Reply(failed=("timeout", f"gave no answer in {self._timeout:g} s"), again=True)
            _fail(worker, place, reply, queue)

    def _drop(self, worker: WorkerProcess) -> str:
        self._workers.remove(worker)
        return worker.kill()

    def _count_failed_start(self, what: str) -> None:
        self._failed_starts += 1
        if self._failed_starts >= START_ATTEMPTS:
            self._failed_starts = 0
            raise RewardError(
                f"a reward worker {what}, {START_ATTEMPTS} times; check that the modules of the reward functions "
                "can be imported, and see the pool's log"
            )


def _fail(worker: WorkerProcess, place: int, reply: Reply, queue: Queue) -> None:
    """Fail the call that a lost worker was running, and put its other calls back."""
    pending = list(worker.pending)
    guilty = pending.pop(place)
    queue.put_back(pending)
    queue.done(guilty, reply)


def _ready(workers: Sequence[WorkerProcess], until: float) -> list[WorkerProcess]:
    """Wait for a worker, a deadline or `until`; return the workers whose pipes can be read or written."""
    if not workers:
        return []
    poll, by_descriptor = select.poll(), {}
    for worker in workers:
        poll.register(worker.replies, select.POLLIN)
        by_descriptor[worker.replies] = worker
        if worker.unsent:
            poll.register(worker.requests, select.POLLOUT)
            by_descriptor[worker.requests] = worker
    until = min(until, *(worker.deadline for worker in workers))
    milliseconds = max(math.ceil((until - time.monotonic()) * 1000), 0)
    return list(dict.fromkeys(by_descriptor[descriptor] for descriptor, _ in poll.poll(milliseconds)))


def _require_loaded(problem: Mapping[str, str] | None) -> None:
    if problem is not None and problem.get("stated"):
        raise RewardError(f"reward {problem['name']!r} cannot be used: {problem['error']}")
    if problem is not None:
        raise RewardError(
            f"reward {problem['name']!r} cannot be loaded in a worker process: {problem['error']}; "
            "its module must be importable, or define it in the script itself or in a file given by its path"
        ) from RewardError(problem["traceback"])


def _as_replies(message: Mapping[str, Any], most: int) -> list[tuple[Reply, float]]:
    """Return the replies in a message, at most `most` of them, with the seconds that each call took.

    Raises:
        WorkerDied: If the message is not a reply, because something else wrote into the pipe.
    """
    try:
        pairs = zip(message["replies"], message["seconds"], strict=True)
        replies = [(_as_reply(reply), float(seconds)) for reply, seconds in pairs]
    except (KeyError, TypeError, ValueError) as error:
        raise WorkerDied from error
    if not 0 < len(replies) <= most:
        raise WorkerDied
    return replies


def _as_reply(message: Mapping[str, Any]) -> Reply:
    if "failed" in message:
        kind, detail = message["failed"]
        again, spent, stated = (bool(message.get(name)) for name in ("again", "spent", "stated"))
        return Reply((), (), (kind, detail), message.get("traceback", ""), again, spent, stated)
    reasons = [None if reason is None else (reason[0], reason[1]) for reason in message["reasons"]]
    state = message.get("state")
    return Reply(message["values"], reasons, state=None if state is None else str(state))


def _kill_all(workers: list[WorkerProcess], owner: int) -> None:
    if os.getpid() != owner:
        return  # this is a fork of the program, which does not own the workers
    while workers:
        workers.pop().kill()
