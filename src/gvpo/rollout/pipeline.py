"""Groups that some threads sample and another one scores, so that rewards begin before the slowest group is sampled.

start(dispatch) ──▶ sampling threads ──rows of a group──▶ scoring thread ──▶ dispatch.finished
wait(done)      ◀── an error of any thread is raised here ◀───────┘
"""

import contextlib
import contextvars
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

from gvpo import activity
from gvpo.rewards import RewardPool
from gvpo.rollout.collect import EncodedProblem, Rollout, Waiting, distinct, scored, stamped
from gvpo.sampling import Request, Sampler, SamplingParams, streamed
from gvpo.types import Completion, Group, Problem, Verdict

T = TypeVar("T")

LOOK = 0.2
"""Seconds after which a waiting thread looks around again, so that Ctrl-C is noticed on every system."""
PATIENCE = 5.0
"""Seconds that `close` waits for the threads. They are daemons, so those that hang end with the program."""


@dataclass(frozen=True)
class ScoredGroup:
    """A group with its results.

    Args:
        group: The group.
        verdicts: Results of the rewards for its rows; None without rewards.
        problem: Its problem.
    """

    group: Group
    verdicts: Sequence[Verdict] | None
    problem: Problem


def scored_groups(rollout: Rollout) -> list[ScoredGroup]:
    """Return the groups of a rollout."""
    verdicts: Sequence[Sequence[Verdict] | None] = rollout.verdicts or [None] * len(rollout.groups)
    return [ScoredGroup(*each) for each in zip(rollout.groups, verdicts, rollout.problems, strict=True)]


def rollout_of(groups: Sequence[ScoredGroup], seconds: Mapping[str, float] | None = None, trace: str = "") -> Rollout:
    """Return a rollout of some groups."""
    verdicts = [each.verdicts for each in groups if each.verdicts is not None]
    return Rollout(
        [each.group for each in groups], verdicts, [each.problem for each in groups], dict(seconds or {}), trace
    )


class IdleClock:
    """The time in which no thread works, from the first call of `take` on."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._working, self._seconds, self._counted = 0, 0.0, time.perf_counter()

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Count the time of this context as work."""
        self._change(1)
        try:
            yield
        finally:
            self._change(-1)

    def take(self) -> float:
        """Return the idle seconds since the last call."""
        self._change(0)
        with self._turn:
            seconds, self._seconds = self._seconds, 0.0
        return seconds

    def _change(self, workers: int) -> None:
        with self._turn:
            now = time.perf_counter()
            self._seconds += now - self._counted if self._working == 0 else 0.0
            self._working, self._counted = self._working + workers, now


class Dispatch:
    """The groups of one rollout, which a pipeline samples and scores. Read it in `Pipeline.wait` or under its lock.

    Args:
        items: Problems.
        step: Number of the rollout, which determines the noise.
        names: Distinct names of the groups, one per problem; by default the problems' own, made distinct.
        version: Number of completed training steps of the policy at the dispatch; rows without a version get it.
        finished: Groups that are finished already, by position.

    Attributes:
        seconds: Duration of each phase so far.
        traceback: Traceback of the first reward that failed, if any.
    """

    def __init__(
        self,
        items: Sequence[EncodedProblem],
        step: int,
        *,
        names: Sequence[str] | None = None,
        version: int | None = None,
        finished: Mapping[int, ScoredGroup] | None = None,
    ) -> None:
        self.items, self.step, self.version = items, step, version
        self.names = distinct([item.problem.id for item in items]) if names is None else names
        self.finished: dict[int, ScoredGroup] = dict(finished or {})
        self.sampled: dict[int, list[Completion]] = {}  # not yet scored
        self.seconds, self.traceback = {"sampling": 0.0, "rewarding": 0.0}, ""

    @property
    def is_finished(self) -> bool:
        """Return whether all groups are sampled and scored."""
        return len(self.finished) == len(self.items)

    @property
    def is_sampled(self) -> bool:
        """Return whether all groups that are not finished wait for their rewards."""
        return len(self.finished) + len(self.sampled) == len(self.items)

    def missing(self) -> list[int]:
        """Return the positions of the groups that are not finished."""
        return [place for place in range(len(self.items)) if place not in self.finished]

    def request(self, place: int) -> Request:
        """Return the request for a group."""
        item = self.items[place]
        return Request(self.names[place], item.prompt, problem=item.problem)

    def add(self, places: Sequence[int], part: Rollout) -> None:
        """Add groups that are scored."""
        part = part if self.version is None else stamped(part, self.version)
        self.finished |= dict(zip(places, scored_groups(part), strict=True))
        self.seconds["rewarding"] += part.seconds["rewarding"]
        self.traceback = self.traceback or part.traceback


