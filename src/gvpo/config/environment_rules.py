"""The rules of the section [environment]: what an environment works with, and which of its settings have no effect.

docs/guides/environments.md has the same rules as a table.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from gvpo.config.objectives import crediting_turns
from gvpo.config.rollout_rules import given_rows
from gvpo.config.settings import TrainConfig

if TYPE_CHECKING:
    from gvpo.config.plan import Given, RunPlan

Broken = Iterator[tuple[bool, str]]
"""Pairs of whether a rule is broken and the message in that case."""

_TRAINS_ON = {
    "sampled once": "groups that it samples once (data.sample_groups)",
    "logged": "logged groups",
    "written": "written answers",
}


def has_environment(c: TrainConfig, given: "Given") -> bool:
    """Return whether an environment or tools answer the policy."""
    return given.environment or c.environment is not None or bool(c.environment_tools)


def impossible_environments(plan: "RunPlan", given: "Given") -> Broken:
    """Yield the rules between settings of [environment], and between them and other sections."""
    if not plan.has_environment:
        return
    c, named = plan.settings, "environment.name" if not given.environment else "the environment that is passed"
    yield (
        bool(c.environment_tools) and (given.environment or c.environment is not None),
        f"{named} and environment.tools both answer the policy; remove one of them",
    )
    yield (
        plan.source != "live",
        f"an environment answers the policy while it samples, and this run trains on {_TRAINS_ON.get(plan.source)}; "
        "remove the environment, or train on live samples",
    )
    mixed = given_rows(c)
    yield (
        bool(mixed),
        f"{' + '.join(mixed)} would add completions that no environment has answered; remove it, or remove the "
        "environment",
    )
    yield from _limits(c)
    if c.environment_turn_credit == "to_go":
        yield from _turn_credit(plan)


def _limits(c: TrainConfig) -> Broken:
    yield (
        c.environment_max_turns > c.max_tokens,
        f"environment.max_turns={c.environment_max_turns} does not fit into sampling.max_tokens={c.max_tokens}, which "
        "is the limit of a whole episode; raise it, or allow fewer turns",
    )


def _turn_credit(plan: "RunPlan") -> Broken:
    c, spec = plan.settings, plan.objective
    key = "environment.turn_credit='to_go'"
    yield (
        not spec.token_advantages,
        f"{key} is not for {c.objective}, which has no advantage per turn but one term per episode; set it to "
        f"'episode', or objective.name to one of {', '.join(crediting_turns())}",
    )
    yield (
        c.environment_turn_rewards == "last",
        f"{key} needs environment.turn_rewards='sum': the reward of the last turn belongs to the whole episode",
    )
    yield (
        c.kl_in_reward > 0,
        f"objective.kl_in_reward changes the reward of an episode, and {key} divides it among turns; set it to 0, or "
        "use objective.kl_coef",
    )
    yield c.group_size < 2, f"{key} compares the rows of a group: set sampling.group_size to 2 or more"


def unused_environments(plan: "RunPlan", given: "Given") -> Iterator[tuple[bool, tuple[str, ...], str]]:
    """Yield whether settings of [environment] have no effect, their names, and the reason."""
    c = plan.settings
    yield not plan.has_environment, ("environment.",), "there is no environment (environment.name, environment.tools)"
    yield given.environment, ("environment.name",), "the environment that is passed is used instead"
    per_turn = plan.has_environment and c.environment_turn_credit == "to_go"
    yield per_turn, ("objective.baseline",), "environment.turn_credit='to_go' compares with the other rows of a group"
    long = c.environment_turn_tokens is not None and c.environment_turn_tokens >= c.max_tokens
    yield long, ("environment.turn_tokens",), "sampling.max_tokens, the limit of a whole episode, is not larger"
