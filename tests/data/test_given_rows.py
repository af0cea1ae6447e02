"""Tests of real-world data in a run: training rows, written files and errors."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from gvpo import runfiles
from gvpo.config import TrainConfig
from gvpo.data import problems_from_records
from gvpo.data.given_rows import COLUMNS, Rows, read_rows
from gvpo.errors import DataError
from gvpo.model.tokenizer import encode_prompt
from gvpo.rollout.logged_groups import logged_groups
from gvpo.rollout.problems import demonstrations, encode, held_out_problems, training_problems
from tests.fakes import CHAT_TEMPLATE, byte_tokenizer
from tests.training.toy import ROWS, trainer

HALF = "\ud83d"
IMAGE = {"type": "image_url", "image_url": {"url": "x.png"}}
SETTINGS: dict[str, Any] = {"steps": 1, "rollouts_every": 1, "eval_problems": 0, "prompts_per_step": 2}
FEW = [{"prompt": str(digit), "digit": str(digit)} for digit in range(3)]


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def says(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def supervised(*rows: dict[str, Any], **settings: Any) -> list[tuple[str, str]]:
    """Return the decoded prompts and answers that supervised training reads from rows."""
    tokenizer = byte_tokenizer(CHAT_TEMPLATE)
    config = TrainConfig(objective="sft", **settings)
    written = demonstrations(config, tokenizer, read_rows(config, rows).items)
    return [(tokenizer.decode(item.prompt), str(answer.text)) for item, answer in written]


# Parts of text, in prompts and in answers


def test_parts_of_text_are_joined_in_prompts_and_answers():
    prompt = "<bos>[user]one two\n[assistant]"
    assert (
        supervised(
            {"prompt": [user([text("one "), text("two")])], "completion": [says([text("three")])]},
            {"prompt": [user([text("one two")])], "chosen": [says([text("three")])], "rejected": [says("four")]},
            {"messages": [user([text("one two")]), says([text("three")])]},
        )
        == [(prompt, "three")] * 3
    )


def test_parts_of_text_are_joined_in_logged_groups():
    tokenizer = byte_tokenizer(CHAT_TEMPLATE)
    row = {"prompt": [user([text("hi")])], "completions": [[says([text("a")])], "b"], "rewards": [1, 0]}
    (group,) = logged_groups(TrainConfig(), tokenizer, [row], source="x")
    assert [each.text for each in group.group.completions] == ["a", "b"]
    assert group.problem.prompt == [user("hi")]


PROMPT, ANSWER = [user("hi")], [says("ho")]
IMAGES = {
    "prompt": {"prompt": [user([text("what?"), IMAGE])], "completion": "a"},
    "completion": {"prompt": "a", "completion": [says([IMAGE])]},
    "messages": {"messages": [user([IMAGE]), says("a")]},
    "answer in messages": {"messages": [user("a"), says([text("b"), IMAGE])]},
    "chosen": {"prompt": PROMPT, "chosen": [says([IMAGE])], "rejected": ANSWER},
    "rejected": {"prompt": PROMPT, "chosen": ANSWER, "rejected": [says([IMAGE])]},
    "conversations": {"chosen": [user([IMAGE]), says("a")], "rejected": [user([IMAGE]), says("b")]},
}


@pytest.mark.parametrize("where", IMAGES)
def test_error_names_an_image_and_its_row(where: str):
    with pytest.raises(DataError, match=r"row 2: .*type 'image_url', and gvpo trains only on text") as raised:
        supervised({"prompt": "a", "completion": "b"}, IMAGES[where])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a", "completions": [[says([IMAGE])], "b"], "rewards": [1, 0]},
        {"prompt": [user([IMAGE])], "completions": ["a", "b"], "rewards": [1, 0]},
        {"prompt": PROMPT, "chosen": [says([IMAGE])], "rejected": ANSWER},
    ],
)
def test_error_names_an_image_in_a_logged_group_and_its_row(row: dict[str, Any]):
    fine = {"prompt": "a", "completions": ["a", "b"], "rewards": [1, 0]}
    with pytest.raises(DataError, match=r"row 2.*'image_url', and gvpo trains only on text"):
        logged_groups(TrainConfig(), byte_tokenizer(CHAT_TEMPLATE), [fine, row], source="x")


# Conversations


def test_the_last_turn_of_a_conversation_is_the_answer():
    turns = [{"role": "system", "content": "be short"}, user("1"), says("one"), user("2"), says("two")]
    assert supervised({"messages": turns}) == [
        ("<bos>[system]be short\n[user]1\n[assistant]one\n[user]2\n[assistant]", "two")
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"messages": [user("a")]},
            "row 1: the last of its `messages` is of the role 'user', and the assistant's answer",
        ),
        ({"messages": [says("a")]}, "row 1: its `messages` contain only an answer"),
        ({"messages": []}, r"row 1: `messages` is '\[\]'; give a list of messages"),
        ({"messages": "hi"}, "row 1: `messages` is 'hi'; give a list of messages"),
        ({"messages": [user("a"), says(None)]}, r"row 1: `messages`: message 2: the content is missing \(null\)"),
        ({"messages": [user("a"), {"content": "b"}]}, "row 1: `messages`: message 2 has no `role` and `content`"),
        ({"messages": [user("a"), says("", tool_calls=[{"x": 1}])]}, "row 1: a completion has `tool_calls`"),
        ({"messages": [{"role": "human", "content": "a"}, says("b")]}, "the role 'human', .*; write 'user'"),
        (
            {"messages": [{"role": "narrator", "content": "a"}, says("b")]},
            "the role 'narrator', .*the roles are system",
        ),
        (
            {"messages": [user("a"), says("", tool_calls=[{"x": 1}]), says("b")]},
            "message 2 has tool calls, and the chat",
        ),
    ],
)
def test_error_explains_invalid_conversations(row: dict[str, Any], message: str):
    with pytest.raises(DataError, match=message):
        supervised(row)


def test_a_role_and_calls_that_the_template_writes_are_allowed():
    template = (
        "{% for m in messages %}{% if m.role == 'narrator' %}*{% endif %}{{ m.content }}{{ m.tool_calls }}{% endfor %}"
    )
    messages = [{"role": "narrator", "content": "a", "tool_calls": [1]}, user("b")]
    tokenizer = byte_tokenizer(template)
    assert tokenizer.decode(encode_prompt(tokenizer, messages)) == "*a[1]b"


# Halves of characters


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": f"a{HALF}", "completion": "b"},
        {"prompt": [user(f"a{HALF}")], "completion": "b"},
        {"prompt": [user([text(f"a{HALF}")])], "completion": "b"},
        {"prompt": "a", "completion": f"b{HALF}"},
        {"prompt": "a", "completion": [says(f"b{HALF}")]},
        {"prompt": "a", "chosen": f"b{HALF}", "rejected": "c"},
        {"messages": [user("a"), says(f"b{HALF}")]},
    ],
)
def test_error_names_the_row_of_half_a_character_that_becomes_tokens(row: dict[str, Any]):
    with pytest.raises(DataError, match=r"row 2.*character 2 is '\\ud83d', half of a character") as raised:
        supervised({"prompt": "a", "completion": "b"}, row)
    assert "\n" not in str(raised.value)
    assert str(raised.value).isascii()


def test_half_a_character_elsewhere_is_replaced_in_the_rollout_file_and_the_run_continues(tmp_path: Path):
    odd: dict[str, Any] = {"note": HALF, "deep": {"x": [HALF]}, HALF: 1, "id": f"a{HALF}"}
    odd |= {"nul": "\0", "big": 10**30, "nan": float("nan"), "mixed": [1, "a", None, {"b": 2}], "bytes": b"x"}
    rows = [{**FEW[0], **odd}, *FEW[1:]]
    trainer(tmp_path / "run", data=rows, **{**SETTINGS, "steps": 2, "prompts_per_step": 3}).train()
    for step in (1, 2):
        found = runfiles.read_rollouts(runfiles.rollout_path(tmp_path / "run", step))
        (columns,) = {json.dumps(row.columns) for row in found if row.group == "a?"}
        assert json.loads(columns) | {"bytes": ""} == {
            "digit": "0",
            "note": "?",
            "deep": {"x": ["?"]},
            "?": 1,
            "nul": "\0",
            "big": 10**30,
            "nan": None,
            "mixed": [1, "a", None, {"b": 2}],
            "bytes": "",
        }


# Streams and tables


def test_a_run_reads_only_the_requested_rows_of_an_endless_stream(tmp_path: Path):
    stream = ({"prompt": str(number % 10), "digit": str(number % 10)} for number in itertools.count())
    trainer(tmp_path / "run", data=stream, train_problems=4, held=None, **SETTINGS).train()
    assert next(stream)["prompt"] == "4"


def test_a_data_frame_trains_as_its_rows_do(tmp_path: Path):
    pandas = pytest.importorskip("pandas")
    for name, data in (
        ("rows", FEW),
        ("frame", pandas.DataFrame(FEW)),
        ("columns", pandas.DataFrame(FEW).to_dict("list")),
    ):
        trainer(tmp_path / name, data=data, **SETTINGS).train()
    one, *others = (
        runfiles.read_rollouts(runfiles.rollout_path(tmp_path / name, 1)) for name in ("rows", "frame", "columns")
    )
    assert others == [one, one]


# Names of columns


def test_columns_are_renamed_to_the_names_of_gvpo(tmp_path: Path):
    rows = [{"question": "a", "response": "b", "gold": 1, "prompt": "not this", "other": 2}]
    names = {"prompt_column": "question", "completion_column": "response", "answer_column": "gold"}
    assert supervised(*rows, chat="plain", **names) == [("a", "b")]
    (tmp_path / "a.jsonl").write_text(json.dumps(rows[0]))
    (problem,) = training_problems(TrainConfig(train_data=str(tmp_path / "a.jsonl"), **names), None)
    assert problem.prompt == "a"
    assert problem.columns == {"completion": "b", "answer": 1, "other": 2}


@pytest.mark.parametrize("name", COLUMNS)
def test_every_column_with_a_meaning_can_have_another_name(name: str):
    config = TrainConfig(**{f"{name}_column": "theirs"})
    assert read_rows(config, [{"theirs": 1, "x": 2}]).items == [{"x": 2, name: 1}]


def test_preferences_and_conversations_by_other_names():
    pair = {"q": "a", "good": "b", "bad": "c"}
    assert supervised(pair, chat="plain", prompt_column="q", chosen_column="good", rejected_column="bad") == [
        ("a", "b")
    ]
    turns = {"conversation": [user("a"), says("b")]}
    assert supervised(turns, messages_column="conversation") == [("<bos>[user]a\n[assistant]", "b")]


def test_error_names_a_missing_column():
    with pytest.raises(DataError, match=r"row 2 has no column 'q', which data\.prompt_column names; its columns"):
        supervised({"q": "a", "completion": "b"}, {"p": "a"}, prompt_column="q")


def test_held_out_rows_may_lack_columns_that_only_training_needs(tmp_path: Path):
    (tmp_path / "held.jsonl").write_text(json.dumps({"q": "a"}))
    config = TrainConfig(eval_data=str(tmp_path / "held.jsonl"), prompt_column="q", completion_column="c")
    (problem,) = held_out_problems(config, None)
    assert problem.prompt == "a"


def test_messages_can_be_the_prompt_column():
    config = TrainConfig(prompt_column="messages")
    (problem,) = training_problems(config, read_rows(config, [{"messages": [user("a")]}]).items)
    assert problem.prompt == [user("a")]


def test_the_toy_is_read(tmp_path: Path):
    config = TrainConfig(train_problems=3)
    assert [problem.prompt for problem in training_problems(config, ROWS)] == ["0", "1", "2"]


# How many rows


def test_train_problems_keeps_the_first_rows_of_every_kind(tmp_path: Path):
    pairs = [{"prompt": str(digit), "completion": "a", "chosen": "a", "rejected": "b"} for digit in range(4)]
    groups = [{"prompt": str(digit), "completions": ["a", "b"], "rewards": [1, 0]} for digit in range(4)]
    file = tmp_path / "groups.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in groups))
    two = TrainConfig(train_problems=2)
    assert len(supervised(*pairs, train_problems=2)) == 2
    assert len(training_problems(two, FEW)) == 2
    assert list(read_rows(two, str(file)).first(two.train_problems).items) == groups[:2]


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"prompt": "a"}, "problems"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "pairs"),
        ({"prompt": "a", "completions": ["b"], "rewards": [1]}, "groups"),
    ],
)
def test_the_first_row_says_what_rows_are(row: dict[str, Any], kind: str):
    assert Rows([row, {"prompt": "x"}], "x").kind == kind
    assert Rows([], "x").kind == "problems"


# Tools and images in columns of their own

TOOLS = [{"type": "function", "function": {"name": "add", "parameters": None}}, {"type": "web", "function": None}]
WITH_TOOLS = "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}" + CHAT_TEMPLATE


@pytest.mark.parametrize("tools", [TOOLS, json.dumps(TOOLS)], ids=["objects", "JSON"])
def test_tools_of_a_row_go_to_the_chat_template_without_their_nulls(tools: Any):
    tokenizer = byte_tokenizer(WITH_TOOLS)
    rows = [{"prompt": "hi", "tools": tools}, {"prompt": "hi", "tools": []}]
    with_tools, without = encode(TrainConfig(), tokenizer, problems_from_records(rows))
    written = '{"type": "function", "function": {"name": "add"}}{"type": "web"}'
    assert tokenizer.decode(with_tools.prompt) == written + tokenizer.decode(without.prompt)


def test_tools_that_the_template_would_not_write_raise():
    problems = problems_from_records([{"prompt": "hi", "tools": TOOLS}])
    with pytest.raises(DataError, match="'row-1': it has `tools`, but the chat template does not support them"):
        encode(TrainConfig(), byte_tokenizer(CHAT_TEMPLATE), problems)
    encode(TrainConfig(chat="plain"), byte_tokenizer(CHAT_TEMPLATE), problems)
    with pytest.raises(DataError, match="`tools` is text and not JSON"):
        encode(TrainConfig(), byte_tokenizer(WITH_TOOLS), problems_from_records([{"prompt": "hi", "tools": "hammer"}]))


@pytest.mark.parametrize("cell", [["x.png"], "x.png", {"bytes": b"x", "path": None}])
def test_an_image_in_another_column_raises(cell: Any):
    rows = [{"prompt": "what?", "images": None}, {"prompt": "what?", "image": cell}]
    with pytest.raises(DataError, match="row 2 has `image`, and gvpo trains on text alone"):
        problems_from_records(rows)


@pytest.mark.parametrize("cell", [None, [], "", [None], float("nan")])
def test_an_empty_column_of_images_is_allowed(cell: Any):
    assert len(problems_from_records([{"prompt": "what?", "images": cell}])) == 1


def test_error_names_a_part_without_a_type_by_its_key():
    with pytest.raises(DataError, match="a part of type 'image'"):
        problems_from_records([{"prompt": [user([{"image": "x.png"}])]}])
