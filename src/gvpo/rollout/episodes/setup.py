"""The parts of episodes from settings: the environment, its pool, and the sampler of episodes."""

from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from gvpo.config import TrainConfig
from gvpo.environments import EnvironmentPool, EnvironmentSpec, load_environment
from gvpo.model.chat.tools import tool_schemas
from gvpo.model.endings import Ending
from gvpo.model.turns import TurnTemplate
from gvpo.rewards.identity import identity
from gvpo.rollout.episodes.sampler import EpisodeLimits, EpisodeSampler
from gvpo.rollout.problems import encode
from gvpo.sampling import Sampler
from gvpo.types import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EnvironmentItem: TypeAlias = str | Callable[..., Any] | None
"""An environment: its name, or a class or function that returns one."""


def environment_of(config: TrainConfig, given: EnvironmentItem = None) -> EnvironmentSpec | None:
    """Return the environment of a run: the one that is passed, else that of the settings; None if there is none.

    Raises:
        EpisodeError: If there is no such environment, or its options do not fit.
    """
    chosen = given if given is not None else config.environment
    if chosen is None and not config.environment_tools:
        return None
    return load_environment(chosen, config.environment_options, config.environment_tools)


def described_tools(spec: EnvironmentSpec | None) -> list[dict[str, Any]]:
    """Return the descriptions of an environment's tools, which the prompts of its episodes contain.

    Raises:
        ConfigError: If a tool cannot be described.
    """
    return tool_schemas(spec.tools) if spec is not None else []


def environment_identity(spec: EnvironmentSpec) -> str:
    """Return a fingerprint that changes with the code of an environment and the values that decide its answers."""
    return identity((spec.make, spec.tools, spec.worst, spec.pays, spec.blames))


def environment_pool(config: TrainConfig, spec: EnvironmentSpec, *, log: Path | None = None) -> EnvironmentPool:
    """Return the pool in which an environment runs, according to the settings; `log` is for its output.

    Raises:
        EpisodeError: If the environment cannot be sent to a worker.
    """
    return EnvironmentPool(
        spec,
        workers=config.environment_workers,
        timeout=config.environment_timeout,
        log=log,
        memory_limit=round(config.environment_memory_limit * 2**30),
    )


def turn_template(
    config: TrainConfig,
    tokenizer: "PreTrainedTokenizerBase",
    ending: Ending,
    spec: EnvironmentSpec | None = None,
) -> TurnTemplate:
    """Return the tokens between turns. An environment with tools also says messages with the role `tool`.

    Raises:
        ConfigError: If the chat template does not allow turns; the message says what to do.
    """
    return TurnTemplate.of(
        tokenizer,
        ending,
        text=config.environment_between,
        role=config.environment_observation_role,
        roles=("tool", "user") if config.environment_tools or (spec is not None and spec.tools) else (),
        stop_token_ids=config.stop_token_ids,
        template_args=config.template_args,
    )


def open_episodes(
    config: TrainConfig,
    spec: EnvironmentSpec | None,
    sampler: Sampler,
    tokenizer: "PreTrainedTokenizerBase",
    ending: Ending,
    *,
    context: int | None,
    log: Path | None = None,
) -> AbstractContextManager[Sampler]:
    """Return a context with the sampler of episodes, whose workers live as long; the sampler itself without a spec.

    Args:
        config: Settings of the run.
        spec: The environment, or None.
        sampler: Sampler of the policy.
        tokenizer: Tokenizer of the policy.
        ending: Tokens that end an answer.
        context: Maximum number of tokens of prompt and episode; None for no limit.
        log: File for the environments' output.
    """
    if spec is None:
        return nullcontext(sampler)
    pool = environment_pool(config, spec, log=log)
    limits = EpisodeLimits(
        config.environment_max_turns, config.environment_turn_tokens, config.environment_observation_tokens, context
    )

    tools = described_tools(spec)

    def encoded(problem: Problem) -> tuple[int, ...]:
        return encode(config, tokenizer, [problem], tools)[0].prompt

    return closing(EpisodeSampler(sampler, pool, turn_template(config, tokenizer, ending, spec), encoded, limits))
