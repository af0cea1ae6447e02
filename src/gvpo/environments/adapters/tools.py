"""Functions that the policy may call, as in the `tools` of TRL and of chat templates."""

import inspect
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from gvpo.environments.adapters.calls import Call, tool_calls
from gvpo.environments.base import EnvironmentSpec, Turn
from gvpo.errors import EpisodeError, one_line
from gvpo.nearest import did_you_mean
from gvpo.types import Message

Tool = Callable[..., Any]
"""A function with type hints and a docstring, or a coroutine function."""


class Toolbox:
    """Calls the functions that the policy's turns name; a turn without a call ends the episode.

    A result is a message with the role `tool`: text as it is, lists and dictionaries as JSON, and anything else as
    `str` writes it. An unknown tool, arguments that do not fit and an exception are told as `{"error": ...}`.

    Args:
        tools: The functions.
    """

    def __init__(self, tools: Iterable[Tool]) -> None:
        self._tools = {tool.__name__: tool for tool in tools}

    def reset(self, *, seed: int, **columns: Any) -> str | Awaitable[str | None] | None:
        """Begin an episode."""
        return None

    async def step(self, text: str) -> Turn:
        """Call the functions that the text names, one after the other."""
        calls = tool_calls(text)
        results = [await self._result(call) for call in calls]
        errors = [error for _, error in results if error]
        return Turn([message for message, _ in results], done=not calls, error="; ".join(errors))

    async def _result(self, call: Call) -> tuple[Message, str]:
        """Return a call's message, and its error, "" without one."""
        error = call.error or self._refusal(call)
        if not error:
            try:
                value = self._tools[call.name](**call.arguments)
                value = await value if inspect.isawaitable(value) else value
            except Exception as raised:
                error = one_line(raised, 200)
        content = json.dumps({"error": error}, ensure_ascii=False) if error else _written(value)
        return {"role": "tool", "name": call.name, "content": content}, error

    def _refusal(self, call: Call) -> str:
        """Return why a call cannot be made, or ""."""
        if call.name not in self._tools:
            near = did_you_mean(call.name, self._tools, f"choose from {', '.join(self._tools)}")
            return f"there is no tool {call.name!r}{near}"
        try:
            inspect.signature(self._tools[call.name]).bind(**call.arguments)
        except TypeError as error:
            return f"{call.name}: {error}"
        except ValueError:
            pass  # its signature cannot be read
        return ""


def tools_spec(tools: Sequence[Tool]) -> EnvironmentSpec:
    """Return the environment of some functions. It pays nothing: reward functions decide.

    Raises:
        EpisodeError: If two functions have the same name, or one has no name or no docstring.
    """
    check_tools(tools)
    return EnvironmentSpec("tools", partial(Toolbox, tuple(tools)), pays=False, tools=tuple(tools))


def check_tools(tools: Sequence[Tool]) -> None:
    """Check that functions can be described to the policy.

    Raises:
        EpisodeError: If two functions have the same name, or one has no name or no docstring.
    """
    names = [getattr(tool, "__name__", "") for tool in tools]
    for name, tool in zip(names, tools, strict=True):
        if not name or not inspect.getdoc(tool):
            raise EpisodeError(
                f"the tool {name or tool!r} has no {'docstring' if name else 'name'}; write a function whose docstring "
                "says what it does and describes its arguments, since the policy reads that"
            )
        if names.count(name) > 1:
            raise EpisodeError(f"two tools are called {name!r}; rename one of them")


def _written(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)
