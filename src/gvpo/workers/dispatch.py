"""Calls to workers: one loop that starts workers, sends them calls, and kills those that miss their deadline.

    queue ──take──▶ worker ──reply──▶ queue.done          a late or dead worker is killed and replaced

A worker with quick calls receives the next ones before it has finished the current one, so that it never waits for the
pool. This module does not know about rewards or environments: the queue decides what is called, by which worker if that
matters, and what follows from a failure.
"""

import math
import os
import select
import time
import weakref
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gvpo.workers.calls import Purpose, Queue
from gvpo.workers.process import WorkerDied, WorkerProcess
from gvpo.workers.replies import Reply, read_replies

START_SECONDS = 120.0
"""Maximum number of seconds until a worker is ready; it first imports the modules of what it calls."""
START_ATTEMPTS = 3
AHEAD = 0.02
"""Seconds of work that a worker receives in advance."""
LATE = 0.5
"""Fraction of the timeout after which a call will probably be killed, so that a spare worker is started."""
WAKE = 0.5
"""Maximum number of seconds until a waiting pool notices that another thread closes it."""
STUCK, TIMES_PACE = 0.05, 4
"""A call that takes this fraction of the timeout, and this multiple of the usual time, holds up the calls after it."""


class Dispatcher:
    """Worker processes that live from their first use until `close`, or until this object or the program ends.

    Args:
        setup: Setup that each worker reads first.
        purpose: Words for the workers in messages.
        workers: Maximum number of working processes; `spares` more may be kept warm.
        timeout: Maximum number of seconds per call.
        log: File for the output of the functions; None discards it.
        spares: Maximum number of workers that are started before late ones are killed; 0 if another worker cannot
            replace one, because it does not have a function's state.
        moves: Whether calls that wait for a call that takes long may move to an idle worker.
    """

    def __init__(
        self,
        setup: Mapping[str, Any],
        purpose: Purpose,
        *,
        workers: int,
        timeout: float,
        log: Path | None,
        spares: int = 1,
        moves: bool = False,
    ) -> None:
        self._setup, self._purpose, self._limit, self._timeout, self._log = setup, purpose, workers, timeout, log
        self._spares, self._moves = spares, moves
        self._workers: list[WorkerProcess] = []
        self._pace: dict[int, float] = {}  # seconds per call of a function
        self._failed_starts, self._interrupted = 0, False
        self._finalizer = weakref.finalize(self, _kill_all, self._workers, os.getpid())

    def close(self) -> None:
        """End all workers; the next `run` starts new ones."""
        _kill_all(self._workers, os.getpid())
        self._interrupted = False

    def interrupt(self) -> None:
        """Let a `run` in another thread, and any that begins before `close`, raise an error."""
        self._interrupted = True

    def run(self, queue: Queue) -> None:
        """Run the queue's calls until none is waiting or running.

        Raises:
            GvpoError: If workers do not start, or cannot load what they call; its class is that of the purpose.
        """
        try:
            while len(queue) or any(worker.pending for worker in self._workers):
                self._require_open()
                self._assign(queue)
                self._attend(queue)
        except BaseException:
            _kill_all(self._workers, os.getpid())  # the running calls are not needed after Ctrl-C or an error above
            raise

    def _require_open(self) -> None:
        if self._interrupted:
            raise self._purpose.error(f"{self._purpose.called} cannot be called, because the pool was closed")

    def _assign(self, queue: Queue) -> None:
        """Send calls to workers that have little to do, and start workers for calls that are still waiting."""
        if self._move_is_due() <= time.monotonic():
            self._move(queue)
        self._hand_out(queue)
        starting = sum(not worker.ready for worker in self._workers)
        while len(self._workers) < self._limit and starting < len(queue):
            self._start()
            starting += 1
        while self._spare_is_due() <= time.monotonic():
            self._start()

    def _hand_out(self, queue: Queue) -> None:
        """Send waiting calls until no worker takes another one."""
        refused: list[WorkerProcess] = []
        while len(queue) and (worker := self._least_loaded(refused)) is not None:
            if not worker.pending and not worker.is_alive():
                self._drop(worker)
            elif not self._give(worker, queue):
                refused.append(worker)

    def _least_loaded(self, refused: Collection[WorkerProcess] = ()) -> WorkerProcess | None:
        """Return the worker to send the next call to, or None if all of them have enough."""
        ready = [worker for worker in self._workers if worker.ready]
        if sum(bool(worker.pending) for worker in ready) >= self._limit:
            ready = [worker for worker in ready if worker.pending]
        free = [worker for worker in ready if worker not in refused and max(worker.load, self._busy(worker)) < AHEAD]
        return min(free, key=lambda worker: worker.load, default=None)

    def _busy(self, worker: WorkerProcess) -> float:
        """Return how many seconds ago a worker was known to begin its current call; 0 if it has none."""
        return time.monotonic() - (worker.deadline - self._timeout) if worker.pending else 0.0

    def _give(self, worker: WorkerProcess, queue: Queue) -> bool:
        """Send a worker its next message; return whether there is one."""
        call = queue.take(worker, sum(other.is_new for other in self._workers if other is not worker))
        if call is None:
            return False
        payload, parts = queue.payload(call), call.parts()
        if not worker.pending:
            worker.deadline = time.monotonic() + self._timeout
        worker.pending.extend(parts)
        worker.load += sum(self._pace.get(part.function, AHEAD) for part in parts)
        worker.send(payload)
        return True

    def _move_is_due(self) -> float:
        """Return when to take calls back from a worker that is stuck in one; infinity if no other could run them."""
        idle = sum(worker.ready and not worker.pending for worker in self._workers)
        if not (self._moves and idle) or sum(bool(worker.pending) for worker in self._workers) >= self._limit:
            return float("inf")
        return min(map(self._stuck_at, self._workers), default=float("inf"))

    def _stuck_at(self, worker: WorkerProcess) -> float:
        """Return when a worker will have been too long in one call; infinity if no other call waits for it."""
        current, waiting = _held_up(worker)
        if not waiting:
            return float("inf")
        pace: float = self._pace.get(current.function, 0.0)
        again: float = max(part.cost for part in waiting.values())
        return worker.deadline - self._timeout + max(STUCK * self._timeout, TIMES_PACE * pace, again)

    def _move(self, queue: Queue) -> None:
        """Take back the calls that wait for the call that a worker is stuck in."""
        worker = min(self._workers, key=self._stuck_at)
        _, waiting = _held_up(worker)
        if waiting:
            queue.put_back(worker.withdraw(min(waiting)))

    def _spare_is_due(self) -> float:
        """Return when to start a spare worker, one per late worker; infinity if there are enough."""
        number = max(len(self._workers) - self._limit, 0)
        late = sorted(worker.deadline for worker in self._workers if worker.pending)
        if number >= min(self._spares, len(late)):
            return float("inf")
        return late[number] - (1 - LATE) * self._timeout

    def _start(self) -> None:
        try:
            worker = WorkerProcess(self._setup, self._log)
        except OSError as error:
            raise self._purpose.error(
                f"{self._purpose.worker} cannot be started: {error}; free memory, processes or disk, then use --resume"
            ) from error
        worker.deadline = time.monotonic() + START_SECONDS
        self._workers.append(worker)

    def _attend(self, queue: Queue) -> None:
        """Wait for replies, deaths or the next deadline, and handle them."""
        active = [worker for worker in self._workers if worker.pending or not worker.ready]
        for worker in _ready(active, min(self._spare_is_due(), self._move_is_due())):
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
            _require_loaded(message.get("problem"), self._purpose)
            worker.ready, worker.deadline, self._failed_starts = True, float("inf"), 0
            return
        replies = _replies(message, len(worker.pending))
        answered = [(worker.answered(), reply) for reply in replies]
        self._measure(worker, answered)
        worker.deadline = time.monotonic() + self._timeout if worker.pending else float("inf")
        if any(reply.spent for reply in replies):
            self._drop(worker)
            queue.put_back(_kept(worker.pending))
        for call, reply in answered:
            if reply.withdrawn and call is not None:
                queue.put_back([call])
            elif call is not None:
                queue.done(call, reply)

    def _measure(self, worker: WorkerProcess, answered: Sequence[tuple[Any, Reply]]) -> None:
        """Update the seconds per successful call (a moving average with weight 1/2) and the worker's load."""
        for call, reply in answered:
            if call is not None and reply.failed is None:
                self._pace[call.function] = (self._pace.get(call.function, reply.seconds) + reply.seconds) / 2
        worker.load = sum(self._pace.get(call.function, AHEAD) for call in _kept(worker.pending))

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
            detail = f"gave no answer in {self._timeout:g} s"
            reply = Reply(failed=("timeout", detail), again=True, seconds=self._timeout)
            _fail(worker, place, reply, queue)

    def _drop(self, worker: WorkerProcess) -> str:
        self._workers.remove(worker)
        return worker.kill()

    def _count_failed_start(self, what: str) -> None:
        self._failed_starts += 1
        if self._failed_starts >= START_ATTEMPTS:
            self._failed_starts = 0
            raise self._purpose.error(
                f"{self._purpose.worker} {what}, {START_ATTEMPTS} times; check that the modules of "
                f"{self._purpose.called} can be imported, and see the pool's log"
            )


