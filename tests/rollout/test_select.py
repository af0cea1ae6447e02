"""Selection of training data from scored groups."""

from typing import Any

import pytest

from gvpo.errors import DataError
from gvpo.rollout.select import select


def row(name: str, *samples: tuple[str, float | None], **more: Any) -> dict[str, Any]:
    texts = [text for text, _ in samples]
    return {
        "id": name,
        "prompt": f"{name}?",
        "answer": name,
        "completions": [[1]] * len(samples),
        "texts": texts,
        "rewards": [reward for _, reward in samples],
        "reward_parts": [{}] * len(samples),
        "reasons": [""] * len(samples),
        "finish_reasons": ["length" if text.endswith("...") else "stop" for text in texts],
        "sources": ["live"] * len(samples),
        "sampler_logprobs": [[-1.0]] * len(samples),
        **more,
    }


ROWS = [
    row("a", ("x", 0.0), ("y", 1.0), ("y", 1.0), ("z...", 1.0), ("w", 0.9), ("", 1.0)),
    row("b", ("x", 0.2), ("y", 0.1), ("u", 0.2)),
    row("c", ("x", None), ("y", 1.0)),
]


def taken(name: str, **settings: Any) -> list[tuple[str, str]]:
    """Return (problem, completion) of each selected answer."""
    return [(found["prompt"].rstrip("?"), found["completion"]) for found in select(name, ROWS, **settings)]


def test_right_answers_are_different_finished_and_above_the_limit():
    assert taken("right") == [("a", "y"), ("a", "w"), ("c", "y")]
    assert taken("right", most=1) == [("a", "y"), ("c", "y")]
    assert taken("right", above=0.95) == [("a", "y"), ("c", "y")]
    assert taken("right", above=0.15) == [("a", "y"), ("a", "w"), ("b", "x"), ("b", "u"), ("c", "y")]


def test_the_best_of_n_is_the_first_with_the_highest_reward_however_low():
    assert taken("best") == [("a", "y"), ("b", "x"), ("c", "y")]
    assert taken("best", most=2) == [("a", "y"), ("a", "w"), ("b", "x"), ("b", "u"), ("c", "y")]
    assert taken("best", above=0.5) == [("a", "y"), ("c", "y")]


def test_answers_have_unique_ids_as_training_requires():
    for name in ("right", "best"):
        found = select(name, ROWS, above=0.15, most=3)
        assert [answer["id"] for answer in found] == ["a", "a#2", "b", "b#2", "c"]


def test_answers_keep_the_problem_and_drop_what_was_per_completion():
    assert select("best", ROWS[:1]) == [{"id": "a", "prompt": "a?", "answer": "a", "completion": "y", "reward": 1.0}]


@pytest.mark.parametrize(("above", "names"), [(None, ["a"]), (0.15, ["a", "b"]), (2.0, [])])
def test_mixed_groups_have_both_kinds_and_stay_whole(above: float | None, names: list[str]):
    found = select("mixed", ROWS, above=above)
    assert [group["id"] for group in found] == names
    assert all(group in ROWS for group in found)


def test_episodes_are_selected_as_whole_groups_only():
    turn = {"start": 0, "stop": 1, "end": 1}
    group = row("a", ("x", 0.0), ("y", 1.0), episode_turns=[[turn], [turn]])
    assert select("mixed", [group]) == [group]
    with pytest.raises(DataError, match="the completions are episodes"):
        select("right", [group])
