"""The section [environment] of a recipe: what the policy talks to, for how long, and how its turns are rewarded."""

from typing import Any, Literal

from pydantic import Field

from gvpo.config.objectives import crediting_turns
from gvpo.config.section import Section


class EnvironmentSection(Section):
    """[environment] An environment or tools that answer the policy, in several turns. By default there is none."""

    environment: str | None = Field(
        default=None,
        description="Environment that answers the policy: a name in gvpo.environments, module:Class or file.py:Class",
    )
    environment_options: dict[str, Any] = Field(default_factory=dict, description="Options of the environment")
    environment_tools: list[str] = Field(
        default_factory=list,
        description="Tools that the policy may call, as module:function or file.py:function, instead of "
        "environment.name",
    )
    environment_max_turns: int = Field(default=8, ge=1, description="Maximum number of the policy's turns per episode")
    environment_turn_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Maximum number of tokens that the policy samples per turn; default: no limit besides "
        "sampling.max_tokens, which is the limit of the whole episode, including the environment's tokens",
    )
    environment_observation_tokens: int = Field(
        default=512,
        ge=1,
        description="Maximum number of tokens of what the environment says in a turn; a longer text is cut in its "
        "middle",
    )
    environment_observation_role: Literal["auto", "user", "tool"] = Field(
        default="auto",
        description="Role of what the environment says in the chat template; auto: tool for results of tools, and "
        "user for text",
    )
    environment_between: str | None = Field(
        default=None,
        description="Text between two turns of the policy, with {observation} for what the environment says; default: "
        "what the chat template writes",
    )
    environment_turn_rewards: Literal["sum", "last"] = Field(
        default="sum",
        description="Reward of an episode from the rewards of its turns; sum: their sum; last: that of the last turn "
        "that has one",
    )
    environment_turn_credit: Literal["episode", "to_go"] = Field(
        default="episode",
        description="Advantage of a turn; episode: that of the whole episode; to_go: rewards from that turn on, minus "
        f"their mean over the other episodes of the group ({', '.join(crediting_turns())})",
    )
    environment_timeout: float = Field(
        default=10.0, gt=0, description="Maximum number of seconds of the environment per turn"
    )
    environment_workers: int = Field(
        default=2, ge=1, description="Number of worker processes in which environments run"
    )
    environment_memory_limit: float = Field(default=4.0, gt=0, description="Maximum memory per worker, in GiB")
