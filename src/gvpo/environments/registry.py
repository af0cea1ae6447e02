"""The registry of environments by name, as recipes write them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gvpo.environments.base import EnvironmentSpec
from gvpo.rewards.registry import load

ENVIRONMENTS: dict[str, Callable[..., EnvironmentSpec]] = {}
"""Functions that return the built-in environments for given options, by name."""


def load_environment(
    environment: str | Callable[..., Any] | None,
    options: Mapping[str, Any] | None = None,
    tools: Sequence[str | Callable[..., Any]] = (),
) -> EnvironmentSpec:
    """Return the environment that settings or arguments name.

    Args:
        environment: A key of `ENVIRONMENTS`, `module:Class`, `file.py:Class`, or a class or function that returns an
            environment; None with tools.
        options: Options of the environment.
        tools: Functions that the policy may call, or their names.

    Raises:
        EpisodeError: If there is no such environment, or its options do not fit.
    """
    settings = dict(options or {})
    if isinstance(environment, str) and environment in ENVIRONMENTS:
        return ENVIRONMENTS[environment](**settings)
    make: Any = environment if callable(environment) else _named(str(environment))
    return EnvironmentSpec(getattr(make, "__name__", str(environment)), lambda: make(**settings))


def _named(name: str) -> Any:
    return load.__globals__["_named"](name, {})
