"""Rows of logged groups: their parsing, rejected rows, and the round trip of groups that are written as rows."""

from pathlib import Path
from typing import Any

import pytest

from gvpo.data import load_records
from gvpo.errors import DataError, GvpoWarning
from gvpo.rewards import RewardPool
from gvpo.rollout.collect import Rollout
from gvpo.rollout.group_file import records
from gvpo.rollout.logged_groups import NO_REWARD, LoggedGroup, logged_groups
from gvpo.rollout.order import ShuffledOrder
from gvpo.rollout.sources.live import LiveSource
from gvpo.runfiles import to_json
from gvpo.sampling.base import SamplingParams
from gvpo.sampling.transformers import TransformersSampler
from gvpo.types import FINISH_REASONS
from tests.fakes import CHAT_TEMPLATE, byte_tokenizer
from tests.training.toy import config, encoded, model, share, tokenizer

END = tokenizer().eos_token_id
ROW: dict[str, Any] = {"prompt": "1", "completions": ["11", "2"], "rewards": [1, 0.5]}


def ids(text: str) -> list[int]:
    return list(tokenizer()(text).input_ids)


def read(*rows: Any, **settings: Any) -> list[LoggedGroup]:
    return logged_groups(config(**settings), tokenizer(), rows, source="file.jsonl")


def test_a_text_is_encoded_and_ended_and_other_columns_are_kept():
    (one,) = read({**ROW, "digit": "1", "id": "a"})
    assert one.group.prompt == tuple(ids("1"))
    assert [row.tokens for row in one.group.completions] == [[*ids("11"), END], [*ids("2"), END]]
    assert [(row.text, row.reward, row.source) for row in one.group.completions] == [
        ("11", 1.0, "file.jsonl"),
        ("2", 0.5, "file.jsonl"),
    ]
    assert (one.group.id, dict(one.group.columns)) == ("a", {"digit": "1"})
    assert (one.problem.prompt, dict(one.problem.columns)) == ("1", {"digit": "1"})
    assert [(verdict.reward, verdict.reason) for verdict in one.verdicts] == [(1.0, ""), (0.5, "")]


def test_a_truncated_completion_gets_no_end_token_and_one_that_has_it_no_second():
    end = str(tokenizer().eos_token)
    (one,) = read({**ROW, "completions": ["11", "2" + end], "finish_reasons": ["length", None]})
    assert [row.tokens for row in one.group.completions] == [ids("11"), [*ids("2"), END]]
    assert [row.finish_reason for row in one.group.completions] == ["length", "stop"]


def test_every_finish_reason_is_read_and_only_a_stop_gets_an_end_token():
    completions, rewards = [str(place) for place in range(6)], [1.0] * 6
    (one,) = read({**ROW, "completions": completions, "rewards": rewards, "finish_reasons": list(FINISH_REASONS)})
    assert [row.finish_reason for row in one.group.completions] == list(FINISH_REASONS)
    assert [row.tokens[-1] == END for row in one.group.completions] == [True, *[False] * 5]


@pytest.mark.parametrize(
    "written",
    [
        [*ids("45"), END, END, END],  # padding, as engines return batches
        [*ids("45"), END, *ids("6")],
        "45</s></s>",
        "45</s>6",
    ],
)
def test_tokens_after_the_first_end_token_are_ignored_with_a_warning(written: Any):
    own = str(tokenizer().eos_token)
    given = written.replace("</s>", own) if isinstance(written, str) else written
    with pytest.warns(GvpoWarning, match="1 written answers have tokens after .* the first is in row 2"):
        _, one = read(ROW, {**ROW, "completions": [given, "3"]})
    assert [list(row.tokens) for row in one.group.completions] == [[*ids("45"), END], [*ids("3"), END]]
    assert (one.group.completions[0].text, one.group.completions[0].finish_reason) == ("45", "stop")


def test_log_probs_and_finish_reason_follow_a_truncated_answer():
    row = {"prompt": "1", "completions": [[*ids("4"), END, END], ids("12")], "rewards": [1, 0]}
    recorded = {"sampler_logprobs": [[-1.0, -2.0, -3.0], [-1.0, -1.0]], "finish_reasons": ["length", "length"]}
    with pytest.warns(GvpoWarning, match="after their first end token"):
        (one,) = read({**row, **recorded})
    assert [row.sampler_logprobs for row in one.group.completions] == [[-1.0, -2.0], [-1.0, -1.0]]
    assert [row.finish_reason for row in one.group.completions] == ["stop", "length"]


