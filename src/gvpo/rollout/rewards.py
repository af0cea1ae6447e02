"""The rewards of a run: from names and settings to functions that are ready to score."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from gvpo import notices
from gvpo.config import TrainConfig
from gvpo.environments import EnvironmentSpec
from gvpo.environments.reward import ENVIRONMENT, EnvironmentReward
from gvpo.errors import ConfigError, RewardError, type_of
from gvpo.model.model import is_model
from gvpo.model.reward_model import RewardModel
from gvpo.model.tokenizer import is_tokenizer
from gvpo.rewards import MAKERS, REWARD_MODEL, InProcessReward, RewardBatch, RewardFunc, RewardPool, is_model_name, load
from gvpo.rewards.pool.checks import pickled
from gvpo.rewards.pool.local import is_local
from gvpo.rollout.problems import find_task
from gvpo.types import Verdict
from gvpo.update.distributed import ranks
from gvpo.workers.state import STATEFUL, keeps_state

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

RewardItem: TypeAlias = "str | RewardFunc | PreTrainedModel"
RewardFuncs: TypeAlias = "RewardItem | Sequence[RewardItem] | None"
"""One reward or several: functions, sequence classifiers, and names that are resolved as in a recipe."""
RewardTokenizers: TypeAlias = "PreTrainedTokenizerBase | Sequence[PreTrainedTokenizerBase | None] | None"
"""The tokenizers of the rewards that are classifiers."""


def reward_functions(
    config: TrainConfig,
    given: RewardFuncs,
    tokenizers: RewardTokenizers = None,
    environment: EnvironmentSpec | None = None,
) -> dict[str, RewardFunc]:
    """Return the rewards by name: those passed, else those of the settings, else those of the task.

    Args:
        config: Settings of the run.
        given: A reward or several: functions, sequence classifiers, and names as in a recipe.
        tokenizers: Tokenizers of the classifiers in `given`, with None for the other rewards; by default, the tokenizer
            of the directory or Hub ID that a classifier was loaded from.
        environment: Environment of the run, whose turns may have rewards.

    Raises:
        ConfigError: If two rewards have the same name, or the number of weights, tokenizers or options do not match.
        RewardError: If no reward has a given name, or its options do not match.
        ModelError: If a reward model does not have an option.
    """
    task = find_task(config)
    pays = environment is not None and environment.pays
    of_task = [task.reward] if task is not None and task.reward and not pays else []
    chosen = given if given is not None else config.reward_funcs or of_task
    if isinstance(chosen, TrainConfig):
        raise RewardError("reward_funcs is a TrainConfig; pass it as args=")
    if not isinstance(chosen, str | Iterable) and not callable(chosen):
        raise RewardError(f"reward_funcs is {type_of(chosen)}; pass functions or names of rewards")
    listed = [chosen] if isinstance(chosen, str) or callable(chosen) else list(chosen)
    named: dict[str, RewardItem] = {}
    for item in listed:
        name = _reward_name(item)
        if name in named:
            raise ConfigError(f"two rewards are called {name!r}; give them different names")
        named[name] = item
    _check_fit(config, named)
    words = _tokenizers(listed, tokenizers)
    loaded = {
        name: _loaded(item, config.reward_options.get(name), own)
        for (name, item), own in zip(named.items(), words, strict=True)
    }
    _tell_of_state(loaded)
    if environment is None or (not pays and not loaded):
        return loaded
    if ENVIRONMENT in loaded:
        raise ConfigError(f"a reward is called {ENVIRONMENT!r}, as that of the environment; give it another name")
    if config.accuracy_reward == ENVIRONMENT and not pays:
        raise ConfigError(f"rewards.accuracy_reward is {ENVIRONMENT!r}, whose turns have no rewards; name another one")
    own = {ENVIRONMENT: EnvironmentReward(environment, config.environment_turn_rewards)}
    return {**own, **loaded} if pays else {**loaded, **own}  # the first reward decides what is right


def reward_pool(config: TrainConfig, functions: Mapping[str, RewardFunc], *, log: Path | None = None) -> RewardPool:
    """Return the pool in which these functions run, according to the settings.

    Args:
        config: Settings of the run.
        functions: Result of `reward_functions`.
        log: File for the functions' output; opened when a worker starts.
    """
    return RewardPool(
        functions,
        _weights(config, functions),
        workers=config.reward_workers,
        timeout=config.reward_timeout,
        memory_limit=round(config.reward_memory_limit * 2**30),
        log=log,
    )


def _weights(config: TrainConfig, functions: Mapping[str, RewardFunc]) -> dict[str, float] | None:
    """Return the weight of each reward: that of the settings, which is 1 for the environment's; None without any."""
    if config.reward_weights is None:
        return None
    others = [name for name, function in functions.items() if not isinstance(function, EnvironmentReward)]
    return {**dict.fromkeys(functions, 1.0), **dict(zip(others, config.reward_weights, strict=True))}


