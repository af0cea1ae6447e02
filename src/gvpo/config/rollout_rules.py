"""The rules of the section [rollout]: which sources of groups work together, and which need other settings.

docs/guides/off-policy.md has the same rules as a table.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from gvpo.config.defaults import overlaps
from gvpo.config.engine_rules import address_errors
from gvpo.config.settings import STEP_STARTS, TrainConfig

if TYPE_CHECKING:
    from gvpo.config.plan import RunPlan

Broken = Iterator[tuple[bool, str]]
"""Pairs of whether a rule is broken and the message in that case."""


def impossible_sources(plan: "RunPlan") -> Broken:
    """Yield the rules between settings of [rollout], and between them and other sections."""
    yield from _older(plan)
    yield from _asynchronous(plan)
    yield from _mixture(plan)
    yield from _previous(plan)
    yield from _old_logprobs(plan)
    yield from _dynamic(plan)


def _older(plan: "RunPlan") -> Broken:
    """Yield the rules about groups that are trained on after the step that samples them."""
    c = plan.settings
    stale, reused = c.rollout_staleness > 0, c.rollout_reuse > 1
    yield stale and reused, "rollout.staleness and rollout.reuse both make groups older; set one of them"
    for key in [name for name, is_set in (("staleness", stale), ("reuse", reused)) if is_set]:
        yield (
            plan.source != "live",
            f"rollout.{key} is for groups that are sampled in each step, which this run does not do; remove it",
        )
        yield (
            c.costs is not None,
            f"objective.costs needs the rates of the current policy's samples, and rollout.{key} trains on older ones; "
            "remove one",
        )
    yield (
        reused and c.rollout_capacity is not None and c.rollout_capacity < c.group_size,
        f"rollout.capacity={c.rollout_capacity} completions cannot keep a group of {c.group_size}; raise it, or remove "
        "rollout.reuse",
    )


def _asynchronous(plan: "RunPlan") -> Broken:
    """Yield the rules about groups that are sampled in the background."""
    c = plan.settings
    if not c.rollout_asynchronous:
        return
    yield (
        plan.source != "live",
        "rollout.asynchronous is for groups that are sampled in each step, which this run does not do; remove it",
    )
    for key, is_set in (
        ("staleness", c.rollout_staleness > 0),
        ("reuse", c.rollout_reuse > 1),
        *((name, getattr(c, f"rollout_{name}") > 0) for name in GIVEN),
        ("curriculum", c.rollout_curriculum != "none"),
        ("dead_groups='replace'", c.rollout_dead_groups == "replace"),
    ):
        yield is_set, f"rollout.{key} does not work with rollout.asynchronous; remove one"
    yield (
        c.costs is not None and overlaps(c),
        "objective.costs needs the rates of the current policy's samples, and rollout.asynchronous trains on older "
        "ones; set rollout.max_staleness to 0, or remove one",
    )
    yield (
        c.rollout_late_groups > 0 and c.rollout_max_staleness == 0,
        "rollout.late_groups are trained on one step later, which rollout.max_staleness=0 does not allow; raise it",
    )
    yield (
        c.rollout_late_groups >= c.prompts_per_step,
        f"rollout.late_groups={c.rollout_late_groups} would let a step of {c.prompts_per_step} groups begin without "
        "any; set it below train.prompts_per_step",
    )
    for key, cuts in (
        ("top_p", c.top_p < 1),
        ("top_k", c.top_k > 0),
        ("allow", bool(c.sampling_allow)),
        ("ban", bool(c.sampling_ban)),
    ):
        yield (
            cuts and overlaps(c) and plan.reads_reference and c.reference == "sampler",
            f"objective.reference='sampler' reads the log-probs that the sampler recorded, which sampling.{key} "
            "changes; remove it, or set the reference to 'initial' or 'every:N'",
        )


GIVEN = ("history", "logged", "expert")
"""Sources of given rows: completions of a group that are not sampled in the step."""


def given_rows(c: TrainConfig) -> list[str]:
    """Return the settings of the sources that groups contain rows of, besides live ones."""
    return [f"rollout.{name}" for name in GIVEN if getattr(c, f"rollout_{name}") > 0]


def _mixture(plan: "RunPlan") -> Broken:
    c, mixed = plan.settings, given_rows(plan.settings)
    names, total = " + ".join(mixed), c.rollout_history + c.rollout_logged + c.rollout_expert
    yield (
        total > c.group_size,
        f"{names} are {total} completions per group, but sampling.group_size is {c.group_size}; raise it",
    )
    yield (
        c.rollout_live is not None and c.rollout_live + total != c.group_size,
        f"{' + '.join(['rollout.live', *mixed])} are {(c.rollout_live or 0) + total} completions per group, but "
        f"sampling.group_size is {c.group_size}; make them equal, or leave rollout.live out",
    )
    yield (
        bool(mixed) and plan.source != "live",
        f"{names} is for groups that are sampled in each step; remove it, or remove data.groups and data.sample_groups",
    )
    yield from _companions(c)
    yield (
        c.rollout_expert > 0 and "old_logprobs" in plan.objective.needs,
        f"{c.objective} needs the log-probs of the policy that sampled a completion, and an expert gives none; remove "
        "rollout.expert, or choose an objective without ratios, such as gvpo",
    )
    yield (
        bool(mixed) and plan.reads_reference and c.reference in STEP_STARTS,
        f"objective.reference={c.reference!r} is the policy at the start of the step, which did not sample the rows of "
        f"{names}; set it to 'initial' or 'every:N'",
    )
    yield (
        bool(mixed) and plan.reads_reference and c.reference == "sampler",
        f"objective.reference='sampler' needs groups that one policy of the run sampled, and {names} mixes them; set "
        "it to 'initial' or 'every:N'",
    )
    yield (
        bool(mixed) and c.costs is not None,
        f"objective.costs needs rates of the policy's own samples, which the rows of {names} would change; remove one",
    )


def doubtful_sources(plan: "RunPlan") -> Broken:
    """Yield a notice for sources that work but have an unexpected effect."""
    yield from _narrow_clip(plan)
    c = plan.settings
    total = c.rollout_history + c.rollout_logged + c.rollout_expert
    yield (
        0 < total == c.group_size,
        "rollout.live is 0, so no completion of a group is sampled unless a source lacks one; tokens that the policy "
        "begins to prefer are then never corrected, and history is never renewed; sample at least one live completion",
    )
    yield (
        c.epochs is None and c.rollout_staleness >= c.steps > 1,
        f"rollout.staleness={c.rollout_staleness} is not below train.steps={c.steps}, so the starting policy samples "
        "all groups; lower it, or set data.sample_groups to sample them once",
    )
    yield (
        c.epochs is None and c.rollout_reuse > c.steps > 1,
        f"rollout.reuse={c.rollout_reuse} is more than train.steps={c.steps}, so no group is trained on that often; "
        "lower it",
    )


WIDER = 0.005
"""Half-width of a clip range that is wider than what rounding changes in the mean log-ratio of a completion."""


def _narrow_clip(plan: "RunPlan") -> Broken:
    """Yield a notice for ratios to log-probs of another engine, whose rounding exceeds the clip range."""
    c, width = plan.settings, plan.objective.bound(plan.settings).get("clip_high")
    yield (
        width is not None and width < WIDER and plan.trains_engine_rows and c.rollout_old_logprobs == "sampler",
        f"{c.objective} clips ratios above 1 + {width or 0:g}, and the rounding of another engine changes recorded "
        "log-probs by more, so it clips completions that no update has changed; set objective.clip_low and "
        "objective.clip_high to 0.03, or choose grpo",
    )


def _companions(c: TrainConfig) -> Broken:
    """Yield the settings that a source needs and that are missing."""
    for source, key in (("logged", "logged_path"), ("expert", "expert_url"), ("expert", "expert_model")):
        yield (
            getattr(c, f"rollout_{source}") > 0 and getattr(c, f"rollout_{key}") is None,
            f"rollout.{source} needs rollout.{key}, which is not set",
        )
    if c.rollout_expert_url is not None:
        yield from address_errors(c.rollout_expert_url, "rollout.expert_url", "rollout.expert_api_key_env")


def _previous(plan: "RunPlan") -> Broken:
    """Yield the rule about groups of older policies, whose log-ratios to the start of the step would all be 0."""
    c = plan.settings
    kinds = {"staleness": c.rollout_staleness > 0, "reuse": c.rollout_reuse > 1, "asynchronous": overlaps(c)}
    for key, older in kinds.items():
        yield (
            older and plan.reads_reference and c.reference in STEP_STARTS,
            f"objective.reference={c.reference!r} is the policy at the start of the step, which did not sample the "
            f"groups of rollout.{key}, so log-ratios to it say nothing about them; set it to 'sampler'",
        )


def _old_logprobs(plan: "RunPlan") -> Broken:
    c = plan.settings
    weighs = plan.objective.takes("is_cap") or "sampler_logprobs" in plan.objective.needs
    yield (
        plan.trains_old_rows and c.rollout_old_logprobs == "trainer" and not weighs,
        f"rollout.old_logprobs='trainer' needs an objective with truncated importance weights on rows of other "
        f"policies, which {c.objective} does not have; set it to 'sampler'",
    )


def _dynamic(plan: "RunPlan") -> Broken:
    c = plan.settings
    replaces, draws = c.rollout_dead_groups == "replace", c.rollout_curriculum != "none"
    yield (
        replaces and plan.source != "live",
        "rollout.dead_groups='replace' samples other prompts in each step, and this run does not; set it to 'drop' or "
        "'keep'",
    )
    yield (
        c.rollout_dead_groups == "drop" and plan.objective.learns_from != "groups",
        f"rollout.dead_groups is for objectives that learn from groups with rewards; {c.objective} does not; set it to "
        "'keep'",
    )
    yield (
        draws and plan.source != "live",
        "rollout.curriculum chooses the prompts to sample in each step, and this run does not sample in each step; set "
        "it to 'none'",
    )
    yield (
        (draws or replaces) and c.epochs is not None,
        f"train.epochs counts passes through the prompts in order, which "
        f"{'rollout.curriculum' if draws else 'the replacement of dead groups'} does not make; set train.steps",
    )