def test_stop_tokens_of_the_settings_end_logged_answers_too():
    (stop,) = ids("7")
    with pytest.warns(GvpoWarning, match="after their first end token"):
        (one,) = read({**ROW, "completions": [ids("472"), ids("12")]}, stop_token_ids=[stop])
    assert [list(row.tokens) for row in one.group.completions] == [ids("47"), ids("12")]


def test_token_ids_are_used_unchanged():
    (one,) = read({"prompt": ids("12"), "completions": [ids("3"), [*ids("45"), END]], "rewards": [0, 1]})
    assert list(one.group.prompt) == ids("12")
    assert one.problem.prompt == "12"
    assert [(row.tokens, row.text) for row in one.group.completions] == [(ids("3"), "3"), ([*ids("45"), END], "45")]


def test_messages_go_through_the_template_and_an_answer_is_its_content():
    chat = byte_tokenizer(CHAT_TEMPLATE)
    row = {
        "prompt": [{"role": "user", "content": "hi"}],
        "completions": [[{"role": "assistant", "content": "ho"}]],
        "rewards": [1],
    }
    (one,) = logged_groups(config(), chat, [row], source="x")
    assert chat.decode(one.group.prompt).endswith("[user]hi\n[assistant]")
    assert [c.text for c in one.group.completions] == ["ho"]
    assert chat.decode(one.group.completions[0].tokens, skip_special_tokens=True) == "ho"


def test_pairs_and_ranks_are_groups_too():
    pair, ranked = read(
        {"prompt": "1", "chosen": "11", "rejected": "2"}, {"prompt": "2", "completions": ["1", "2"], "ranks": [2, 1]}
    )
    assert [(row.text, row.reward) for row in pair.group.completions] == [("11", 1.0), ("2", 0.0)]
    assert [(row.text, row.reward) for row in ranked.group.completions] == [("1", -2.0), ("2", -1.0)]
    assert dict(pair.group.columns) == {}


def test_groups_may_have_any_size_and_rows_without_a_reward_have_a_reason():
    first, second = read(ROW, {**ROW, "completions": ["1", "2", "3"], "rewards": [None, float("nan"), True]})
    assert [len(item.group.completions) for item in (first, second)] == [2, 3]
    assert [row.reward for row in second.group.completions] == [None, None, 1.0]
    assert [verdict.reason for verdict in second.verdicts] == [NO_REWARD, NO_REWARD, ""]


def test_sources_parts_and_sampler_logprobs_are_taken_from_the_row():
    more = {
        "completions": [ids("1"), ids("2")],
        "sources": ["expert", None],
        "reward_parts": [{"right": 1.0}, None],
        "sampler_logprobs": [[-0.5], None],
    }
    (one,) = read({**ROW, **more})
    assert [row.source for row in one.group.completions] == ["expert", "file.jsonl"]
    assert [dict(verdict.parts) for verdict in one.verdicts] == [{"right": 1.0}, {}]
    assert [row.sampler_logprobs for row in one.group.completions] == [[-0.5], None]
    assert dict(one.group.columns) == {}


def test_sampled_groups_round_trip_through_rows(tmp_path: Path):
    """Compare all fields except the version, which rows of a file do not have."""
    sampler, params = TransformersSampler(model(), tokenizer()), SamplingParams(group_size=3, max_tokens=3)
    with RewardPool({"digits": share()}, workers=1) as pool:
        order = ShuffledOrder(encoded(), per_step=12, seed=0)  # two problems twice: names are made distinct
        rollout = LiveSource(order, sampler, params, pool, seed=0).rollout(0)
    file = tmp_path / "groups.jsonl"
    file.write_text("".join(f"{to_json(record)}\n" for record in records(rollout)))
    back = logged_groups(config(), tokenizer(), load_records(file), source="other")
    assert [plain(item.group) for item in back] == [plain(group) for group in rollout.groups]
    assert [list(item.verdicts) for item in back] == [list(verdicts) for verdicts in rollout.verdicts]
    assert any(group.id.endswith("#2") for group in rollout.groups)
    again = Rollout([i.group for i in back], [i.verdicts for i in back], [i.problem for i in back])
    assert [to_json(record) for record in records(again)] == [to_json(record) for record in records(rollout)]