class NoRewards:
    """A reward pool's place in a run whose objective needs no rewards and that has none: no row gets a verdict."""

    first_failure = None
    scores_batches = scores_rollouts = False

    def score(self, batches: Sequence[RewardBatch]) -> list[list[Verdict]]:
        """Return no verdicts."""
        return []

    def state_dict(self) -> dict[str, str]:
        """Return no states."""
        return {}

    def load_state_dict(self, states: Mapping[str, str]) -> None:
        """Do nothing."""


def _check_fit(config: TrainConfig, named: Mapping[str, RewardItem]) -> None:
    weights = config.reward_weights
    if weights is not None and len(weights) != len(named):
        raise ConfigError(f"rewards.weights has {len(weights)} values for {len(named)} rewards")
    for name in config.reward_options:
        if not isinstance(named.get(name), str) and not is_model(named.get(name)):
            raise ConfigError(f"rewards.options.{name} does not belong to any reward of the run; remove it")


def _tokenizers(rewards: Sequence[RewardItem], given: RewardTokenizers) -> "Sequence[PreTrainedTokenizerBase | None]":
    """Return one tokenizer, or None, per reward."""
    if given is None:
        return [None] * len(rewards)
    listed = [given] if is_tokenizer(given) else list(given)
    if len(listed) != len(rewards):
        raise ConfigError(
            f"reward_processing_classes has {len(listed)} values for {len(rewards)} rewards; give one per reward, None "
            "for those that are not models"
        )
    for item, tokenizer in zip(rewards, listed, strict=True):
        if tokenizer is not None and not (_is_model(item) and is_tokenizer(tokenizer)):
            raise ConfigError(
                f"reward_processing_classes has {type_of(tokenizer)} for the reward {_reward_name(item)!r}; "
                "give a tokenizer for each reward that is a model, and None for the others"
            )
    return listed


def _is_model(item: RewardItem) -> bool:
    """Return whether a reward is a classifier, or its directory or Hub ID rather than the name of a function."""
    return is_model_name(item) if isinstance(item, str) else is_model(item)


def _loaded(
    item: RewardItem, options: Mapping[str, Any] | None, tokenizer: "PreTrainedTokenizerBase | None"
) -> RewardFunc:
    """Return a function unchanged; a model as a reward; and a name as its reward function, built with its options."""
    settings = dict(options or {})
    if _is_model(item) and "reward" not in settings:
        model: Any = item
        if "CausalLM" in type(model).__name__:
            raise RewardError(
                f"reward_funcs contains a language model, {type(model).__name__}; pass a sequence classifier. A "
                "reference is not passed: set reference='initial'"
            )
        return RewardModel(model, **{"device": ranks.device(), "tokenizer": tokenizer, **settings})
    if not isinstance(item, str):
        return _callable_here(_reward_name(item), item)
    if options is None:
        return load(item, makers=_makers())
    return load(str(settings.pop("reward", item)), settings, makers=_makers())


def _callable_here(name: str, function: RewardFunc) -> RewardFunc:
    """Return a function that was passed, wrapped if it cannot be sent to a worker, so that it runs in this process."""
    if isinstance(function, type):
        raise RewardError(f"the reward {name!r} is a class; pass an instance, {name}()")
    if not callable(function) or is_local(function):
        return function
    try:
        pickled(name, function)
    except RewardError as error:
        notices.warn(
            f"{str(error).partition(';')[0]}, so it runs in the trainer's process, where nothing ends a call that "
            "hangs; to send it, create its locks, open files and clients on its first call"
        )
        return InProcessReward(name, function)
    return function


def _tell_of_state(rewards: Mapping[str, RewardFunc]) -> None:
    for name, function in rewards.items():
        inner = function.identity() if isinstance(function, InProcessReward) else function
        if getattr(inner, STATEFUL, False) is True and not keeps_state(inner):
            notices.warn(
                f"the reward {name!r} keeps a state and has no state_dict and load_state_dict, so a resumed run begins "
                "with a new state and does not repeat an unbroken one; add both methods"
            )


def _makers() -> dict[str, Callable[..., RewardFunc]]:
    """Return the built-in makers, and the maker whose reward runs on the trainer's device."""

    @functools.wraps(RewardModel)
    def on_device(path: str, **options: Any) -> RewardFunc:
        return RewardModel(path, **{"device": ranks.device(), **options})

    return {**MAKERS, REWARD_MODEL: on_device}


def _reward_name(item: RewardItem) -> str:
    if isinstance(item, str):
        return item.rpartition(":")[2]
    if is_model(item):
        return Path(item.name_or_path or "").name or type(item).__name__
    if isinstance(item, functools.partial):
        return _reward_name(item.func)
    return getattr(item, "__name__", type(item).__name__)
