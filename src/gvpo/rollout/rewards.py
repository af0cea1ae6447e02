"""The rewards of a run: from names and settings to functions that are ready to score."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gvpo.config import TrainConfig
from gvpo.errors import ConfigError, RewardError
from gvpo.model.reward_model import RewardModel
from gvpo.rewards import MAKERS, RewardFunc, RewardPool, load
from gvpo.rollout.problems import find_task
from gvpo.update.distributed import ranks

RewardFuncs = str | RewardFunc | Sequence[str | RewardFunc] | None
"""One reward function or several; a name is resolved as in a recipe."""


def reward_functions(config: TrainConfig, given: RewardFuncs) -> dict[str, RewardFunc]:
    """Return the rewards by name: those passed, else those of the settings, else those of the task.

    Raises:
        ConfigError: If two rewards have the same name, or the number of weights or the options do not match.
        RewardError: If no reward has a given name, or its options do not match.
        ModelError: If a reward model does not have an option.
    """
    task = find_task(config)
    chosen = given if given is not None else config.reward_funcs or ([task.reward] if task else [])
    if not isinstance(chosen, str | Iterable) and not callable(chosen):
        raise RewardError(f"reward_funcs is a {type(chosen).__name__}; pass functions or names of rewards")
    listed = [chosen] if isinstance(chosen, str) or callable(chosen) else list(chosen)
    named: dict[str, str | RewardFunc] = {}
    for item in listed:
        name = _reward_name(item)
        if name in named:
            raise ConfigError(f"two rewards are called {name!r}; give them different names")
        named[name] = item
    _check_fit(config, named)
    return {name: _loaded(item, config.reward_options.get(name)) for name, item in named.items()}


def reward_pool(config: TrainConfig, functions: Mapping[str, RewardFunc], *, log: Path | None = None) -> RewardPool:
    """Return the pool in which these functions run, according to the settings.

    Args:
        config: Settings of the run.
        functions: Result of `reward_functions`.
        log: File for the functions' output; opened when a worker starts.
    """
    weights = config.reward_weights
    return RewardPool(
        functions,
        dict(zip(functions, weights, strict=True)) if weights is not None else None,
        workers=config.reward_workers,
        timeout=config.reward_timeout,
        memory_limit=round(config.reward_memory_limit * 2**30),
        log=log,
    )


def _check_fit(config: TrainConfig, named: Mapping[str, str | RewardFunc]) -> None:
    weights = config.reward_weights
    if weights is not None and len(weights) != len(named):
        raise ConfigError(f"rewards.weights has {len(weights)} values for {len(named)} rewards")
    for name in config.reward_options:
        if not isinstance(named.get(name), str):
            raise ConfigError(f"rewards.options.{name} does not belong to any reward of the run; remove it")


def _loaded(item: str | RewardFunc, options: Mapping[str, Any] | None) -> RewardFunc:
    """Return a function unchanged; return a name as its reward function, built with its options."""
    if not isinstance(item, str):
        return item
    if options is None:
        return load(item, makers=_makers())
    settings = dict(options)
    return load(str(settings.pop("reward", item)), settings, makers=_makers())


def _makers() -> dict[str, Callable[..., RewardFunc]]:
    """Return the built-in makers, and the maker whose reward runs on the trainer's device."""

    @functools.wraps(RewardModel)
    def on_device(path: str, **options: Any) -> RewardFunc:
        return RewardModel(path, **{"device": ranks.device(), **options})

    return {**MAKERS, "reward_model": on_device}


def _reward_name(item: str | Callable[..., Any]) -> str:
    if isinstance(item, str):
        return item.rpartition(":")[2]
    return getattr(item, "__name__", type(item).__name__)