class Pipeline:
    """Threads that sample rollouts in the order of their dispatch, and a thread that scores groups as they arrive.

    Rewards that must see all rows of a rollout are called when all of them are sampled. The threads start with the
    first dispatch, and inherit the handlers of warnings from the thread that creates the pipeline.

    Args:
        sampler: Sampler of the policy.
        params: Sampling parameters.
        rewards: Pool of reward workers.
        seed: Random seed of the run.
        threads: Number of rollouts that are sampled at the same time; more than 1 needs a concurrent sampler.
        context: Function that returns the context, such as autocast, that each thread enters while it works.

    Attributes:
        changed: Lock of all dispatches, which tells waiting threads about every change.
        idle: Clock of the time in which nothing is sampled.
    """

    def __init__(
        self,
        sampler: Sampler,
        params: SamplingParams,
        rewards: RewardPool,
        *,
        seed: int,
        threads: int = 1,
        context: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
    ) -> None:
        self._sampler, self._params, self._rewards, self._seed = sampler, params, rewards, seed
        self._context = context
        self.changed, self.idle = threading.Condition(), IdleClock()
        self._waiting: deque[Dispatch] = deque()  # to be sampled
        self._open: list[Dispatch] = []  # to be scored
        self._failure: BaseException | None = None
        self._closed = False
        works = [*[self._sample_all] * threads, self._score_all]
        self._threads = [_daemon(self._run, work, number) for number, work in enumerate(works)]

    def start(self, dispatch: Dispatch) -> None:
        """Let the missing groups of a dispatch be sampled, after those of earlier dispatches, and scored."""
        with self.changed:
            self._waiting.append(dispatch)
            self._open.append(dispatch)
            self.changed.notify_all()
        if self._threads[0].ident is None:
            self.idle.take()  # the time before the first dispatch does not count
            for thread in self._threads:
                thread.start()

    def wait(self, done: Callable[[], bool], look: Callable[[], None] = lambda: None) -> None:
        """Wait until a condition on the dispatches is met.

        Args:
            done: The condition. It is called with the lock.
            look: Function that is called with the lock whenever something has changed.

        Raises:
            BaseException: The error of a thread, with its traceback.
        """
        with self.changed:
            while not done():
                if self._failure is not None:
                    raise self._failure
                look()
                self.changed.wait(LOOK)

    def close(self) -> None:
        """End the threads. Sampling in this process ends at the next token, and rewards after the current call."""
        with self.changed:
            self._closed = True
            self.changed.notify_all()
        end = time.monotonic() + PATIENCE
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, end - time.monotonic()))

    @property
    def _has_ended(self) -> bool:
        return self._closed or self._failure is not None

    def _run(self, work: Callable[[], None]) -> None:
        """Do the work of a thread, and keep its error for `wait`."""
        try:
            with activity.shown(self._look_for_end):
                work()
        except _Ended:
            pass
        except BaseException as error:
            with self.changed:
                self._failure = self._failure or error
                self.changed.notify_all()

    def _look_for_end(self, _: activity.Activity) -> None:
        """End the work of this thread at a token or between calls, instead of showing it."""
        if self._has_ended:
            raise _Ended

    def _sample_all(self) -> None:
        while (dispatch := self._next(self._take_dispatch)) is not None:
            with self._context(), self.idle.working():
                last = self._sample(dispatch)
            if last is not None:  # the sampler is done with the model, which the trainer may use now
                self._arrive(dispatch, *last)

    def _sample(self, dispatch: Dispatch) -> tuple[int, list[Completion]] | None:
        """Sample the missing groups of a dispatch; return the position and rows of the last one."""
        began, places, waited = time.perf_counter(), dispatch.missing(), Waiting(self._sampler)
        requests = [dispatch.request(place) for place in places]
        groups = streamed(self._sampler, requests, self._params, seed=self._seed, step=dispatch.step)
        last = None
        with contextlib.closing(groups):
            for count, (index, rows) in enumerate(groups, start=1):
                dispatch.seconds |= {"sampling": time.perf_counter() - began, **waited.seconds()}
                if self._has_ended:
                    return None
                if count == len(places):
                    last = places[index], rows
                else:
                    self._arrive(dispatch, places[index], rows)
        return last

    def _arrive(self, dispatch: Dispatch, place: int, rows: list[Completion]) -> None:
        with self.changed:
            dispatch.sampled[place] = rows
            self.changed.notify_all()

    def _score_all(self) -> None:
        while (found := self._next(self._take_rows)) is not None:
            dispatch, rows = found
            places = sorted(rows)
            with self._context():
                part = scored(
                    [dispatch.items[place] for place in places],
                    [rows[place] for place in places],
                    self._rewards,
                    names=[dispatch.names[place] for place in places],
                    sampling=0.0,
                )
            with self.changed:
                dispatch.add(places, part)
                if dispatch.is_finished:
                    self._open.remove(dispatch)
                self.changed.notify_all()

    def _next(self, take: Callable[[], T | None]) -> T | None:
        """Wait for something to do; return None at the end."""
        with self.changed:
            while not self._has_ended:
                if (found := take()) is not None:
                    return found
                self.changed.wait()
        return None

    def _take_dispatch(self) -> Dispatch | None:
        return self._waiting.popleft() if self._waiting else None

    def _take_rows(self) -> tuple[Dispatch, dict[int, list[Completion]]] | None:
        """Return what has arrived of the earliest dispatch; if rewards must see all rows, when all have arrived."""
        for dispatch in self._open:
            if dispatch.sampled and (dispatch.is_sampled or not self._rewards.scores_rollouts):
                rows, dispatch.sampled = dispatch.sampled, {}
                return dispatch, rows
        return None


