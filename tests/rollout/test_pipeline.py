"""Tests that groups are scored as they arrive, in threads whose errors and end reach the thread that waits."""

import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from gvpo import notices
from gvpo.errors import RewardError
from gvpo.rollout import pipeline as pipelines
from gvpo.rollout.collect import collect
from gvpo.rollout.collect_shared import collect_shared
from gvpo.rollout.pipeline import Dispatch, IdleClock, Pipeline, rollout_of
from tests.rollout.scripted import asked
from tests.rollout.slow import PARAMS, Pool, Slow

NAMES = ("a", "b", "c", "d")


def pipeline(sampler: Slow, pool: Any, threads: int = 1) -> "closing[Pipeline]":
    return closing(Pipeline(sampler, PARAMS, pool, seed=0, threads=threads))


def finish(running: Pipeline, *dispatches: Dispatch) -> None:
    for each in dispatches:
        running.start(each)
    running.wait(lambda: all(each.is_finished for each in dispatches))


def test_groups_are_scored_while_others_are_sampled_and_keep_their_places():
    delays = {"a": 0.15, "b": 0.0, "c": 0.05, "d": 0.1}
    sampler, pool, dispatch = Slow(lambda _, name: delays[name]), Pool(), Dispatch(asked(*NAMES), 3, version=2)
    with pipeline(sampler, pool) as running:
        running.start(dispatch)
        running.wait(lambda: 1 in dispatch.finished)
        assert not dispatch.is_finished
        assert dispatch.missing()[0] == 0
        running.wait(lambda: dispatch.is_finished)
    groups = [dispatch.finished[place] for place in range(4)]
    assert [each.group.id for each in groups] == list(NAMES)
    assert [each.group.completions[0].text for each in groups] == ["3 a", "3 b", "3 c", "3 d"]
    rollout = rollout_of(groups)
    assert [row.reward for group in rollout.groups for row in group.completions] == [1.0] * 8
    assert [problem.id for problem in rollout.problems] == list(NAMES)
    assert len(pool.sizes) > 1
    assert sum(pool.sizes) == 4


def test_rewards_that_must_see_all_rows_are_called_once_per_rollout():
    sampler, pool = Slow(lambda _, name: 0.01 * NAMES.index(name)), Pool(scores_rollouts=True)
    with pipeline(sampler, pool) as running:
        finish(running, *(Dispatch(asked(*NAMES), step) for step in (1, 2)))
    assert pool.sizes == [4, 4]


@pytest.mark.parametrize("threads", [1, 3])
def test_dispatches_are_sampled_in_order_in_as_many_threads_as_given(threads: int):
    sampler = Slow(lambda *_: 0.03)
    with pipeline(sampler, Pool(), threads) as running:
        finish(running, *(Dispatch(asked(*NAMES), step) for step in range(1, 5)))
    assert list(sampler.asked) == [1, 2, 3, 4]
    assert sampler.most_at_once == threads


def test_only_missing_groups_are_sampled():
    sampler, whole = Slow(), Dispatch(asked(*NAMES), 1)
    with pipeline(sampler, Pool()) as running:
        finish(running, whole)
        kept = {place: whole.finished[place] for place in (0, 2)}
        again = Dispatch(asked(*NAMES), 1, finished=kept)
        sampler.asked.clear()
        finish(running, again)
    assert sampler.asked == {1: ["b", "d"]}
    assert again.finished[2] is kept[2]


def failing_sampler(*_: Any) -> float:
    raise ValueError("the engine broke")


class FailingPool(Pool):
    def score(self, batches: Any) -> Any:
        raise RewardError("the pool broke")


@pytest.mark.parametrize(
    ("sampler", "pool", "error", "place"),
    [(Slow(failing_sampler), Pool(), ValueError, "in stream"), (Slow(), FailingPool(), RewardError, "in score")],
    ids=["sampler", "rewards"],
)
def test_an_error_of_a_thread_is_raised_with_its_traceback(sampler: Slow, pool: Pool, error: type, place: str):
    with pipeline(sampler, pool) as running, pytest.raises(error, match="broke") as raised:
        finish(running, Dispatch(asked(*NAMES), 1))
    assert place in "".join(traceback.format_exception(raised.value))


def test_a_hanging_sampler_is_left_after_a_deadline(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pipelines, "PATIENCE", 0.05)
    hangs = threading.Event()
    running = Pipeline(Slow(lambda *_: float(hangs.wait(30))), PARAMS, Pool(), seed=0)  # type: ignore[arg-type]
    running.start(Dispatch(asked("a"), 1))
    time.sleep(0.02)
    began = time.monotonic()
    running.close()
    assert time.monotonic() - began < 1
    hangs.set()


def test_a_closed_pipeline_stops_after_the_group_in_progress():
    go, yielded = threading.Event(), list[int]()

    class Paused(Slow):
        def stream(self, *words: Any, **named: Any) -> Any:
            for place, rows in super().stream(*words, **named):
                yielded.append(place)
                yield place, rows
                go.wait(20)

    running = Pipeline(Paused(), PARAMS, Pool(), seed=0)  # type: ignore[arg-type]
    dispatch = Dispatch(asked(*NAMES), 1)
    running.start(dispatch)
    running.wait(lambda: 0 in dispatch.finished)
    threading.Timer(0.05, go.set).start()
    running.close()
    assert yielded == [0, 1]
    assert not dispatch.is_finished


def test_warnings_of_the_threads_reach_the_handler_of_the_run():
    said: list[str] = []

    def warn(*_: Any) -> float:
        notices.warn("slow today")
        return 0.0

    with notices.handled(lambda message, _: said.append(message)), pipeline(Slow(warn), Pool()) as running:
        finish(running, Dispatch(asked("a"), 1))
    assert said == ["slow today"]


def test_a_rollout_of_a_concurrent_sampler_is_scored_while_it_is_sampled():
    sampler, pool, before = Slow(lambda _, name: 0.02 * NAMES.index(name)), Pool(), threading.active_count()
    rollout = collect_shared(asked(*NAMES), sampler, PARAMS, pool, seed=0, step=4)  # type: ignore[arg-type]
    whole = collect(asked(*NAMES), sampler, PARAMS, Pool(), seed=0, step=4)  # type: ignore[arg-type]
    assert (rollout.groups, rollout.verdicts, rollout.problems) == (whole.groups, whole.verdicts, whole.problems)
    assert len(pool.sizes) > 1
    assert set(rollout.seconds) == {"sampling", "rewarding"}
    assert threading.active_count() <= before


def test_the_clock_counts_the_time_without_work(monkeypatch: pytest.MonkeyPatch):
    times: Iterator[float] = iter([0.0, 3.0, 4.0, 6.0, 7.0, 9.0, 10.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(times))
    clock = IdleClock()
    with clock.working(), clock.working():  # from 3 to 7
        pass
    assert clock.take() == 3 + 2
    assert clock.take() == 1
