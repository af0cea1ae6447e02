"""Tests of preference rows in every accepted form, and of errors for others."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from gvpo.data import as_group, is_comparison, is_pair, load_records, with_prompt
from gvpo.errors import DataError
from gvpo.types import PreferencePair

REAL = Path(os.environ.get("GVPO_TEST_DATA", Path(__file__).parents[3] / "shared" / "data")) / "preference"
USER, GOOD, BAD = (
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "ho"},
    {"role": "assistant", "content": "no"},
)
PAIR = {"prompt": "hi", "chosen": "ho", "rejected": "no"}
GROUP = {"prompt": "hi", "completions": ["ho", "no"], "rewards": [1.0, 0.0]}
MESSAGES = {"prompt": [USER], "completions": [[GOOD], [BAD]], "rewards": [1.0, 0.0]}

FORMS: dict[str, tuple[Any, dict[str, Any]]] = {
    "text": (PAIR, GROUP),
    "an object": (PreferencePair("hi", "ho", "no"), GROUP),
    "an object with a name": (
        PreferencePair("hi", "ho", "no", id="a", columns={"topic": "x"}),
        {**GROUP, "id": "a", "topic": "x"},
    ),
    "messages": ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, MESSAGES),
    "conversations without a prompt": ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, MESSAGES),
    "conversations beside the prompt's text": (
        {"prompt": "hi", "chosen": [USER, GOOD], "rejected": [USER, BAD], "score_chosen": 8.5, "score_rejected": 4},
        {**MESSAGES, "rewards": [8.5, 4.0]},
    ),
    "several turns": (
        {"chosen": [USER, GOOD, USER, GOOD], "rejected": [USER, GOOD, USER, BAD]},
        {**MESSAGES, "prompt": [USER, GOOD, USER]},
    ),
    "scores": ({"prompt": "hi", "completions": ["ho", "no"], "scores": [1.0, 0.0]}, GROUP),
    "ranks": (
        {"prompt": "hi", "completions": ["no", "ho", "eh"], "ranks": [3, 1, None]},
        {"prompt": "hi", "completions": ["no", "ho", "eh"], "rewards": [-3, -1, None]},
    ),
    "UltraFeedback": (
        {
            "instruction": "hi",
            "models": ["a", "b"],
            "completions": [
                {"model": "a", "response": "ho", "overall_score": 7.5, "critique": "good"},
                {"model": "b", "response": "no", "overall_score": 2.0},
            ],
        },
        {
            "prompt": "hi",
            "completions": ["ho", "no"],
            "rewards": [7.5, 2.0],
            "sources": ["a", "b"],
            "models": ["a", "b"],
        },
    ),
    "a group": (GROUP, GROUP),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_becomes_a_group(form: str):
    row, expected = FORMS[form]
    assert is_comparison(row)
    assert as_group(row) == expected
    json.dumps(as_group(row))


def test_rows_without_comparable_answers_are_not_comparisons():
    for row in ({"prompt": "hi"}, {"prompt": "hi", "completion": "ho"}, {"prompt": "hi", "completions": ["ho"]}, "hi"):
        assert not is_comparison(row)
    assert not is_pair(GROUP)


def test_supervised_training_uses_the_better_answer():
    assert with_prompt({**PAIR, "topic": "x"}) == {"prompt": "hi", "completion": "ho", "topic": "x"}
    assert with_prompt(PreferencePair("hi", "ho", "no", id="a"))["id"] == "a"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": "ho", "rejected": "no"}, "text and there is no `prompt`"),
        ({"chosen": [GOOD], "rejected": [BAD]}, "only the answer and there is no `prompt`"),
        ({**PAIR, "chosen": [GOOD]}, "give both answers as text, or both as messages"),
        ({**PAIR, "chosen": None}, "`chosen` is 'None'"),
        ({"chosen": [USER, GOOD, USER, GOOD], "rejected": [USER, BAD]}, "differ before their last message"),
        ({"chosen": [USER, GOOD, USER, GOOD], "rejected": [USER, BAD, USER, BAD]}, "differ before their last message"),
        ({**PAIR, "score_chosen": 1, "score_rejected": 2}, "`score_chosen` 1 is below `score_rejected` 2"),
        ({**PAIR, "score_chosen": 1}, "`score_rejected` is 'None'; give a number"),
        ({**PAIR, "score_chosen": "good", "score_rejected": 1}, "`score_chosen` is 'good'"),
        ({"prompt": "hi", "completion": "ho", "label": True}, "one answer and a `label`"),
        ({"messages": [USER, GOOD], "label": True}, "one answer and a `label`"),
        ({**GROUP, "ranks": [1, 2]}, "it has `rewards` and `ranks`; keep one"),
        ([1], "it is a list; rows are objects"),
    ],
)
def test_error_explains_rows_that_cannot_be_read(row: Any, message: str):
    with pytest.raises(DataError, match=message):
        as_group(row)


needs_data = pytest.mark.skipif(not REAL.is_dir(), reason="the real data are not here; GVPO_TEST_DATA names them")


@needs_data
@pytest.mark.parametrize(("name", "count"), [("instruction_pref_1100.jsonl", 1100), ("dpo_en_demo_300.jsonl", 300)])
def test_real_pairs_are_read(name: str, count: int):
    groups = [as_group(row) for row in load_records(REAL / name)]
    assert len(groups) == count
    assert all(group["rewards"] == [1.0, 0.0] and len(group["completions"]) == 2 for group in groups)


@needs_data
def test_real_answers_with_a_label_raise():
    with pytest.raises(DataError, match="comparing needs two answers"):
        as_group(load_records(REAL / "kto_en_demo_300.jsonl")[0])
