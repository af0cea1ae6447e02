"""Tool calls in text, and the functions that they call."""

import asyncio
import json

import pytest

from gvpo.environments import load_environment
from gvpo.environments.adapters.calls import tool_calls


def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: The first.
        b: The second.
    """
    return a + b


async def look_up(word: str) -> dict[str, str]:
    """Look up a word.

    Args:
        word: The word.
    """
    if word == "":
        raise ValueError("no\nword")
    return {"word": word}


def say(text):
    """Return the turn that the tools answer to a text."""
    environment = load_environment(None, tools=[add, look_up]).make()
    environment.reset(seed=0)
    return asyncio.run(environment.step(text))


def call(name, **arguments):
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("It is 5.", []),
        ("The set {1, 2}.", []),
        ('{"answer": 5}', []),
        ('<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>', [("add", {"a": 1})]),
        ('Let me see.\n<tool_call>\n{"name": "add"}\n</tool_call>', [("add", {})]),
        ('<tool_call>{"name": "f"}</tool_call>\n<tool_call>{"name": "g"}', [("f", {}), ("g", {})]),
        ('<tool_call>{"name": "f"}<tool_call>{"name": "g"}</tool_call>', [("f", {}), ("g", {})]),
        ('{"name": "add", "parameters": {"a": {"b": "}"}}}', [("add", {"a": {"b": "}"}})]),
        (
            '<|python_tag|>{"type": "function", "function": {"name": "f", "arguments": "{\\"a\\": 1}"}}',
            [("f", {"a": 1})],
        ),
        ('{"name": "f", "parameters": {}}; {"name": "g", "parameters": {}}', [("f", {}), ("g", {})]),
        ('<think><tool_call>{"name": "f"}</tool_call></think>Done.', []),
        ('<think>Use f.</think><tool_call>{"name": "g"}</tool_call>', [("g", {})]),
    ],
)
def test_calls_are_read(text, calls):
    found = tool_calls(text)
    assert [(each.name, each.arguments) for each in found] == calls
    assert not any(each.error for each in found)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("<tool_call>add(1, 2)</tool_call>", "not JSON: .*; write"),
        ("<tool_call>", "not JSON"),
        ("<tool_call>" + "[" * 100_000, "not JSON"),
        ('{"name": "add", "parameters": {', "not JSON"),
        ("<tool_call>[1]</tool_call>", "names no tool"),
        ('<tool_call>{"arguments": {}}</tool_call>', "names no tool"),
        ('<tool_call>{"name": "add", "arguments": [1, 2]}</tool_call>', "arguments of add are not a JSON object"),
        (call("ad", a=1, b=2), "there is no tool 'ad'; did you mean 'add'"),
        (call("zzz"), "there is no tool 'zzz'; choose from add, look_up"),
        (call("add", a=1), "add: missing a required argument: 'b'"),
        (call("add", a=1, b="2"), "unsupported operand"),
        (call("look_up", word=""), "^no word$"),
    ],
)
def test_mistakes_are_told_and_counted(text, error):
    turn = say(text)
    assert (turn.done, [message["role"] for message in turn.say]) == (False, ["tool"])
    with pytest.raises(AssertionError, match=error):
        raise AssertionError(json.loads(turn.say[0]["content"])["error"])
    assert turn.error == json.loads(turn.say[0]["content"])["error"]


def test_each_call_of_a_turn_has_its_result():
    turn = say(call("add", a=1, b=2) + call("look_up", word="é") + call("zzz"))
    assert [(message["name"], message["content"]) for message in turn.say][:2] == [
        ("add", "3"),
        ("look_up", '{"word": "é"}'),
    ]
    assert turn.error.startswith("there is no tool 'zzz'")


def test_a_turn_without_a_call_ends_the_episode():
    turn = say("It is 3.")
    assert (turn.done, turn.say, turn.reward, turn.error) == (True, [], None, "")
