"""The chosen answer, the answers that it is compared with, its weak negatives, and repeatable random choices."""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from gvpo.errors import DataError, GvpoWarning
from gvpo.rollout.logged_groups import LoggedGroup, logged_groups
from gvpo.rollout.preferences import Comparison, comparisons, with_weak_negatives
from gvpo.rollout.sources.preferences import PreferenceSource, drawn_by_softmax
from gvpo.types import Group
from tests.training.toy import config, tokenizer


def read(*rows: tuple[str, Sequence[str], Sequence[float | None]]) -> list[LoggedGroup]:
    records = [{"prompt": p, "completions": list(c), "rewards": list(r)} for p, c, r in rows]
    return logged_groups(config(), tokenizer(), records, source="data")


def texts(group: Group) -> list[tuple[str | None, str]]:
    return [(row.text, row.extras["role"]) for row in group.completions]


def source(
    groups: Sequence[LoggedGroup], *, weak: int = 0, softmax: bool = False, per_step: int = 1
) -> PreferenceSource:
    return PreferenceSource(with_weak_negatives(groups, weak, seed=0), per_step, 0, softmax=softmax)


def test_the_best_is_chosen_and_only_worse_answers_are_negatives():
    groups = comparisons(read(("1", ["1", "2", "3", "4", "5"], [0.5, 2.0, None, 2.0, 0.0])), scores_differ=True)
    rollout = source(groups).rollout(1)
    assert texts(rollout.groups[0]) == [("2", "chosen"), ("1", "strong"), ("5", "strong")]
    assert rollout.verdicts == []
    assert rollout.problems[0].prompt == "1"


def test_an_aborted_answer_is_neither_chosen_nor_a_negative():
    row = {"prompt": "1", "completions": ["1", "2", "3"], "rewards": [1.0, 0.5, 0.0]}
    record = {**row, "finish_reasons": ["abort", "stop", "stop"]}
    groups = comparisons(logged_groups(config(), tokenizer(), [record], source="data"), scores_differ=True)
    assert texts(source(groups).rollout(1).groups[0]) == [("2", "chosen"), ("3", "strong")]


def test_the_same_answer_twice_counts_once():
    groups = comparisons(read(("1", ["1", "1", "2"], [1.0, 0.0, 0.5])), scores_differ=True)
    assert texts(source(groups).rollout(1).groups[0]) == [("1", "chosen"), ("2", "strong")]


def test_rows_without_a_comparison_are_skipped_and_counted():
    rows = read(("1", ["1", "1"], [1, 0]), ("2", ["1", "2"], [1, 0]), ("3", ["1", "2"], [1, 1]), ("4", ["1"], [1]))
    with pytest.warns(GvpoWarning, match=r"3 of 4 rows have no two different answers .* the first is 'row-1'"):
        kept = comparisons(rows, scores_differ=True)
    assert [logged.group.id for logged in kept] == ["row-2"]
    with pytest.warns(GvpoWarning, match="2 of 4 rows"):
        kept = comparisons(rows, scores_differ=False)
    assert [logged.group.id for logged in kept] == ["row-2", "row-3"]


def test_no_comparison_at_all_is_an_error():
    with pytest.raises(DataError, match="no row can be trained on"):
        comparisons(read(("1", ["1", "1"], [1, 0])), scores_differ=True)


def test_a_drawn_positive_has_all_others_as_negatives_and_is_redrawn_in_each_step():
    groups = read(("1", ["1", "2", "3"], [1.0, 1.0, 0.0]))
    drawn = Counter()
    drawing = source(groups, softmax=True)
    for step in range(1, 401):
        (group,) = drawing.rollout(step).groups
        (chosen, role), *others = texts(group)
        assert role == "chosen"
        assert sorted(other for other, _ in others) == sorted({"1", "2", "3"} - {chosen})
        assert {other for _, other in others} == {"strong"}
        drawn[chosen] += 1
    shares = np.exp([1.0, 1.0, 0.0]) / np.exp([1.0, 1.0, 0.0]).sum()
    for answer, share in zip("123", shares, strict=True):
        assert drawn[answer] / 400 == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / 400))
    again = [texts(source(groups, softmax=True).rollout(step).groups[0]) for step in range(1, 20)]
    assert again == [texts(drawing.rollout(step).groups[0]) for step in range(1, 20)]


