"""Tests of rows with several completions: every command reads every form in the same way."""

from collections.abc import Callable
from typing import Any

import pytest

from gvpo.data import group_record, load_records, read_groups, write_groups
from gvpo.errors import DataError
from gvpo.evaluation.responses import Responses
from gvpo.probe.data import candidates
from gvpo.rollout.logged_groups import logged_groups
from gvpo.rollout.select import select
from gvpo.types import Completion, Group, Problem, Verdict
from tests.training.toy import config, tokenizer

Rows = list[tuple[str, float | None]]


def said(content: Any, role: str = "assistant", **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def ids(text: str) -> list[int]:
    return list(tokenizer()(text).input_ids)


ASKED = said("1", "user")
REWARDS = {"rewards": [1, 0]}
SCORED: Rows = [("1", 1.0), ("2", 0.0)]


def train(row: dict[str, Any]) -> Rows:
    (logged,) = logged_groups(config(), tokenizer(), [row], source="file")
    return [(str(completion.text), completion.reward) for completion in logged.group.completions]


def probe(row: dict[str, Any]) -> Rows:
    (found,) = candidates([row])
    return list(zip(found.completions, found.rewards, strict=True))


def evaluate(row: dict[str, Any]) -> list[str]:
    answered = Responses.of_rows([row], [Problem("1", "row-1")], "file").sample(
        [Problem("1", "row-1")], None, seed=0, step=0
    )  # type: ignore[arg-type, list-item]
    return [str(completion.text) for completion in answered[0]]


def best(row: dict[str, Any]) -> Rows:
    return [(found["completion"], found["reward"]) for found in select("best", [row], most=9)]


COMMANDS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "train": train,
    "probe": probe,
    "eval": evaluate,
    "select": best,
}


def read_by(command: str, row: dict[str, Any]) -> Any:
    return COMMANDS[command]({"prompt": "1", **row})


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "completions",
    [
        ["1", "2"],
        [[said("1")], [said("2")]],
        [said("1"), said("2")],
        ["1", [said("2")]],
        [[said([{"type": "text", "text": "1"}])], "2"],
        [[ASKED, said("1")], [ASKED, said("2")]],
        [[said([{"type": "text", "text": "1"}], "user"), said("1")], "2"],
        [{"response": "1", "overall_score": 1}, {"response": "2", "overall_score": 0}],
    ],
)
def test_forms_of_a_completion(completions: Any, command: str):
    rewards = {} if "response" in completions[0] else REWARDS
    expected = [text for text, _ in SCORED] if command == "eval" else SCORED
    assert read_by(command, {"completions": completions, **rewards}) == expected


@pytest.mark.parametrize("command", COMMANDS)
def test_token_ids_with_their_texts(command: str):
    row = {"completions": [ids("1"), ids("2")], "texts": ["1", "2"], **REWARDS}
    assert read_by(command, row) == (["1", "2"] if command == "eval" else SCORED)


@pytest.mark.parametrize("command", ["train", "probe", "select"])
@pytest.mark.parametrize(
    ("row", "rewards"),
    [
        ({"rewards": [1, 0.5]}, [1.0, 0.5]),
        ({"rewards": [1, True]}, [1.0, 1.0]),
        ({"scores": [3, 2]}, [3.0, 2.0]),
        ({"ranks": [1, 2]}, [-1.0, -2.0]),
    ],
)
def test_forms_of_rewards(row: Any, rewards: list[float], command: str):
    assert read_by(command, {"completions": ["1", "2"], **row}) == list(zip(["1", "2"], rewards, strict=True))


@pytest.mark.parametrize("command", ["train", "probe", "select"])
@pytest.mark.parametrize("missing", [None, float("nan")])
def test_a_null_or_nan_reward_is_none(missing: Any, command: str):
    expected: Rows = [("1", 1.0)] if command == "select" else [("1", 1.0), ("2", None)]
    assert read_by(command, {"completions": ["1", "2"], "rewards": [1, missing]}) == expected


@pytest.mark.parametrize("command", ["train", "probe", "select"])
@pytest.mark.parametrize("pair", [{"chosen": "1", "rejected": "2"}, {"chosen": [said("1")], "rejected": [said("2")]}])
def test_pairs(pair: Any, command: str):
    assert read_by(command, pair) == SCORED


def test_commands_that_need_rewards():
    row = {"completions": ["1", "2"]}
    assert read_by("probe", row) == [("1", None), ("2", None)]
    assert read_by("eval", row) == ["1", "2"]
    for command in ("train", "select"):
        with pytest.raises(DataError, match="row 1: there is no list `rewards`"):
            read_by(command, row)