def _fail(worker: WorkerProcess, place: int, reply: Reply, queue: Queue) -> None:
    """Fail the call that a lost worker was running, and put its other calls back."""
    pending = list(worker.pending)
    guilty = pending.pop(place)
    queue.put_back(_kept(pending))
    if guilty is not None:
        queue.done(guilty, reply)


def _held_up(worker: WorkerProcess) -> tuple[Any, dict[int, Any]]:
    """Return the call that a worker is in, and those after it by index that need not follow it in the same worker."""
    pending, place = list(worker.pending), worker.at_work()
    current = pending[place] if pending else None
    if current is None:
        return None, {}
    rest = {at: pending[at] for at in range(place + 1, len(pending)) if pending[at] is not None}
    return current, {at: part for at, part in rest.items() if part.name != current.name}


def _kept(pending: Iterable[Any]) -> list[Any]:
    """Return the pending calls that have not moved to another worker."""
    return [part for part in pending if part is not None]


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
    milliseconds = max(math.ceil(min(until - time.monotonic(), WAKE) * 1000), 0)
    return list(dict.fromkeys(by_descriptor[descriptor] for descriptor, _ in poll.poll(milliseconds)))


def _require_loaded(problem: Mapping[str, str] | None, purpose: Purpose) -> None:
    if problem is not None and problem.get("stated"):
        raise purpose.error(f"{purpose.noun} {problem['name']!r} cannot be used: {problem['error']}")
    if problem is not None:
        raise purpose.error(
            f"{purpose.noun} {problem['name']!r} cannot be loaded in a worker process: {problem['error']}; "
            "its module must be importable, or define it in the script itself or in a file given by its path"
        ) from purpose.error(problem["traceback"])


def _replies(message: Mapping[str, Any], most: int) -> list[Reply]:
    """Return the replies in a message, at most `most` of them.

    Raises:
        WorkerDied: If the message is not a reply, because something else wrote into the pipe.
    """
    try:
        replies = read_replies(message)
    except (KeyError, TypeError, ValueError) as error:
        raise WorkerDied from error
    if not 0 < len(replies) <= most:
        raise WorkerDied
    return replies


def _kill_all(workers: list[WorkerProcess], owner: int) -> None:
    if os.getpid() != owner:
        return  # this is a fork of the program, which does not own the workers
    while workers:
        workers.pop().kill()
