"""The section [rollout] of a recipe: where the groups of a step come from, and how long they are used."""

from typing import Literal

from pydantic import Field

from gvpo.config.section import Section


class RolloutSection(Section):
    """[rollout] Sources of the groups of each step. By default the live policy samples all completions."""

    rollout_staleness: int = Field(
        default=0,
        ge=0,
        description="Age of the sampling policy in steps: the groups of step t are sampled by the policy after step "
        "t - 1 - staleness; 0: by the current policy",
    )
    rollout_asynchronous: bool = Field(
        default=False,
        description="Sample and score later groups in the background while the policy is updated, so that a group may "
        "be as old as rollout.max_staleness",
    )
    rollout_max_staleness: int = Field(
        default=1,
        ge=0,
        description="Maximum age in steps of the groups of rollout.asynchronous; the trainer waits for groups that "
        "would exceed it; 0: every group is sampled by the current policy",
    )
    rollout_late_groups: int = Field(
        default=0,
        ge=0,
        description="Maximum number of unfinished groups that a step of rollout.asynchronous does not wait for; they "
        "are trained on in a later step within rollout.max_staleness",
    )
    rollout_live: int | None = Field(
        default=None,
        ge=0,
        description="Number of completions per group that the policy samples in the step; default: sampling.group_size "
        "minus the completions of the other sources",
    )
    rollout_history: int = Field(
        default=0,
        ge=0,
        description="Number of completions per group that this run sampled for the same prompt in earlier steps, the "
        "newest first; missing ones are sampled live",
    )
    rollout_logged: int = Field(
        default=0,
        ge=0,
        description="Number of completions per group that are read from rollout.logged_path; missing ones are sampled "
        "live",
    )
    rollout_expert: int = Field(
        default=0,
        ge=0,
        description="Number of completions per group that rollout.expert_model writes; missing ones are sampled live",
    )
    rollout_logged_path: str | None = Field(
        default=None,
        description="Completions for rollout.logged: a file of groups in the format of data.groups, or a run directory",
    )
    rollout_expert_url: str | None = Field(
        default=None, description="Base URL of an OpenAI-compatible endpoint, such as http://localhost:8000/v1"
    )
    rollout_expert_model: str | None = Field(default=None, description="Name of the expert model at rollout.expert_url")
    rollout_expert_api_key_env: str | None = Field(
        default=None, description="Environment variable with the API key of rollout.expert_url"
    )
    rollout_reuse: int = Field(
        default=1,
        ge=1,
        description="Number of steps in which each group is trained on; a step then samples 1 / reuse of its groups, "
        "and the others are kept ones",
    )
    rollout_max_age: int | None = Field(
        default=None,
        ge=1,
        description="Maximum age in steps of kept completions (rollout.reuse, rollout.history); older ones are "
        "dropped; default: no limit",
    )
    rollout_capacity: int | None = Field(
        default=None,
        ge=1,
        description="Maximum number of kept completions, of rollout.reuse and of rollout.history each; the oldest are "
        "dropped; default: no limit",
    )
    rollout_old_logprobs: Literal["auto", "trainer", "sampler"] = Field(
        default="auto",
        description="Old log-probs of objectives with ratios; sampler: those recorded when a completion was sampled; "
        "trainer: those of the policy at the start of the step, with truncated importance weights (objective.is_cap) "
        "for completions of older policies or another engine; auto: trainer if the current policy samples all "
        "completions or objective.is_cap is set, otherwise sampler",
    )
    rollout_dead_groups: Literal["keep", "drop", "replace"] = Field(
        default="keep",
        description="Treatment of groups without a difference to learn from; keep: train on them; drop: leave them "
        "out of the step; replace: sample other prompts in their place (dynamic sampling, DAPO)",
    )
    rollout_dead_by: Literal["reward", "accuracy"] = Field(
        default="reward",
        description="Definition of a dead group; reward: all rewards are equal; accuracy: all completions are correct, "
        "or none is",
    )
    rollout_max_replacements: int = Field(
        default=4,
        ge=1,
        description="Maximum number of rounds per step in which dead groups are replaced; after the last one the step "
        "is smaller",
    )
    rollout_curriculum: Literal["none", "accuracy"] = Field(
        default="none",
        description="Choice of prompts; none: shuffled epochs; accuracy: prompts whose running accuracy is near "
        "rollout.curriculum_target are drawn more often",
    )
    rollout_curriculum_target: float = Field(
        default=0.5, gt=0, lt=1, description="Running accuracy of the prompts that the curriculum prefers"
    )
    rollout_curriculum_by: str | None = Field(
        default=None,
        description="Column whose values share a running accuracy, such as level; default: each prompt has its own",
    )
