"""The registry of environments by name, as recipes write them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import isfinite
from typing import Any, get_args

from gvpo.environments.adapters.openenv import openenv
from gvpo.environments.adapters.reasoning_gym import reasoning_gym
from gvpo.environments.adapters.textarena import textarena
from gvpo.environments.adapters.tools import Tool, tools_spec
from gvpo.environments.adapters.trl import trl_spec
from gvpo.environments.base import Blame, EnvironmentSpec
from gvpo.environments.calculator import calculator
from gvpo.errors import EpisodeError, type_of
from gvpo.nearest import did_you_mean
from gvpo.user_code import UserCode

ENVIRONMENTS: dict[str, Callable[..., EnvironmentSpec]] = {
    "calculator": calculator,
    "openenv": openenv,
    "reasoning_gym": reasoning_gym,
    "textarena": textarena,
}
"""Functions that return the built-in environments for given options, by name."""

CODE = UserCode("environment", EpisodeError, "Class")
"""Loads users' environments."""
TOOLS = UserCode("tool", EpisodeError)
"""Loads users' tools."""


def load_environment(
    environment: str | Callable[..., Any] | None,
    options: Mapping[str, Any] | None = None,
    tools: Sequence[str | Tool] = (),
) -> EnvironmentSpec:
    """Return the environment that settings or arguments name.

    A class with `reset` and `step` is an environment; one without `step` is one of TRL's `environment_factory`, whose
    public methods are tools.

    Args:
        environment: A key of `ENVIRONMENTS`, `module:Class`, `file.py:Class`, a class, or a function that returns a new
            environment; None with tools.
        options: Arguments of the environment.
        tools: Functions that the policy may call, or their names `module:function` or `file.py:function`.

    Raises:
        EpisodeError: If there is no such environment, or its options do not fit.
    """
    settings = dict(options or {})
    functions = [TOOLS.load(tool) if isinstance(tool, str) else tool for tool in tools]
    if environment is None:
        if settings:
            raise EpisodeError("environment.options belong to environment.name, which is not set; remove them")
        return tools_spec(functions)
    if isinstance(environment, str) and ":" not in environment:
        require_environment(environment)
        _without_tools(environment, functions)
        made: EnvironmentSpec = CODE.make(environment, ENVIRONMENTS[environment], settings)
        return made
    return _given(environment, settings, functions)


def require_environment(name: str) -> None:
    """Check that a built-in environment or a file has this name, without importing the file; modules are not looked up.

    Raises:
        EpisodeError: If there is none.
    """
    place, colon, _ = name.rpartition(":")
    if colon and place.endswith(".py"):
        CODE.existing(place, name)
    elif name.endswith(".py"):
        raise EpisodeError(f"environment {name!r} is a file; name its class too, {name}:CLASS")
    elif not colon and name not in ENVIRONMENTS:
        known = sorted(ENVIRONMENTS)
        choice = f"choose one of {', '.join(known)}, or give module:Class or file.py:Class"
        raise EpisodeError(f"there is no environment {name!r}{did_you_mean(name, known, choice)}")


def require_tool(name: str) -> None:
    """Check that the file of a tool exists, without importing it.

    Raises:
        EpisodeError: If it does not.
    """
    place = name.rpartition(":")[0]
    if place.endswith(".py"):
        TOOLS.existing(place, name)


def _given(environment: Any, options: Mapping[str, Any], tools: Sequence[Tool]) -> EnvironmentSpec:
    """Return the environment of a class or a function, or of the name of one."""
    make = CODE.load(environment) if isinstance(environment, str) else environment
    name = environment if isinstance(environment, str) else getattr(make, "__name__", type(make).__name__)
    if not isinstance(make, type) and hasattr(make, "reset"):
        raise EpisodeError(
            f"environment is an instance of {type(make).__name__}, and each episode needs its own; pass the class, or "
            f"a function that returns a new one, such as lambda: {type(make).__name__}(...)"
        )
    if not callable(make):
        raise EpisodeError(f"environment is {type_of(make)}; pass a class with `reset` and `step`, or its name")
    CODE.check_options(name, make, options)
    kind = make if isinstance(make, type) else type(CODE.make(name, make, options))
    if not callable(getattr(kind, "reset", None)):
        raise EpisodeError(f"the environment {name!r} has no method `reset`; write reset(self, *, seed, **columns)")
    if not callable(getattr(kind, "step", None)):
        return replace(trl_spec(name, kind, make, options, tools), **_attributes(name, kind))
    _without_tools(name, tools)
    described = getattr(kind, "tools", ())
    shown: dict[str, Any] = {"tools": tuple(described)} if isinstance(described, list | tuple) else {}
    return EnvironmentSpec(name, partial(make, **options), **_attributes(name, kind), **shown)


def _attributes(name: str, kind: type) -> dict[str, Any]:
    """Return what a class says about its episodes in attributes.

    Raises:
        EpisodeError: If a value cannot be used.
    """
    found = {key: getattr(kind, key) for key in _ALLOWED if hasattr(kind, key) and not callable(getattr(kind, key))}
    for key, value in found.items():
        allowed, words = _ALLOWED[key]
        if not allowed(value):
            raise EpisodeError(f"the attribute {key} of the environment {name!r} is {value!r}; set it to {words}")
    return found


def _is_truth(value: Any) -> bool:
    return isinstance(value, bool)


_ALLOWED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "worst": (lambda value: isinstance(value, int | float) and isfinite(value), "a finite number"),
    "pays": (_is_truth, "True or False"),
    "blames": (lambda value: value in get_args(Blame), " or ".join(map(repr, get_args(Blame)))),
    "replayable": (_is_truth, "True or False"),
}
"""Test of each attribute, and words for what passes it."""


def _without_tools(name: str, tools: Sequence[Tool]) -> None:
    if tools:
        raise EpisodeError(
            f"the environment {name!r} reads the policy's text itself, and environment.tools would never be called; "
            "remove them"
        )