def test_a_draw_follows_the_shares():
    scores = [0.0, float(np.log(2.0)), 1000.0 - 1000.0]  # shares 1/4, 2/4, 1/4
    places = [drawn_by_softmax(scores, u) for u in (0.0, 0.2499, 0.25, 0.7499, 0.75, 1 - 2**-53)]
    assert places == [0, 0, 1, 1, 2, 2]
    assert drawn_by_softmax([0.0, 1000.0], 0.0) == 1


ROWS = [(str(digit), [f"{digit}{digit}", f"{digit}0"], [1.0, 0.0]) for digit in range(1, 9)]


def test_weak_negatives_come_from_other_prompts_and_are_all_different():
    groups = read(*ROWS)
    for each in with_weak_negatives(groups, 5, seed=0):
        own = {row.text for row in each.logged.group.completions}
        weak = [row.text for row in each.weak]
        assert len(set(weak)) == 5
        assert not own & set(weak)
        assert all(row.reward is None and row.source.startswith("weak: an answer to row-") for row in each.weak)


def test_they_depend_only_on_the_seed_and_the_prompts_name():
    groups = read(*ROWS)

    def drawn(given: Sequence[LoggedGroup], seed: int) -> dict[str, list[str | None]]:
        return {c.logged.group.id: [row.text for row in c.weak] for c in with_weak_negatives(given, 3, seed=seed)}

    assert drawn(groups, 0) == drawn(read(*ROWS), 0)
    assert drawn(groups, 0) != drawn(groups, 1)
    assert len({tuple(texts) for texts in drawn(groups, 0).values()}) > 1


def test_answers_to_the_same_prompt_in_any_row_are_not_weak_negatives():
    same = [("1", ["1", "2"], [1.0, 0.0]), ("1", ["3", "4"], [1.0, 0.0]), ("2", ["1", "3", "5", "6"], [1, 0, 0, 0])]
    first, second, third = with_weak_negatives(read(*same), 2, seed=0)
    assert {row.text for row in first.weak} == {row.text for row in second.weak} == {"5", "6"}
    assert {row.text for row in third.weak} == {"2", "4"}


def test_an_answer_that_does_not_fit_after_the_prompt_is_not_a_weak_negative():
    rows = [("1" * 6, ["1", "2"], [1, 0]), ("2", ["3" * 5, "4" * 3], [1, 0]), ("3", ["5", "6"], [1, 0])]
    first, *_ = with_weak_negatives(read(*rows), 3, seed=0, context=10)  # room for 4, the end token included
    assert {row.text for row in first.weak} == {"444", "5", "6"}


def test_more_weak_negatives_than_there_are_is_an_error():
    with pytest.raises(DataError, match=r"data.weak_negatives=15, but 'row-1' has only 14 answers"):
        with_weak_negatives(read(*ROWS), 15, seed=0)


def test_all_weak_negatives_are_equally_likely():
    counts: Counter[str | None] = Counter()
    groups = read(*ROWS)
    for seed in range(200):
        counts.update(row.text for row in with_weak_negatives(groups, 2, seed=seed)[0].weak)
    assert len(counts) == 14
    assert max(abs(count - 400 / 14) for count in counts.values()) < 4 * np.sqrt(400 / 14)


def test_weak_rows_follow_the_answers_and_each_row_keeps_the_log_probs_that_are_attached():
    made = PreferenceSource(with_weak_negatives(read(*ROWS[:3]), 2, seed=0), 3, 0, softmax=False)
    number = itertools.count()
    marked = [
        replace(group, completions=[replace(row, ref_logprobs=[next(number)] * 3) for row in group.completions])
        for group in made.groups
    ]
    made.replace(marked)
    expected = {group.id: [(row.text, row.ref_logprobs) for row in group.completions] for group in marked}
    for group in made.rollout(1).groups:
        assert [role for _, role in texts(group)] == ["chosen", "strong", "weak", "weak"]
        assert [(row.text, row.ref_logprobs) for row in group.completions] == expected[group.id]


def test_epochs_take_every_prompt_once_and_a_second_visit_has_its_own_name():
    made = PreferenceSource([Comparison(logged) for logged in read(*ROWS[:3])], 3, 0, softmax=False)
    assert sorted(group.id for group in made.rollout(1).groups) == ["row-1", "row-2", "row-3"]
    twice = PreferenceSource([Comparison(logged) for logged in read(*ROWS[:1])], 2, 0, softmax=False)
    assert [group.id for group in twice.rollout(1).groups] == ["row-1", "row-1#2"]