def collect_streamed(
    items: Sequence[EncodedProblem],
    sampler: Sampler,
    params: SamplingParams,
    rewards: RewardPool,
    *,
    seed: int,
    step: int,
    names: Sequence[str] | None = None,
) -> Rollout:
    """Collect the same rollout as `gvpo.rollout.collect.collect`, and score groups while others are sampled.

    The durations of sampling and of scoring overlap.
    """
    dispatch = Dispatch(items, step, names=names)
    pipeline = Pipeline(sampler, params, rewards, seed=seed)
    try:
        pipeline.start(dispatch)
        with activity.phase("sampling"):
            pipeline.wait(
                lambda: dispatch.is_finished, lambda: activity.count(len(dispatch.finished), len(items), "groups")
            )
    finally:
        pipeline.close()
    groups = [dispatch.finished[place] for place in range(len(items))]
    return rollout_of(groups, dispatch.seconds, dispatch.traceback)


class _Ended(BaseException):
    """The pipeline was closed."""


def _daemon(run: Callable[[Callable[[], None]], None], work: Callable[[], None], number: int) -> threading.Thread:
    """Return a thread that has the context variables of the current one and does not keep the program alive."""
    context = contextvars.copy_context()
    return threading.Thread(target=context.run, args=(run, work), name=f"gvpo-rollout-{number}", daemon=True)