def plain(group: Any) -> Any:
    rows = [
        (
            list(row.tokens),
            row.reward,
            row.text,
            row.finish_reason,
            row.source,
            [float(p) for p in row.sampler_logprobs],
        )
        for row in group.completions
    ]
    return list(group.prompt), group.id, dict(group.columns), rows


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["1"], "rows are objects"),
        ({"completions": ["1"], "rewards": [1]}, "row 2 has no `prompt`"),
        ({**ROW, "prompt": ""}, "row 2 has an empty prompt"),
        ({**ROW, "prompt": [-1, 3]}, "token id -1 is negative"),
        ({"prompt": "1", "rewards": [1]}, "there is no list `completions`"),
        ({"prompt": "1", "completions": ["1"]}, "there is no list `rewards`"),
        ({**ROW, "completions": "11"}, "there is no list `completions`"),
        ({**ROW, "completions": [], "rewards": []}, "`completions` is empty"),
        ({**ROW, "rewards": [1]}, "`rewards` has 1 values for 2 completions"),
        ({**ROW, "sources": ["a"]}, "`sources` has 1 values for 2 completions"),
        ({**ROW, "finish_reasons": "stop"}, "`finish_reasons` has a str for 2 completions"),
        ({**ROW, "finish_reasons": ["stop", "eos"]}, "a finish reason is 'eos'"),
        ({**ROW, "rewards": ["1", 0]}, r"a reward is '1' \(str\)"),
        ({**ROW, "rewards": [float("inf"), 0]}, "a reward is infinite"),
        ({**ROW, "rewards": [[1], 0]}, "a reward is"),
        ({**ROW, "completions": [3, 4]}, "a completion is '3'"),
        ({**ROW, "completions": [[], "1"]}, r"a completion is '\[\]'"),
        ({**ROW, "completions": [[3.5], "1"]}, r"a completion is '\[3.5\]'"),
        ({**ROW, "completions": [[-2], "1"]}, "token id -2 is negative"),
        ({**ROW, "completions": [[{"role": "user", "content": "1"}], "1"]}, "a completion is"),
        ({**ROW, "completions": ["", "1"], "finish_reasons": ["length", "stop"]}, "a completion has no tokens"),
        ({**ROW, "completions": [[3], [4]], "sampler_logprobs": [[-1.0], [-1.0, -2.0]]}, "2 values for 1 tokens"),
        ({**ROW, "reward_parts": [1, 2]}, "`reward_parts` are objects"),
        ({**ROW, "sampler_logprobs": [-1.0, -2.0]}, "`sampler_logprobs` are lists"),
    ],
)
def test_error_names_the_row_that_is_not_a_group(row: Any, message: str):
    with pytest.raises(DataError, match=message) as caught:
        read(ROW, row)
    assert "row 2" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_dataset_is_rejected():
    with pytest.raises(DataError, match="the dataset is empty"):
        read()


def test_two_rows_with_the_same_id_are_rejected():
    with pytest.raises(DataError, match="rows 1 and 2 have the same id 'a'"):
        read({**ROW, "id": "a"}, {**ROW, "id": "a"})


def test_an_end_token_before_what_a_tool_said_and_another_turn_does_not_end_a_row():
    several = [*ids("4"), END, *ids("78"), *ids("5"), END]
    padded = [*ids("4"), END, END, END]
    row = {"prompt": "1", "completions": [several, padded], "rewards": [1, 0]}
    with pytest.warns(GvpoWarning, match="1 written answers have tokens after their first end token"):
        (one,) = read({**row, "masks": [[1, 1, 0, 0, 1, 1], [1, 1, 0, 0]]})
    assert [list(row.tokens) for row in one.group.completions] == [several, padded[:2]]
    turns = [[{"start": 0, "stop": 2, "end": 4}, {"start": 4, "stop": 6, "end": 6}], []]
    masks = [[1, 1, 0, 0, 1, 1], None]
    (one,) = read({**row, "completions": [several, ids("4")], "masks": masks, "episode_turns": turns})
    assert list(one.group.completions[0].tokens) == several
    assert [turn.stop for turn in one.group.completions[0].turns] == [2, 6]


def test_an_episode_that_could_not_begin_is_left_out():
    lost, turns = [{"start": 0, "stop": 0, "end": 0, "outcome": "lost"}], [{"start": 0, "stop": 1, "end": 1}]
    row = {"prompt": "1", "completions": ["", ids("4")], "texts": ["", "4"], "rewards": [None, 1]}
    found = read(
        {**row, "episode_turns": [lost, turns]}, {**row, "completions": ["", ""], "episode_turns": [lost, lost]}
    )
    assert [[list(row.tokens) for row in logged.group.completions] for logged in found] == [[ids("4")]]
