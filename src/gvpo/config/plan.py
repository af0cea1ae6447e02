"""From settings to a plan, the first of the two phases in which a run is checked: without torch, models or data.

    TrainConfig, Given ──resolve──▶ RunPlan: the objective, the source of its groups, the warm start, the notices

Every rule between settings is applied here, once (`gvpo.config.rules`, `gvpo.config.unused`). Checks that need a model,
a tokenizer or data are in `gvpo.training.checks`.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from gvpo.config.defaults import (
    AUTOMATIC,
    engine_of,
    find_default,
    find_old_logprobs,
    left_open,
    regime,
    rows_may_be_old,
    rows_may_differ,
    same_reference,
)
from gvpo.config.environment_rules import has_environment
from gvpo.config.given_objective import name_of, spec_of
from gvpo.config.objectives import ObjectiveSpec, find_objective
from gvpo.config.rules import doubtful, impossible
from gvpo.config.settings import TrainConfig
from gvpo.config.unused import unused
from gvpo.errors import ConfigError

Kind = Literal["problems", "pairs", "groups"]
"""Kinds of data rows: problems, pairs of a better and a worse answer, or groups of completions with rewards."""

WARM_START = "warm-start"
"""Directory of the warm start inside the run directory."""
SHARED = (
    *("seed", "rank_timeout"),
    *("model_path", "model_init", "vocabulary", "tokenizer", "compute_dtype", "attention", "gradient_checkpointing"),
    *("task", "task_options", "warm_start_demonstrations", "warm_start_options"),
    *("chat", "system_prompt", "template_args", "stop_token_ids", "overlong_answers", "max_row_tokens"),
    *("weight_decay", "adam_beta1", "adam_beta2", "adam_eps", "max_grad_norm", "router_aux_coef"),
    *("tokens_per_microbatch", "prefix_sharing", "sharding"),
)
"""Settings that a warm start shares with its run: the model, the demonstrations, the prompts, and the updates."""


@dataclass(frozen=True)
class Given:
    """Arguments that are passed to a run besides its settings, as far as rules depend on them.

    Args:
        train: Kind of the training rows, if any are passed.
        held_out: Kind of the held-out rows, if any are passed.
        rewards: True if rewards are passed; None leaves them to the settings and the task.
        model: True if a model is passed.
        adapter: True if an adapter is passed, or a model that has one.
        objective: Objective that is passed as a function, if any.
        environment: True if an environment is passed.
    """

    train: Kind | None = None
    held_out: Kind | None = None
    rewards: bool | None = None
    model: bool = False
    adapter: bool = False
    objective: Callable[..., Any] | None = None
    environment: bool = False


@dataclass(frozen=True)
class RunPlan:
    """A run as described by its settings.

    Args:
        settings: Settings, with `objective.reference`, `objective.beta`, `rollout.old_logprobs` and others resolved.
        objective: Entry of its objective.
        source: Source of the groups of a step: "live" samples, groups that are "sampled once", "logged" groups,
            or "written" answers.
        evaluates: True if held-out problems are sampled.
        compares: True if held-out answers are compared.
        has_environment: True if an environment or tools answer the policy.
        warm_start: Plan of the stage that trains the starting model, if there is one.
        notices: Warnings about settings with an unexpected effect, and about settings without any effect.
        automatic: Fields of the settings that were left open and have been resolved.
    """

    settings: TrainConfig
    objective: ObjectiveSpec
    source: Literal["live", "sampled once", "logged", "written"]
    evaluates: bool
    compares: bool
    has_environment: bool = False
    warm_start: "RunPlan | None" = None
    notices: tuple[str, ...] = ()
    automatic: tuple[str, ...] = ()

    @property
    def samples(self) -> bool:
        """Return whether training samples completions, in each step or once."""
        return self.source in ("live", "sampled once")

    @property
    def reads_reference(self) -> bool:
        """Return whether the objective or a KL penalty reads the reference's log-probs."""
        keywords = self.objective.bound(self.settings)
        return self.objective.reads_reference(keywords) or self.settings.kl_in_reward > 0

    @property
    def trains_old_rows(self) -> bool:
        """Return whether the objective has ratios and may get rows that the policy did not sample in the same step."""
        return "old_logprobs" in self.objective.needs and rows_may_be_old(self.settings, self.source)

    @property
    def trains_engine_rows(self) -> bool:
        """Return whether the objective has ratios and gets rows of an engine with log-probs of its own."""
        return "old_logprobs" in self.objective.needs and rows_may_differ(self.settings, self.source)

    @property
    def resolved(self) -> dict[str, Any]:
        """Return the fields that were left open, with their values, as far as the run reads them."""
        others = self.trains_old_rows or self.trains_engine_rows
        reads = dict.fromkeys(("rollout_old_logprobs", "is_cap"), others)
        return {name: getattr(self.settings, name) for name in self.automatic if reads.get(name, self.reads_reference)}

    @property
    def introduction(self) -> str | None:
        """Return the line about the values that have been resolved; None if the run reads none of them."""
        resolved = {AUTOMATIC[name].rpartition(".")[2]: value for name, value in self.resolved.items()}
        values = [f"{key} {value}" for key, value in resolved.items() if value is not None]
        reasons = [regime(self.settings, self.source), *([engine_of(self.settings)] if self.trains_engine_rows else [])]
        return f"{', '.join(values)} ({', '.join(reasons)}; `gvpo docs objectives`)" if values else None

    def started_as(self, before: TrainConfig) -> Self:
        """Return the plan for resuming a run, which keeps what was resolved when it was started with `before`."""
        kept = {name: getattr(before, name) for name in self.automatic}
        return dataclasses.replace(self, settings=self.settings.replace(**kept))

    def at(self, run_dir: Path, model_path: str | None) -> Self:
        """Return the plan with a directory for its files, and with the path of the starting model, if it has one."""
        warm_start = self.warm_start and self.warm_start.at(run_dir / WARM_START, model_path)
        settings = self.settings.replace(run_dir=run_dir, model_path=model_path)
        return dataclasses.replace(self, settings=settings, warm_start=warm_start)


