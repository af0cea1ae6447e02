"""Checked text and chat messages of datasets: text parts are joined, and any other content is an error."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from gvpo.errors import DataError, type_of
from gvpo.types import Prompt

TEXT_PARTS = ("text", "input_text", "output_text")
"""Types of text parts; parts of any other type are images, sounds or files."""

BEYOND_CONTENT = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking", "audio", "refusal")
"""Keys of an assistant's message that may contain more than its content, which the answer as text would omit."""

_EXAMPLE = '{"role": "user", "content": "..."}'


def unicode_text(text: str) -> str:
    """Return `text` unchanged if it can be encoded as UTF-8.

    Raises:
        DataError: If it contains one half of a surrogate pair (a lone surrogate).
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ascii(text[error.start])
        raise DataError(
            f"character {error.start + 1} is {half}, half of a character; replace it, or split texts between characters"
        ) from None
    return text


def well_formed(text: str) -> str:
    """Return `text` with a question mark in place of each lone surrogate."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def content_text(content: Any) -> str:
    """Return the text of a message's content, which may be a list of parts.

    Raises:
        DataError: If it is neither text nor a list, or a part is not text (an image).
    """
    if isinstance(content, str):
        return unicode_text(content)
    if isinstance(content, list | tuple):
        return unicode_text("".join(_part_text(part) for part in content))
    raise DataError(f"the content is {_kind(content)}; give text, or a list of text parts")


def with_opening(prompt: Prompt, text: str) -> Prompt:
    """Return a prompt with text at its end: that of its last message, if it is messages."""
    if isinstance(prompt, str):
        return prompt + text
    *before, last = prompt
    return [*before, {**last, "content": content_text(last["content"]) + text}]


def _part_text(part: Any) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        raise DataError(f'a part of the content is {_kind(part)}; write parts as {{"type": "text", "text": "..."}}')
    kind = part["type"] if "type" in part else next((name for name in part if name not in TEXT_PARTS), "text")
    if kind not in TEXT_PARTS:
        raise DataError(f"the content has a part of type {kind!r}, and gvpo trains only on text; remove it or the row")
    if not isinstance(part.get("text"), str):
        raise DataError("the content has a text part without `text`; give it one, or remove the part")
    return str(part["text"])


def _kind(value: Any) -> str:
    return "missing (null)" if value is None else type_of(value)


def plain_messages(messages: Sequence[Any]) -> list[dict[str, Any]]:
    """Return chat messages with their content as text and without keys that are null.

    Raises:
        DataError: If one is not a message or has content that is not text; the error counts messages from 1.
    """
    return [_plain_message(message, number) for number, message in enumerate(messages, start=1)]


def _plain_message(message: Any, number: int) -> dict[str, Any]:
    if not isinstance(message, Mapping) or "role" not in message or not ("content" in message or _calls(message)):
        raise DataError(f"message {number} has no `role` and `content`; write messages as {_EXAMPLE}")
    if not isinstance(message["role"], str):
        raise DataError(f"message {number}: the role is {_kind(message['role'])}; write messages as {_EXAMPLE}")
    content = message.get("content")
    try:
        text = "" if content is None and _calls(message) else content_text(content)
        role = unicode_text(message["role"])
    except DataError as error:
        raise DataError(f"message {number}: {error}") from None
    others = {name: value for name, value in message.items() if value is not None}
    return {**others, "role": role, "content": text}


def _calls(message: Mapping[str, Any]) -> bool:
    """Return whether a message calls tools; such a message may have no content."""
    return bool(message.get("tool_calls") or message.get("function_call"))


def tools_in(columns: Mapping[str, Any]) -> list[Any] | None:
    """Return the descriptions of tools that a row has in `tools`, as objects or as JSON, or None if it has none.

    Keys that are null are omitted, because Arrow gives each tool the keys of all others.

    Raises:
        DataError: If the column is text that is not JSON.
    """
    tools = columns.get("tools")
    try:
        tools = json.loads(tools) if isinstance(tools, str) and tools.strip() else tools
    except (ValueError, RecursionError):
        raise DataError("`tools` is text and not JSON; give a list of tools, or rename the column") from None
    are_tools = isinstance(tools, list | tuple) and bool(tools) and all(isinstance(tool, Mapping) for tool in tools)
    return _without_nulls(list(tools)) if are_tools else None  # type: ignore[arg-type, return-value]


def _without_nulls(value: object) -> object:
    if isinstance(value, Mapping):
        return {name: _without_nulls(inner) for name, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list | tuple) else value


def answer_text(written: Any, prompt: Any = None) -> str:
    """Return a completion as text: itself, or the content of the assistant's message.

    Args:
        written: Text, a message, or a list with one message, optionally after those of the prompt.
        prompt: The prompt of the completion, as text or messages.

    Raises:
        DataError: If it is something else, or its message contains more than text.
    """
    if isinstance(written, str):
        return unicode_text(written)
    messages = [written] if isinstance(written, Mapping) else written
    if not isinstance(messages, list | tuple) or not messages or not isinstance(messages[-1], Mapping):
        raise _no_answer(written)
    if len(messages) > 1 and not _repeats(messages[:-1], prompt):
        raise DataError(
            f"a completion is {len(messages)} messages, and those before the last are not the prompt; give only the "
            "message of the assistant"
        )
    message = messages[-1]
    if beyond := [name for name in BEYOND_CONTENT if message.get(name)]:
        raise DataError(
            f"a completion has `{beyond[0]}` besides its content, which would not be trained on; write it into the "
            "content in the form in which the model should write it, or remove it"
        )
    if message.get("role") != "assistant" or "content" not in message:
        raise _no_answer(written)
    return content_text(message["content"])


def _repeats(messages: Sequence[Any], prompt: Any) -> bool:
    """Return whether messages equal those of the prompt; a prompt that is text is one message of the user."""
    asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return isinstance(asked, list | tuple) and _spoken(messages) == _spoken(asked)


def _spoken(messages: Sequence[Any]) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in plain_messages(messages)]


def _no_answer(written: Any) -> DataError:
    return DataError(
        f"a completion is {str(written)[:40]!r}; give text, a list of token ids, "
        'or [{"role": "assistant", "content": "..."}]'
    )
