"""Short names for data: the same as those on disk, and different for different data."""

import dataclasses
from typing import Any

import pytest

from gvpo.rollout.collect import EncodedProblem
from gvpo.rollout.fingerprints import (
    answer_rows,
    answered,
    asked,
    demonstration_rows,
    fingerprint,
    problem_rows,
    record_rows,
    token_rows,
)
from gvpo.types import Completion, Group, Problem

ITEMS = [
    EncodedProblem(Problem("1+1?", "a", {"answer": "2"}), (1, 2)),
    EncodedProblem(Problem([{"role": "user", "content": "1+2?"}], "b", {"answer": 3, "level": None}), (3,)),
]
RIGHT = Completion([5, 6], 1.0, text="2")
GROUPS = [
    Group([1, 2], [RIGHT, Completion([7], None, text="x", finish_reason="length")], id="a"),
    Group([3], [Completion([8], 0.5, text="3")], id="b"),
]
WRITTEN = [(ITEMS[0], RIGHT), (ITEMS[1], Completion([8], extras={"s": [-1.0]}))]


@pytest.mark.parametrize(
    ("found", "recorded"),
    [
        (fingerprint(problem_rows(ITEMS)), "5eae89632b00e4ccacc6ff3e8cc6cd38"),
        (fingerprint(answer_rows(GROUPS)), "7558434c3229c4208cdd5f536a2fa8de"),
        (fingerprint(demonstration_rows(WRITTEN)), "504644ff00385708002c8342a8283999"),
        (fingerprint(token_rows(GROUPS)), "e86807653afdb300048830ce51930aec"),
        (fingerprint(record_rows([{"prompt": "a", "x": float("nan")}])), "4cfd81d508f4d18d57477aafdd1de6fd"),
        (asked(ITEMS), "a15335dd6c1842db"),
        (answered({group.id: group.completions for group in GROUPS}), "aa3e4b3ae268ab7a"),
    ],
)
def test_runs_and_files_of_earlier_versions_can_be_resumed(found: str, recorded: str):
    assert found == recorded


def changed(item: EncodedProblem, prompt: Any = None, **problem: Any) -> EncodedProblem:
    return EncodedProblem(dataclasses.replace(item.problem, **problem), prompt or item.prompt)


OTHERS = [
    ITEMS[:1],
    ITEMS[::-1],
    [ITEMS[0], changed(ITEMS[1], id="c")],
    [ITEMS[0], changed(ITEMS[1], columns={"answer": 4, "level": None})],
    [ITEMS[0], changed(ITEMS[1], columns={"answer": 3})],
    [ITEMS[0], changed(ITEMS[1], prompt=(2,))],
]


def test_other_problems_labels_or_tokens_have_other_names():
    assert len({fingerprint(problem_rows(items)) for items in [ITEMS, *OTHERS]}) == len(OTHERS) + 1
    assert len({asked(items) for items in [ITEMS, *OTHERS]}) == len(OTHERS) + 1


def test_a_reward_changes_the_fingerprint_of_training_but_not_of_reference_scores():
    group = dataclasses.replace(GROUPS[1], completions=[Completion([8], 0.25, text="3")])
    assert fingerprint(answer_rows([group])) != fingerprint(answer_rows(GROUPS[1:]))
    assert fingerprint(token_rows([group])) == fingerprint(token_rows(GROUPS[1:]))
