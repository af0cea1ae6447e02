"""Calls to workers and back: one loop that starts workers, hands them calls, and ends those that pass their deadline.

    queue ──take──▶ worker ──reply──▶ queue.done          a late or dead worker is killed and replaced

Knows nothing of rewards: what is called, and what follows from a failure, is the queue's.
"""

import os
import selectors
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from gvpo.errors import RewardError
from gvpo.rewards.process import WorkerDied, WorkerProcess

START_SECONDS = 120.0
"""A worker imports the modules of the reward functions first; this is how long it may take."""
START_ATTEMPTS = 3


@dataclass(frozen=True)
class Call:
    """One call of one function.

    Args:
        function: its index.
        group: the group that it is for.
        rows: the rows of the group that it is given.
        payload: makes the message to the worker.
    """

    function: int
    group: int
    rows: tuple[int, ...]
    payload: Callable[[], bytes]


@dataclass(frozen=True)
class Reply:
    """What came of a call: values, or a failure of the whole call.

    Args:
        values: one a row; None where the function abstained or its value is of no use.
        reasons: one a row: (kind, detail) where the value is of no use, else None.
        failed: (kind, detail) of a failure of the whole call; values and reasons are then empty.
        traceback: of an exception.
        again: the rows may do better alone.
    """

    values: Sequence[float | None] = ()
    reasons: Sequence[tuple[str, str] | None] = ()
    failed: tuple[str, str] | None = None
    traceback: str = ""
    again: bool = False


class Queue(Protocol):
    """Where calls come from and their replies go."""

    def __len__(self) -> int:
        """How many calls wait."""
        ...

    def take(self) -> Call:
        """The next call."""
        ...

    def done(self, call: Call, reply: Reply) -> None:
        """Note a reply; it may add calls."""
        ...


class Dispatcher:
    """Worker processes that live from their first use until `close`, or until this object or the program ends.

    Args:
        setup: what each worker reads first.
        workers: processes at most.
        timeout: seconds a call may take.
        log: file for the output of the functions; None drops it.
    """

    def __init__(self, setup: Mapping[str, Any], *, workers: int, timeout: float, log: Path | None) -> None:
        self._setup, self._limit, self._timeout, self._log = setup, workers, timeout, log
        self._workers: list[WorkerProcess] = []
        self._failed_starts = 0
        self._finalizer = weakref.finalize(self, _kill_all, self._workers, os.getpid())

    def close(self) -> None:
        """End all workers; the next `run` starts new ones."""
        _kill_all(self._workers, os.getpid())

    def run(self, queue: Queue) -> None:
        """Make the queue's calls until none waits or runs.

        Raises:
            RewardError: workers do not start, or a function does not load in them.
        """
        try:
            while len(queue) or any(worker.call is not None for worker in self._workers):
                self._assign(queue)
                self._attend(queue)
        except BaseException:
            self.close()  # what the workers are at is no longer wanted: Ctrl-C, or an error above
            raise

    def _assign(self, queue: Queue) -> None:
        """Hand calls to idle workers, and start workers for those that still wait."""
        for worker in [worker for worker in self._workers if worker.ready and worker.call is None]:
            if not len(queue):
                return
            if worker.is_alive():
                self._give(worker, queue.take())
            else:
                self._drop(worker)
        starting = sum(not worker.ready for worker in self._workers)
        while len(self._workers) < self._limit and starting < len(queue):
            self._start()
            starting += 1

    def _give(self, worker: WorkerProcess, call: Call) -> None:
        worker.call, worker.deadline = call, time.monotonic() + self._timeout
        worker.send(call.payload())

    def _start(self) -> None:
        try:
            worker = WorkerProcess(self._setup, self._log)
        except OSError as error:
            raise RewardError(
                f"a reward worker cannot be started: {error}; free memory, processes or disk, then go on with --resume"
            ) from error
        worker.deadline = time.monotonic() + START_SECONDS
        self._workers.append(worker)

    def _attend(self, queue: Queue) -> None:
        """Wait for replies, deaths or the next deadline, and deal with them."""
        active = [worker for worker in self._workers if worker.call is not None or not worker.ready]
        for worker in _ready(active):
            worker.flush()
            try:
                for message in worker.receive():
                    self._hear(worker, message, queue)
            except WorkerDied:
                self._lose(worker, queue)
        now = time.monotonic()
        for worker in [worker for worker in active if worker in self._workers and worker.deadline <= now]:
            self._expire(worker, queue)

    def _hear(self, worker: WorkerProcess, message: Mapping[str, Any], queue: Queue) -> None:
        if not worker.ready:
            _require_loaded(message["problem"])
            worker.ready, worker.deadline, self._failed_starts = True, float("inf"), 0
        elif worker.call is None:
            raise WorkerDied
        else:
            call, worker.call, worker.deadline = worker.call, None, float("inf")
            queue.done(call, _as_reply(message))

    def _lose(self, worker: WorkerProcess, queue: Queue) -> None:
        """A worker ended by itself: its call failed, or it did not get so far."""
        end = self._drop(worker)
        if worker.call is not None:
            hint = "; the system may have run out of memory" if end == "signal SIGKILL" else ""
            queue.done(worker.call, Reply(failed=("died", f"ended its process ({end}{hint})"), again=True))
        elif not worker.ready:
            self._count_failed_start(f"ended at once ({end})")

    def _expire(self, worker: WorkerProcess, queue: Queue) -> None:
        self._drop(worker)
        if worker.call is not None:
            queue.done(worker.call, Reply(failed=("timeout", f"gave no answer in {self._timeout:g} s"), again=True))
        else:
            self._count_failed_start(f"was not ready after {START_SECONDS:g} s")

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


def _ready(workers: Sequence[WorkerProcess]) -> list[WorkerProcess]:
    """The workers whose pipes have something to read or room to write; waits for one of them or a deadline."""
    if not workers:
        return []
    with selectors.DefaultSelector() as selector:
        for worker in workers:
            selector.register(worker.replies, selectors.EVENT_READ, worker)
            if worker.unsent:
                selector.register(worker.requests, selectors.EVENT_WRITE, worker)
        wait = min(worker.deadline for worker in workers) - time.monotonic()
        ready = [key.data for key, _ in selector.select(max(wait, 0.0))]
    return list(dict.fromkeys(ready))


def _require_loaded(problem: Mapping[str, str] | None) -> None:
    if problem is not None:
        raise RewardError(
            f"reward {problem['name']!r} cannot be loaded in a worker process: {problem['error']}; "
            "its module must be importable, or define it in the script itself or in a file given by its path"
        ) from RewardError(problem["traceback"])


def _as_reply(message: Mapping[str, Any]) -> Reply:
    try:
        if "failed" in message:
            kind, detail = message["failed"]
            return Reply(failed=(kind, detail), traceback=message["traceback"], again=message["again"])
        reasons = [None if reason is None else (reason[0], reason[1]) for reason in message["reasons"]]
        return Reply(message["values"], reasons)
    except (KeyError, TypeError, ValueError) as error:
        raise WorkerDied from error


def _kill_all(workers: list[WorkerProcess], owner: int) -> None:
    if os.getpid() != owner:
        return  # a fork of the program: the workers are not its own
    while workers:
        workers.pop().kill()
