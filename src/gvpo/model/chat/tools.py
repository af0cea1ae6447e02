"""Descriptions of tools for chat templates."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from transformers.utils.chat_template_utils import get_json_schema

from gvpo.errors import ConfigError, one_line


def tool_schemas(tools: Iterable[Callable[..., Any] | Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the JSON schemas of functions, as `transformers.utils.get_json_schema` reads them from their docstrings.

    Args:
        tools: Functions with type hints and a docstring that describes each argument, or schemas, which stay unchanged.

    Raises:
        ConfigError: If a function cannot be described; the message names it.
    """
    return [dict(tool) if isinstance(tool, Mapping) else _schema(tool) for tool in tools]


def _schema(tool: Callable[..., Any]) -> dict[str, Any]:
    try:
        schema: dict[str, Any] = get_json_schema(tool)
    except Exception as error:  # it has several classes of its own
        name = getattr(tool, "__name__", type(tool).__name__)
        raise ConfigError(
            f"the tool {name!r} cannot be described to the policy ({one_line(error, 200)}); give its arguments type "
            "hints, and describe each of them in the section Args of its docstring"
        ) from error
    return schema
