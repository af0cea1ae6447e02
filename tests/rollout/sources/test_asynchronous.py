"""Tests of asynchronous groups: their order, their age, late groups, and what a checkpoint contains."""

import io
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import pytest
import torch

from gvpo.errors import CheckpointError, EngineError
from gvpo.rollout.collect import EncodedProblem, Rollout
from gvpo.rollout.order import ShuffledOrder
from gvpo.rollout.pipeline import Pipeline
from gvpo.rollout.sources.asynchronous import AsynchronousSource, Bounds
from tests.rollout.scripted import asked
from tests.rollout.slow import PARAMS, Pool, Slow

PROBLEMS = asked(*"abcdefghijk")
PER_STEP, STEPS = 3, 8
Order = ShuffledOrder[EncodedProblem]


@contextmanager
def source(
    sampler: Slow, stale: int = 1, late: int = 0, *, state: Any = None, reference: bool = False, pool: Any = None
) -> Iterator[AsynchronousSource]:
    bounds, pool = Bounds(STEPS, stale, late), pool or Pool()
    pipeline = Pipeline(sampler, PARAMS, pool, seed=0, threads=bounds.ahead + 1 if sampler.concurrent else 1)
    problems = {item.problem.id: item for item in PROBLEMS}
    made = AsynchronousSource(order(), pipeline, pool, problems, bounds, recorded_reference=reference)
    if state is not None:
        made.load_state_dict(state)
    try:
        yield made
    finally:
        made.close()


def order() -> Order:
    return ShuffledOrder(PROBLEMS, PER_STEP, seed=0)


def expected(step: int) -> list[str]:
    return [item.problem.id for item in order().at(step)]


def ids(rollout: Rollout) -> list[str]:
    return [problem.id for problem in rollout.problems]


def texts(rollout: Rollout) -> list[str]:
    return [str(group.completions[0].text) for group in rollout.groups]


def ages(rollout: Rollout, step: int) -> list[int]:
    return [age for group in rollout.groups for row in group.completions if (age := row.age(step)) is not None]


def trained(made: AsynchronousSource, sampler: Slow, steps: Sequence[int]) -> Iterator[tuple[int, Rollout]]:
    for step in steps:
        rollout = made.rollout(step)
        assert made.rollout(step) is rollout
        yield step, rollout
        sampler.version = step
        made.commit(step)


@pytest.mark.parametrize("concurrent", [True, False])
@pytest.mark.parametrize("stale", [0, 1, 3])
def test_each_step_has_its_own_groups_of_allowed_age_whatever_the_latencies_are(stale: int, concurrent: bool):
    dice = random.Random(stale)
    sampler = Slow(lambda *_: dice.uniform(0, 0.01), concurrent=concurrent)
    with source(sampler, stale) as made:
        for step, rollout in trained(made, sampler, range(1, STEPS + 1)):
            assert texts(rollout) == [f"{step} {name}" for name in expected(step)]
            assert max(ages(rollout, step)) <= stale
            time.sleep(dice.uniform(0, 0.01))
    assert list(sampler.asked) == sorted(sampler.asked)  # in the order of the steps
    assert max(sampler.asked) == STEPS


def test_no_more_is_dispatched_than_may_be_used():
    sampler = Slow()
    with source(sampler, stale=2) as made:
        for step, _ in trained(made, sampler, [1, 2, 3]):
            time.sleep(0.02)
            assert max(sampler.asked) == step + 2


def test_later_groups_that_arrive_first_are_used_later():
    sampler = Slow(lambda step, _: {1: 0.1, 2: 0.0}.get(step, 0.0))
    with source(sampler, stale=1) as made:
        found = [texts(rollout) for _, rollout in trained(made, sampler, [1, 2])]
    assert found == [[f"{step} {name}" for name in expected(step)] for step in (1, 2)]


def test_an_engine_that_keeps_old_weights_is_found():
    with source(Slow(), stale=1) as made:
        for step in (1, 2):
            made.rollout(step)
            made.commit(step)
        with pytest.raises(EngineError, match="a completion of step 3 is 2 steps old"):
            made.rollout(3)


