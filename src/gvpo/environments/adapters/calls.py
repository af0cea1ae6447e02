"""Tool calls in the policy's text.

    <tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}</tool_call>     Hermes and Qwen, several per turn
    {"name": "add", "parameters": {"a": 1, "b": 2}}                           Llama 3, several with ; between them

Calls within <think> do not count.
"""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

FORM = '{"name": ..., "arguments": {...}}'
_TAGGED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|(?=<tool_call>)|\Z)", re.DOTALL)
_BARE = re.compile(r'(?:<\|python_tag\|>)?\s*(?=\{\s*"(?:name|type|function)"\s*:)')
_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class Call:
    """A tool call.

    Args:
        name: Name of the tool; "" if it cannot be read.
        arguments: Arguments by name.
        error: Reason why the call cannot be read; "" if it can.
    """

    name: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""


def tool_calls(text: str) -> list[Call]:
    """Return the calls in a turn's text, in order; [] if it has none."""
    said = text.rpartition("</think>")[2]
    tagged = _TAGGED.findall(said)
    return [_call(part) for part in tagged] if tagged else _bare(said.strip())


def _bare(text: str) -> list[Call]:
    """Return the calls of a text that consists of them."""
    found, start = [], _BARE.match(text)
    while start:
        try:
            _, end = _DECODER.raw_decode(text, start.end())
        except (ValueError, RecursionError):
            end = len(text)
        found.append(_call(text[start.end() : end]))
        text = text[end:].lstrip("; \n")
        start = _BARE.match(text)
    return found


def _call(written: str) -> Call:
    try:
        data = json.loads(written)
    except (ValueError, RecursionError) as error:
        return Call(error=f"the call is not JSON: {error}; write {FORM}")
    if isinstance(data, dict) and isinstance(data.get("function"), dict):
        data = data["function"]  # as the endpoints of OpenAI write it
    name = data.get("name", data.get("function")) if isinstance(data, dict) else None
    if not isinstance(name, str):
        return Call(error=f"the call names no tool; write {FORM}")
    arguments = data.get("arguments", data.get("parameters", {}))
    if isinstance(arguments, str):
        with suppress(ValueError, RecursionError):  # refused below
            arguments = json.loads(arguments)
    if not isinstance(arguments, dict):
        return Call(name, error=f"the arguments of {name} are not a JSON object; write {FORM}")
    return Call(name, arguments)
