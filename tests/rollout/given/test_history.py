"""This run's own earlier completions."""

import random
from typing import Any

import pytest

from gvpo.rollout.collect import EncodedProblem, Rollout
from gvpo.rollout.given.history import History
from gvpo.types import Completion, Group, Problem, Verdict

NAMES = ["a", "b", "c", "d"]


def item(name: str) -> EncodedProblem:
    return EncodedProblem(Problem(f"{name}?", name), (1,))


def live(step: int, name: str, place: int, **more: Any) -> Completion:
    given = {"reward": 0.5, "sampler_logprobs": [-0.25], "version": step - 1, "text": f"{step}{name}{place}", **more}
    return Completion([place], **given)


def rollout(step: int, *names: str, rows: int = 3) -> Rollout:
    """Return groups of live rows and a history row in front."""
    groups = [
        Group([1], [live(1, name, 9, source="history"), *(live(step, name, place) for place in range(rows))], id=name)
        for name in names
    ]
    verdicts = [[Verdict(0.5)] * (rows + 1) for _ in groups]
    return Rollout(groups, verdicts, [Problem(f"{name}?", name) for name in names])


def texts(history: History, name: str, step: int) -> list[str | None]:
    return [row.text for row, _ in history.rows([item(name)], step)[0]]


def test_the_newest_live_rows_come_first_and_keep_what_they_had():
    history = History(4)
    assert texts(history, "a", 1) == []
    history.note(rollout(1, "a", "b"), 1)
    history.note(rollout(2, "a"), 2)
    assert texts(history, "a", 3) == ["2a0", "2a1", "2a2", "1a0"]
    ((row, verdict),) = history.rows([item("b")], 3)[0][:1]
    assert (row.source, row.version, row.reward, row.sampler_logprobs) == ("history", 0, 0.5, [-0.25])
    assert verdict == Verdict(0.5)


def test_rows_without_a_reward_and_aborted_rows_are_not_kept():
    history = History(4)
    rows = [live(1, "a", 0, reward=None), live(1, "a", 1, finish_reason="abort"), live(1, "a", 2)]
    history.note(Rollout([Group([1], rows, id="a")], [[Verdict(None)] * 3], [Problem("a?", "a")]), 1)
    assert texts(history, "a", 2) == ["1a2"]


def test_rows_over_the_maximum_age_are_dropped():
    history = History(4, max_age=2)
    history.note(rollout(1, "a"), 1)
    assert texts(history, "a", 3) == ["1a0", "1a1", "1a2"]  # version 0 in step 3 has age 2
    assert texts(history, "a", 4) == []
    history.note(rollout(3, "b"), 3)
    assert history.state_dict()["problems"] == ["b"] * 3


def test_the_oldest_rows_over_the_capacity_are_dropped():
    history = History(2, capacity=5)
    for step, name in enumerate(["a", "b", "c"], start=1):
        history.note(rollout(step, name), step)
    assert [texts(history, name, 4) for name in "abc"] == [["1a0"], ["2b0", "2b1"], ["3c0", "3c1"]]


@pytest.mark.parametrize(("max_age", "capacity"), [(None, None), (3, None), (None, 7), (4, 6)])
def test_it_equals_a_list_of_all_rows(max_age: int | None, capacity: int | None):
    """Compare it with a list of every row, of which the bounds are applied after each step, as is documented."""
    draws, per_group = random.Random(0), 4
    history, every = History(per_group, max_age=max_age, capacity=capacity), []
    for step in range(1, 30):
        for name in NAMES:
            own = [row for row in every if row[1] == name]
            own.sort(key=lambda row: (-row[0], row[2]))
            young = [row for row in own if max_age is None or step - row[0] <= max_age]
            assert texts(history, name, step) == [f"{s}{n}{place}" for s, n, place in young][:per_group]
        names = sorted(draws.sample(NAMES, 2))
        history.note(rollout(step, *names), step)
        every += [(step, name, place) for name in names for place in range(3)]
        kept = []
        for name in NAMES:
            own = sorted((row for row in every if row[1] == name), key=lambda row: (-row[0], row[2]))
            kept += [row for row in own if max_age is None or step + 1 - row[0] <= max_age][:per_group]
        kept = sorted(kept, key=lambda row: (-row[0], _place(kept, row), row[1]))
        every = kept[:capacity]


def _place(kept: list[tuple[int, str, int]], row: tuple[int, str, int]) -> int:
    return [other for other in kept if other[1] == row[1]].index(row)


def test_a_restored_history_continues_as_the_first_one():
    first, second = History(4, max_age=5, capacity=9), History(4, max_age=5, capacity=9)
    for step in range(1, 6):
        first.note(rollout(step, NAMES[step % 4], NAMES[(step + 1) % 4]), step)
    second.load_state_dict(first.state_dict())
    for step in range(6, 9):
        for history in (first, second):
            history.note(rollout(step, NAMES[step % 4], NAMES[(step + 1) % 4]), step)
        assert [first.rows([item(name)], step + 1) for name in NAMES] == [
            second.rows([item(name)], step + 1) for name in NAMES
        ]