def test_commands_that_need_texts():
    row = {"completions": [ids("1"), ids("2")], **REWARDS}
    assert read_by("train", row) == SCORED
    for command in ("probe", "eval", "select"):
        with pytest.raises(DataError, match="token ids together with the column `texts`"):
            read_by(command, row)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"completions": [[said("2", "user"), said("1")], "2"]}, "2 messages, and those before the last are not the"),
        ({"completions": [[said("1"), said("2")], "2"]}, "2 messages, and those before the last are not the prompt"),
        ({"completions": [[ASKED], "2"]}, "a completion is"),
        ({"completions": [[ASKED, said("1", "user")], "2"]}, "a completion is"),
        ({"completions": [[said("1", tool_calls=[{"x": 1}])], "2"]}, "a completion has `tool_calls` besides its"),
        ({"completions": [[said([{"type": "image"}])], "2"]}, "a part of type 'image'"),
        ({"completions": [None, "2"]}, "a completion is 'None'"),
        ({"completions": [[-1], "2"], "texts": ["1", "2"]}, "token id -1 is negative"),
        ({"completions": [], "rewards": []}, "`completions` is empty; give at least two"),
        ({"completions": ["1", "2"], "finish_reasons": ["eos", "stop"]}, "a finish reason is 'eos'"),
        ({"completions": ["1", "2"], "finish_reasons": ["stop"]}, "`finish_reasons` has 1 values for 2 completions"),
    ],
)
def test_rows_that_every_command_rejects(row: Any, message: str, command: str):
    with pytest.raises(DataError, match=message):
        read_by(command, {**REWARDS, **row})


@pytest.mark.parametrize("command", ["train", "probe", "select"])
@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ([1], "`rewards` has 1 values for 2 completions"),
        ([1, "0"], r"a reward is '0' \(str\); give numbers, null if there is none"),
        ([1, float("inf")], "a reward is infinite; give finite numbers"),
    ],
)
def test_rewards_that_every_reader_of_rewards_rejects(rewards: Any, message: str, command: str):
    with pytest.raises(DataError, match=f"row 1: {message}"):
        read_by(command, {"completions": ["1", "2"], "rewards": rewards})


@pytest.mark.parametrize(
    ("row", "texts"),
    [
        ({"response": "1"}, ["1"]),
        ({"responses": "1"}, ["1"]),
        ({"responses": [[said("1")], "2"]}, ["1", "2"]),
        ({"responses": [ASKED, said("1")]}, ["1"]),
        ({"completion": [said("1")]}, ["1"]),
        ({"completion": [ASKED, said("1")]}, ["1"]),
        ({"texts": ["1", "2"]}, ["1", "2"]),
    ],
)
def test_other_names_of_responses_in_an_evaluation(row: Any, texts: list[str]):
    assert read_by("eval", row) == texts


def test_a_prompt_of_token_ids_keeps_them_and_may_have_a_text():
    row = {"prompt": [5, 6], "completions": ["1"], "rewards": [1], "digit": 3}
    alone, told = read_groups([row, {**row, "prompt_text": "five six"}])
    assert (alone.problem.prompt, alone.prompt_tokens) == ("", [5, 6])
    assert (told.problem.prompt, told.prompt_tokens) == ("five six", [5, 6])
    assert alone.problem.columns == told.problem.columns == {"digit": 3}


def test_prompt_text_is_an_ordinary_column_if_the_prompt_is_text():
    (group,) = read_groups([{"prompt": "p", "prompt_text": "q", "completions": ["1"]}])
    assert (group.problem.prompt, group.problem.columns) == ("p", {"prompt_text": "q"})


def test_written_rows_round_trip(tmp_path: Any):
    completions = [
        Completion([4, 5], text="four", sampler_logprobs=[-1.0, -0.5], source="expert"),
        Completion([6], text="six", finish_reason="length", sampler_logprobs=[-2.0]),
    ]
    problem = Problem([ASKED], "g", {"answer": "4"})
    verdicts = [Verdict(1.0, {"right": 1.0}), Verdict(None, {"right": None}, reason="timeout")]
    record = group_record(Group([1], completions, id="g"), verdicts, problem)
    write_groups(tmp_path / "groups.jsonl", [record])
    (group,) = read_groups(load_records(tmp_path / "groups.jsonl"))
    assert group.problem == problem
    for written, row, verdict in zip(group.completions, completions, verdicts, strict=True):
        assert (written.tokens, written.text, written.finish_reason) == (row.tokens, row.text, row.finish_reason)
        assert (written.reward, written.parts) == (verdict.reward, verdict.parts)
        assert (written.source, written.sampler_logprobs) == (row.source, row.sampler_logprobs)
