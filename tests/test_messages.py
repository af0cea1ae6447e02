"""Content of messages in datasets: text parts are joined, and any other content is an error."""

from typing import Any

import pytest

from gvpo.errors import DataError
from gvpo.messages import answer_text, content_text, plain_messages, unicode_text, well_formed

HALF = "\ud83d"


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a", "a"),
        ("", ""),
        ([text("a")], "a"),
        ([text("a "), text("b")], "a b"),
        ([{"type": "text", "text": "a", "image": None}], "a"),  # Arrow adds null keys to objects
        ([{"text": "a"}], "a"),
        ([{"type": "input_text", "text": "a"}, {"type": "output_text", "text": "b"}], "ab"),
        (["a", text("b")], "ab"),
        ([], ""),
        ("\U0001f600 é", "\U0001f600 é"),
    ],
)
def test_text_and_parts_of_text(content: Any, expected: str):
    assert content_text(content) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([text("a"), {"type": "image"}], "a part of type 'image', and gvpo trains only on text"),
        ([{"type": "image_url", "image_url": {"url": "x"}}], "a part of type 'image_url'"),
        ([{"type": "input_audio", "input_audio": {}}], "a part of type 'input_audio'"),
        ([{"type": "video", "video": "x.mp4"}], "a part of type 'video'"),
        ([{"type": "file"}], "a part of type 'file'"),
        ([{"type": "mystery", "text": "a"}], "a part of type 'mystery'"),
        ([{"type": None, "text": "a"}], "a part of type None"),
        ([text("a"), {"type": "text"}], "a text part without `text`"),
        ([{"type": "text", "text": None}], "a text part without `text`"),
        ([{"image": "x"}], "a part of type 'image'"),
        ([3], "a part of the content is an int"),
        (None, r"the content is missing \(null\)"),
        (3, "the content is an int"),
        (text("a"), "the content is a dict; give text, or a list of text parts"),
        (f"a{HALF}", r"character 2 is '\\ud83d', half of a character"),
        ([text(HALF)], r"character 1 is '\\ud83d'"),
    ],
)
def test_error_about_content_that_is_not_text_names_it(content: Any, message: str):
    with pytest.raises(DataError, match=message):
        content_text(content)


CALL = [{"type": "function", "function": {"name": "f", "arguments": "{}"}}]


def test_messages_lose_null_keys_and_keep_the_rest():
    given = [
        {"role": "user", "content": [text("a")], "name": None, "tool_calls": None},
        {"role": "assistant", "content": None, "tool_calls": CALL},
        {"role": "assistant", "tool_calls": CALL},
        {"role": "tool", "content": "4", "name": "f"},
    ]
    assert plain_messages(given) == [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "", "tool_calls": CALL},
        {"role": "assistant", "content": "", "tool_calls": CALL},
        {"role": "tool", "content": "4", "name": "f"},
    ]


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ({"role": "user", "content": None}, r"message 2: the content is missing \(null\)"),
        ({"role": "user"}, "message 2 has no `role` and `content`"),
        ({"content": "a"}, "message 2 has no `role` and `content`"),
        ({"from": "human", "value": "a"}, "message 2 has no `role` and `content`"),
        ({"role": None, "content": "a"}, r"message 2: the role is missing \(null\)"),
        ({"role": 3, "content": "a"}, "message 2: the role is an int"),
        ({"role": HALF, "content": "a"}, "message 2: character 1 is"),
        ({"role": "assistant", "content": None, "tool_calls": []}, "message 2: the content is missing"),
        ("hi", "message 2 has no `role` and `content`"),
        (None, "message 2 has no `role` and `content`"),
    ],
)
def test_invalid_messages(message: Any, error: str):
    with pytest.raises(DataError, match=error):
        plain_messages([{"role": "user", "content": "a"}, message])


def says(content: Any, **more: Any) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": content, **more}]


@pytest.mark.parametrize("written", ["a b", says("a b"), says([text("a "), text("b")]), says("a b", tool_calls=None)])
def test_answers(written: Any):
    assert answer_text(written) == "a b"


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (says([{"type": "image"}]), "a part of type 'image'"),
        (
            says("a", tool_calls=CALL),
            "`tool_calls` besides its content, which would not be trained on",
        ),
        (says(None, function_call={"name": "f"}), "a completion has `function_call`"),
        (says("a", reasoning_content="so"), "a completion has `reasoning_content`"),
        (says(None), r"the content is missing \(null\)"),
        ([{"role": "user", "content": "a"}], "a completion is "),
        ([*says("a"), *says("b")], "a completion is "),
        ([], "a completion is "),
        (3, "a completion is '3'"),
        (HALF, "character 1 is"),
    ],
)
def test_invalid_answers(written: Any, message: str):
    with pytest.raises(DataError, match=message):
        answer_text(written)


def test_lone_surrogates():
    assert unicode_text("\U0001f600") == "\U0001f600"
    assert well_formed(f"a{HALF}b\U0001f600") == "a?b\U0001f600"
