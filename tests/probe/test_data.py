"""Tests of rows as candidates: accepted forms, and errors for others."""

import json

import pytest

from gvpo.errors import DataError
from gvpo.probe.data import candidates, read_candidates
from gvpo.rollout.collect import Rollout
from gvpo.rollout.group_file import records
from gvpo.types import Completion, Group, Problem, Verdict

CHAT = [{"role": "user", "content": "?"}]
SAID = [{"role": "assistant", "content": "yes"}]


@pytest.mark.parametrize(
    ("row", "texts", "rewards"),
    [
        ({"completions": ["a", "b"], "rewards": [1, 0.5]}, ["a", "b"], [1.0, 0.5]),
        ({"completions": ["a", "b"], "rewards": [None, float("nan")]}, ["a", "b"], [None, None]),
        ({"completions": ["a", ""]}, ["a", ""], [None, None]),
        ({"completions": [SAID, "no"], "rewards": [True, 0]}, ["yes", "no"], [1.0, 0.0]),
        ({"completions": [[5, 6], [7]], "texts": ["five six", "seven"]}, ["five six", "seven"], [None, None]),
        ({"chosen": "good", "rejected": "bad"}, ["good", "bad"], [1.0, 0.0]),
        ({"chosen": SAID, "rejected": [{"role": "assistant", "content": "no"}]}, ["yes", "no"], [1.0, 0.0]),
        ({"chosen": "good", "rejected": "bad", "score_chosen": 4, "score_rejected": 2.5}, ["good", "bad"], [4.0, 2.5]),
        ({"completions": ["a", "b"], "scores": [3, None]}, ["a", "b"], [3.0, None]),
        ({"completions": ["a", "b"], "ranks": [2, 1]}, ["a", "b"], [-2.0, -1.0]),
        ({"completions": [{"response": "a", "overall_score": 7.5}]}, ["a"], [7.5]),
    ],
)
def test_forms(row, texts, rewards):
    (found,) = candidates([{"prompt": "p", **row}])
    assert list(found.completions) == texts
    assert list(found.rewards) == rewards
    assert found.row == {"prompt": "p", **row}


def test_the_prompt_of_a_row_may_be_in_another_column():
    conversations = {"chosen": [*CHAT, *SAID], "rejected": [*CHAT, {"role": "assistant", "content": "no"}]}
    judged = {"instruction": "p", "completions": [{"response": "a", "overall_score": 7.5}]}
    pair, judgement = candidates([conversations, judged])
    assert (pair.prompt, list(pair.completions), list(pair.rewards)) == (CHAT, ["yes", "no"], [1.0, 0.0])
    assert (judgement.prompt, list(judgement.completions), list(judgement.rewards)) == ("p", ["a"], [7.5])
    assert judgement.row == {"prompt": "p", **judged}


def test_messages_and_ids():
    found = candidates([{"prompt": CHAT, "id": "x", "completions": ["a"]}, {"prompt": "p", "completions": ["a"]}])
    assert [one.id for one in found] == ["x", "row-2"]
    assert found[0].prompt == CHAT


def test_groups_that_training_logs_are_read():
    group = Group([1], [Completion([4, 5], text="four"), Completion([6], text="six")], id="g")
    rollout = Rollout([group], [[Verdict(1.0), Verdict(None, reason="timeout")]], [Problem("p", "g", {"answer": "4"})])
    (found,) = candidates(list(records(rollout)))
    assert (found.id, list(found.completions), list(found.rewards)) == ("g", ["four", "six"], [1.0, None])
    assert found.row["answer"] == "4"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "row 2: there is no list `completions`"),
        ({"completions": []}, "row 2: `completions` is empty"),
        ({"completions": "text"}, "row 2: there is no list `completions`"),
        ({"chosen": "good"}, "row 2: there is no list `completions`"),
        ({"completions": ["a"], "rewards": [1, 0]}, "row 2: `rewards` has 2 values for 1 completions"),
        ({"completions": ["a"], "rewards": 1}, "row 2: `rewards` has an int for 1 completions"),
        ({"completions": ["a"], "rewards": ["1"]}, "row 2: a reward is '1' .str.; give numbers"),
        ({"completions": ["a"], "rewards": [float("inf")]}, "row 2: a reward is infinite"),
        ({"completions": [[5, 6]]}, "token ids together with the column `texts`"),
        ({"prompt": [5, 6], "completions": ["a"]}, "row 2: the prompt is token ids, and features are of texts"),
        ({"completions": ["a"], "rewards": [1], "ranks": [1]}, "row 2: it has `rewards` and `ranks`"),
        ({"completion": "a", "label": True}, "row 2: it has one answer and a `label`"),
        ({"completions": [None]}, "row 2: a completion is 'None'"),
    ],
)
def test_error_names_an_invalid_row(row, message):
    with pytest.raises(DataError, match=message):
        candidates([{"prompt": "p", "completions": ["a"]}, {"prompt": "p", **row}])


def test_no_rows(tmp_path):
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DataError, match="the dataset is empty"):
        read_candidates(tmp_path / "empty.jsonl")
    with pytest.raises(DataError, match="there is no file"):
        read_candidates(tmp_path / "gone.jsonl")


def test_a_file(tmp_path):
    path = tmp_path / "groups.jsonl"
    path.write_text(json.dumps({"prompt": "p", "completions": ["a"], "rewards": [1]}) + "\n")
    assert read_candidates(path)[0].completions == ["a"]