def resolve(config: TrainConfig, given: Given | None = None) -> RunPlan:
    """Apply every rule that depends only on settings.

    Args:
        config: Settings.
        given: Arguments besides the settings; by default there are none.

    Raises:
        ConfigError: If settings cannot work; the message contains the key and a remedy.
    """
    given = given or Given()
    objective, name = _objective(config, given)
    source = _source(config, objective, given)
    named = config.replace(objective=name)
    default, automatic = find_default(named, objective, source), left_open(config, objective)
    found = {**dataclasses.asdict(default), **find_old_logprobs(config, objective, source)}
    settings = named.replace(**{name: found[name] for name in automatic})
    settings = settings.replace(reference=same_reference(settings.reference, source))
    plan = RunPlan(
        settings,
        objective,
        source,
        _evaluates(config, given),
        _compares(config, given),
        has_environment(config, given),
        automatic=automatic,
    )
    for broken, message in impossible(plan, given):
        if broken:
            raise ConfigError(message)
    warms_up = config.warm_start_steps > 0 and not given.model
    stage = resolve(warm_start_settings(config), Given(model=True)) if warms_up else None
    doubts = (message for holds, message in doubtful(plan) if holds)
    return dataclasses.replace(plan, warm_start=stage, notices=(*doubts, *unused(config, plan, given)))


def warm_start_settings(config: TrainConfig) -> TrainConfig:
    """Return the settings of the stage that trains the starting model; settings not listed here are the defaults."""
    return TrainConfig(
        objective="sft",
        steps=config.warm_start_steps,
        prompts_per_step=config.warm_start_batch,
        learning_rate=config.warm_start_learning_rate,
        schedule=config.warm_start_schedule,
        warmup_updates=config.warm_start_warmup,
        eval_problems=0,
        rollouts_every=0,
        checkpoint_verify=False,
        **{name: getattr(config, name) for name in SHARED},
    )


def _objective(c: TrainConfig, given: Given) -> tuple[ObjectiveSpec, str]:
    """Return the entry of the objective and its name: that of the settings, or the function that is passed."""
    if given.objective is None:
        return find_objective(c.objective), c.objective
    return spec_of(given.objective, c.group_size), name_of(given.objective)


def _source(
    c: TrainConfig, objective: ObjectiveSpec, given: Given
) -> Literal["live", "sampled once", "logged", "written"]:
    if objective.learns_from == "answers":
        return "written"
    if c.groups_data is not None or given.train in ("pairs", "groups"):
        return "logged"
    return "sampled once" if c.sample_groups is not None else "live"


def _evaluates(c: TrainConfig, given: Given) -> bool:
    pays = given.environment or c.environment is not None
    judged = given.rewards if given.rewards is not None else bool(c.reward_funcs) or c.task is not None
    held_out = given.held_out == "problems" or c.eval_data is not None or c.task is not None
    return c.eval_problems > 0 and held_out and (judged or pays)


def _compares(c: TrainConfig, given: Given) -> bool:
    return c.eval_problems > 0 and (given.held_out in ("pairs", "groups") or c.eval_groups is not None)
