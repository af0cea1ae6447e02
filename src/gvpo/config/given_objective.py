"""An objective that is passed as a function: what its signature says that a run must provide."""

import inspect
from collections.abc import Callable
from typing import Any

from gvpo.config.objectives import INPUT_OF, PREFIX, ObjectiveSpec
from gvpo.config.settings import OBJECTIVE_KEYWORDS
from gvpo.errors import ConfigError, type_of

_ALWAYS = ("mask", "group")
_PROVIDED = (
    "rewards",
    "ref_logprobs",
    "old_logprobs",
    "sampler_logprobs",
    "role",
    "segments",
    "costs",
    "multipliers",
    "teacher_logprobs",
)
"""Inputs that a run can provide besides `mask` and `group`."""


def name_of(function: Callable[..., Any]) -> str:
    """Return the name of a function, of the function that a partial binds, or of the class of a callable object."""
    inner = getattr(function, "func", function)
    return PREFIX + str(getattr(inner, "__name__", type(inner).__name__))


def spec_of(function: Any, group_size: int) -> ObjectiveSpec:
    """Return the entry of an objective that is passed as a function, from its signature.

    The inputs that it names are provided. `role` makes it learn from pairs, and without `rewards` and `role` it learns
    from written answers. Its parameters that settings name (`beta`, ...) are bound by the settings.

    Args:
        function: Called as `objective(logprobs, **keywords)`; returns an `ObjectiveOutput`.
        group_size: Number of completions per prompt. Groups of one are trained on only if it is 1.

    Raises:
        ConfigError: If it is not a function, or needs an input that a run does not provide.
    """
    name = name_of(function).removeprefix(PREFIX)
    if not callable(function):
        raise ConfigError(f"objective is {type_of(function)}; pass a function, or set objective.name")
    named = _keywords(function, name)
    needs = tuple(key for key, default in named.items() if key in _PROVIDED or default is inspect.Parameter.empty)
    unknown = next((key for key in needs if key not in _PROVIDED), None)
    if unknown is not None:
        raise ConfigError(
            f"the objective {name} needs {unknown!r}, which a run does not provide; it provides "
            f"{', '.join((*_ALWAYS, *_PROVIDED))}: give it a default, or bind it with functools.partial"
        )
    return ObjectiveSpec(
        function,
        summary=f"{name}, given in Python",
        paper="",
        learns_from="pairs"
        if "role" in needs
        else "groups"
        if {"rewards", "teacher_logprobs"} & {*needs}
        else "answers",
        needs=needs,
        keywords={key: value for key, value in named.items() if key in OBJECTIVE_KEYWORDS and key not in INPUT_OF},
        min_group=min(2, group_size) if {"rewards", "teacher_logprobs"} & {*needs} else 1,
        token_advantages="advantages" in named,
    )


def _keywords(function: Callable[..., Any], name: str) -> dict[str, Any]:
    """Return the parameters after the log-probs that may be passed by name, with their defaults."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    usual = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    if not parameters or any(each.kind not in usual for each in parameters[1:]):
        raise ConfigError(
            f"the objective {name} does not name its inputs; write it as def {name}(logprobs, *, rewards, group, mask)"
        )
    return {each.name: each.default for each in parameters[1:] if each.name not in _ALWAYS}
