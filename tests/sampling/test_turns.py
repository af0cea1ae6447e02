"""Tests that an update waits for the sampling in progress and precedes the sampling that is asked for later."""

import threading
import time
from collections.abc import Callable

import pytest

from gvpo.sampling.turns import Turns


def started(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_an_update_waits_for_the_sampling_in_progress_and_precedes_later_sampling():
    turns, events = Turns(), list[str]()

    def sample(name: str) -> None:
        with turns.sampling():
            events.append(name)

    def update() -> None:
        with turns.updating():
            events.append("update")

    with turns.sampling():
        updating = started(update)
        until(lambda: turns._updates == 1)
        later = []
        for name in ("first", "second"):
            later.append(started(lambda name=name: sample(name)))  # type: ignore[misc]
            until(lambda: len(turns._samplers) == len(later))
        time.sleep(0.02)
        assert events == []
    for thread in (updating, *later):
        thread.join(5)
    assert events == ["update", "first", "second"]


@pytest.mark.parametrize("at_once", [1, 3])
def test_at_most_so_many_threads_sample_at_once(at_once: int):
    turns, now, most = Turns(at_once), 0, 0
    lock = threading.Lock()

    def sample() -> None:
        nonlocal now, most
        with turns.sampling():
            with lock:
                now += 1
                most = max(most, now)
            time.sleep(0.02)
            with lock:
                now -= 1

    for thread in [started(sample) for _ in range(5)]:
        thread.join(5)
    assert most == at_once


def test_a_turn_ends_with_an_error():
    turns = Turns()
    for turn in (turns.sampling, turns.updating, turns.sampling):
        with pytest.raises(ValueError, match="broken"), turn():
            raise ValueError("broken")
