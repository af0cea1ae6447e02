"""Logged completions by prompt."""

from collections import Counter

import pytest

from gvpo.errors import DataError, GvpoWarning
from gvpo.rollout.collect import EncodedProblem
from gvpo.rollout.given.logged import LoggedRows
from gvpo.types import Completion, Group, Problem

GROUPS = [
    Group([1], [Completion([token], 0.5, sampler_logprobs=[-1.0], source="someone") for token in (10, 11, 12)], id="a"),
    Group([2], [Completion([20], 1.0)], id="b"),
    Group([1], [Completion([13]), Completion([14], finish_reason="abort")], id="c"),
]


def item(prompt: int, name: str = "x") -> EncodedProblem:
    return EncodedProblem(Problem("?", name), (prompt,))


def tokens(source: LoggedRows, prompt: int, name: str = "x", step: int = 1) -> list[int]:
    return [row.tokens[0] for row in source.rows([item(prompt)], [name], step)[0]]


def test_rows_of_equal_prompts_are_joined_and_lose_their_rewards():
    rows = LoggedRows(GROUPS, 4, seed=0).rows([item(1), item(2), item(3)], ["x", "y", "z"], 1)
    assert [[row.tokens[0] for row in found] for found in rows] == [[10, 11, 12, 13], [20], []]
    assert {(row.source, row.reward, row.version) for found in rows for row in found} == {("logged", None, None)}
    assert rows[0][0].sampler_logprobs == [-1.0]


def test_the_choice_depends_on_seed_step_and_name_only():
    source, again = LoggedRows(GROUPS, 2, seed=0), LoggedRows(GROUPS, 2, seed=0)
    wide = again.rows([item(2), item(1), item(1)], ["other", "x", "x#2"], 5)
    assert [row.tokens[0] for row in wide[1]] == tokens(source, 1, step=5)
    drawn = {
        tuple(tokens(LoggedRows(GROUPS, 2, seed=seed), 1, name, step))
        for seed in range(3)
        for name in "xy"
        for step in range(4)
    }
    assert len(drawn) > 3


def test_every_row_is_chosen_equally_often_and_none_twice():
    source = LoggedRows(GROUPS, 2, seed=0)
    counts: Counter[int] = Counter()
    for step in range(1000):
        chosen = tokens(source, 1, step=step)
        assert len(set(chosen)) == 2
        counts.update(chosen)
    assert all(440 < counts[token] < 560 for token in (10, 11, 12, 13))  # 4 standard deviations


def test_prompts_without_rows_are_noticed_and_a_foreign_file_is_refused():
    source = LoggedRows(GROUPS, 2, seed=0)
    source.check([item(1)])
    with pytest.warns(GvpoWarning, match="fewer than 2 completions for 2 of 3 prompts"):
        source.check([item(1), item(2), item(3)])
    with pytest.raises(DataError, match=r"no prompt of rollout\.logged_path is a training prompt"):
        source.check([item(3)])