def in_background(work: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def held(step: int, place: int) -> tuple[Slow, threading.Event, str]:
    """Return a sampler that yields one group of a step only after an event."""
    released, slow = threading.Event(), expected(step)[place]

    class Holding(Slow):
        def stream(self, requests: Any, params: Any, *, seed: int, step: int) -> Any:
            groups = dict(super().stream(requests, params, seed=seed, step=step))
            last = [index for index, request in enumerate(requests) if (step, request.id) == (first, slow)]
            yield from ((index, rows) for index, rows in groups.items() if index not in last)
            for index in last:
                released.wait(20)
                yield index, groups[index]

    first = step
    return Holding(), released, slow


def test_a_step_waits_for_a_slow_group():
    sampler, released, _ = held(1, 1)
    with source(sampler, stale=2) as made:
        waiting = in_background(lambda: made.rollout(1))
        waiting.join(0.1)
        assert waiting.is_alive()
        released.set()
        waiting.join(5)
        assert texts(made.rollout(1)) == [f"1 {name}" for name in expected(1)]


def test_a_late_group_is_trained_on_in_a_later_step_before_the_groups_of_that_step():
    sampler, released, slow = held(1, 1)
    with source(sampler, stale=2, late=1) as made:
        steps = trained(made, sampler, range(1, STEPS + 1))
        _, first = next(steps)
        assert texts(first) == [f"1 {name}" for name in expected(1) if name != slow]
        assert first.metrics["groups/late"] == 1
        assert 1 <= first.metrics["groups/in_flight"] <= 1 + PER_STEP
        released.set()
        made._pipeline.wait(lambda: made._open[0].dispatch.is_finished)
        _, second = next(steps)
        assert texts(second) == [f"1 {slow}", *(f"2 {name}" for name in expected(2))]
        assert len({group.id for group in second.groups}) == 1 + PER_STEP
        assert second.metrics["groups/late"] == 0
        everything = [*texts(first), *texts(second), *(text for _, rollout in steps for text in texts(rollout))]
    assert sorted(everything) == sorted(f"{step} {name}" for step in range(1, STEPS + 1) for name in expected(step))


def test_a_late_group_is_waited_for_before_it_is_too_old():
    sampler, released, slow = held(1, 0)
    with source(sampler, stale=2, late=1) as made:
        steps = trained(made, sampler, [1, 2, 3])
        assert [len(next(steps)[1].groups) for _ in range(2)] == [PER_STEP - 1, PER_STEP]
        last: list[Rollout] = []
        waiting = in_background(lambda: last.append(next(steps)[1]))
        waiting.join(0.1)
        assert waiting.is_alive()
        released.set()
        waiting.join(5)
    assert texts(last[0])[0] == f"1 {slow}"
    assert max(ages(last[0], 3)) == 2


def test_the_last_step_waits_for_all_groups():
    sampler, released, slow = held(STEPS, 0)
    with source(sampler, stale=2, late=2) as made:
        steps = trained(made, sampler, range(1, STEPS + 1))
        for _ in range(STEPS - 1):
            next(steps)
        last: list[Rollout] = []
        waiting = in_background(lambda: last.append(next(steps)[1]))
        waiting.join(0.1)
        assert waiting.is_alive()
        released.set()
        waiting.join(5)
    assert f"{STEPS} {slow}" in texts(last[0])


def stored(state: Any) -> Any:
    """Return a state as a checkpoint returns it."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("late", [0, 1])
def test_a_checkpoint_has_the_finished_groups_and_the_others_are_sampled_again(late: int):
    sampler, released, slow = held(2, 1)
    with source(sampler, stale=2, late=late) as made:
        found = [texts(rollout) for _, rollout in trained(made, sampler, [1])]
        made._pipeline.wait(lambda: len(made._open[0].dispatch.finished) == PER_STEP - 1)
        state = stored(made.state_dict())
        released.set()
    again = Slow()
    again.version = 1
    with source(again, stale=2, late=late, state=state) as made:
        found += [texts(rollout) for _, rollout in trained(made, again, range(2, STEPS + 1))]
    assert again.asked[2] == [slow]
    everything = [[f"{step} {name}" for name in expected(step)] for step in range(1, STEPS + 1)]
    assert sorted(chain(*found)) == sorted(chain(*everything))
    assert late or found == everything


def test_a_checkpoint_knows_which_late_groups_are_left():
    sampler, released, slow = held(1, 1)
    with source(sampler, stale=2, late=1) as made:
        (first,) = (texts(rollout) for _, rollout in trained(made, sampler, [1]))
        state = stored(made.state_dict())
        released.set()
    assert state["dispatched"][0]["names"] == [slow]
    again = Slow()
    again.version = 1
    with source(again, stale=2, late=1, state=state) as made:
        rest = [text for _, rollout in trained(made, again, range(2, STEPS + 1)) for text in texts(rollout)]
    assert again.asked[1] == [slow]
    everything = [f"{step} {name}" for step in range(1, STEPS + 1) for name in expected(step)]
    assert sorted([*first, *rest]) == sorted(everything)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.clear(), "no groups of an asynchronous run"),
        (lambda state: state["dispatched"][0]["names"].append("z"), "has no prompt 'z' in step 2"),
    ],
)
def test_a_state_of_another_run_is_refused(change: Callable[[Any], None], message: str):
    sampler = Slow()
    with source(sampler) as made:
        for _ in trained(made, sampler, [1]):
            made._pipeline.wait(lambda: made._open[1].dispatch.is_finished)
        state = made.state_dict()
    change(state)
    with pytest.raises(CheckpointError, match=message), source(Slow(), state=state):
        pass


def test_the_recorded_log_probs_are_the_reference():
    with source(Slow(), reference=True) as made:
        rows = [row for group in made.rollout(1).groups for row in group.completions]
    assert [row.ref_logprobs for row in rows] == [row.sampler_logprobs for row in rows] == [[-1.0]] * len(rows)


def test_idle_seconds_of_trainer_and_sampler_are_counted():
    sampler = Slow(lambda *_: 0.05, concurrent=False)
    with source(sampler, stale=1) as made:
        time.sleep(0.3)  # it does not count
        seconds = []
        for _, rollout in trained(made, sampler, [1, 2, 3]):
            seconds.append(rollout.seconds)
            made._pipeline.wait(lambda: all(each.dispatch.is_finished for each in made._open))
            time.sleep(0.1)
    assert seconds[0]["trainer_idle"] > 0.03 > seconds[1]["trainer_idle"]
    assert seconds[0]["sampler_idle"] < 0.3
    assert seconds[2]["sampler_idle"] >= 0.1
    assert all(each["sampling"] >= 0.05 for each in seconds)
