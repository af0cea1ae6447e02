"""Settings that differ from their default but change nothing in this run: each is reported with the reason.

A setting with its default value is not reported, because it was probably not set.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from gvpo.config.engine_rules import SERVER, VLLM
from gvpo.config.environment_rules import unused_environments
from gvpo.config.settings import FIELDS, TrainConfig

if TYPE_CHECKING:
    from gvpo.config.plan import Given, RunPlan


def unused(config: TrainConfig, plan: "RunPlan", given: "Given") -> Iterator[str]:
    """Yield a notice per reason why settings have no effect.

    Args:
        config: Settings as given by the user.
        plan: Plan of the run.
        given: Arguments besides the settings.
    """
    for unread, names, why in (*_rules(plan, given), *unused_environments(plan, given)):
        found = [name for name in FIELDS if unread and _is_among(name, names) and _is_set(config, FIELDS[name])]
        if found:
            yield f"{', '.join(found)} {'has' if len(found) == 1 else 'have'} no effect: {why}"


def _is_among(name: str, names: tuple[str, ...]) -> bool:
    """Return whether a setting is among some names; a name that ends in . or _ stands for all with this prefix."""
    return any(name == each or (each[-1] in "._" and name.startswith(each)) for each in names)


def _is_set(config: TrainConfig, field: str) -> bool:
    default = TrainConfig.model_fields[field].get_default(call_default_factory=True)
    return field in config.model_fields_set and getattr(config, field) != default


_DRAWING = ("sampling.temperature", "sampling.top_", "sampling.allow", "sampling.ban", "sampling.tokens_per_batch")
_WARMING = ("warm_start.batch", "warm_start.learning_rate", "warm_start.schedule", "warm_start.warmup")
_STOPPING = ("eval.stop_at_accuracy", "eval.patience")


def _rules(plan: "RunPlan", given: "Given") -> Iterator[tuple[bool, tuple[str, ...], str]]:
    """Yield whether settings have no effect, their names, and the reason."""
    c = plan.settings
    draws, held_out = plan.samples or plan.evaluates, plan.evaluates or plan.compares
    keywords = plan.objective.bound(c)
    divides_by_length = keywords.get("reduction") == "constant"
    adapted = c.lora_rank is not None or c.lora_path is not None or given.adapter
    yield not plan.samples, ("sampling.group_size",), "training does not sample"
    yield not draws, _DRAWING, "nothing is sampled"
    yield not draws and not divides_by_length, ("sampling.max_tokens",), "nothing is sampled"
    yield not draws, ("rewards.",), "no completion is scored"
    stored = plan.source != "live" or plan.compares or c.warm_start_steps > 0 or c.rollout_logged > 0
    yield not stored, ("data.overlong_answers", "data.max_row_tokens"), "the data contain no answers"
    prompts = plan.source in ("live", "sampled once") or plan.evaluates
    yield not prompts, ("data.overlong_prompts",), "nothing is sampled"
    yield not plan.evaluates, ("eval.samples", "eval.greedy"), "there are no held-out problems"
    yield not held_out, ("eval.every", *_STOPPING), "there is no held-out data"
    yield held_out and c.eval_every == 0, _STOPPING, "eval.every is 0, so there is no evaluation before the end"
    yield not plan.reads_reference, ("objective.reference",), f"{c.objective} uses no reference"
    yield not draws, ("sampling.engine", "sampling.dtype", "sampling.check"), "nothing is sampled"
    yield c.sampling_engine != "server", SERVER, "sampling.engine is not 'server'"
    yield c.sampling_engine != "vllm", VLLM, "sampling.engine is not 'vllm'"
    yield c.sampling_engine == "transformers", ("sampling.transfer_dir",), "sampling.engine is 'transformers'"
    bounds = ("rollout.max_staleness", "rollout.late_groups")
    yield not c.rollout_asynchronous, bounds, "rollout.asynchronous is not set"
    yield plan.source != "live", ("rollout.live",), "no group is sampled in a step"
    yield c.rollout_logged == 0, ("rollout.logged_path",), "rollout.logged is 0"
    yield c.rollout_expert == 0, ("rollout.expert_",), "rollout.expert is 0"
    kept = c.rollout_history > 0 or c.rollout_reuse > 1
    yield not kept, ("rollout.max_age", "rollout.capacity"), "no completion is kept (rollout.history, rollout.reuse)"
    has_ratios = "old_logprobs" in plan.objective.needs
    yield not has_ratios, ("rollout.old_logprobs",), f"{c.objective} reads no old log-probs"
    recorded = c.rollout_old_logprobs == "sampler"
    yield recorded, ("objective.is_cap",), "old log-probs are the sampler's, so all importance weights are 1"
    yield not divides_by_length, ("objective.max_length",), "only the reduction 'constant' divides by it"
    kept = c.rollout_dead_groups == "keep"
    yield kept, ("rollout.dead_by",), "rollout.dead_groups is 'keep'"
    replaces = c.rollout_dead_groups == "replace"
    yield not replaces, ("rollout.max_replacements",), "rollout.dead_groups is not 'replace'"
    no_curriculum = c.rollout_curriculum == "none"
    yield no_curriculum, ("rollout.curriculum_target", "rollout.curriculum_by"), "rollout.curriculum is 'none'"
    yield c.task is None, ("data.task_options",), "data.task is not set"
    yield given.train is not None, ("data.train",), "train_dataset is used instead"
    yield given.objective is not None, ("objective.name",), "the objective that is passed is used instead"
    yield given.held_out == "problems", ("data.eval",), "eval_dataset is used instead"
    yield c.warm_start_steps == 0, _WARMING, "warm_start.steps is 0"
    passed = given.model and c.warm_start_steps > 0
    yield passed, ("warm_start.steps", *_WARMING), "the model that was passed is trained without a warm start"
    demonstrates = plan.source == "written" and c.task is not None
    unread = c.warm_start_steps == 0 and not demonstrates
    yield unread, ("warm_start.demonstrations", "warm_start.options"), "warm_start.steps is 0"
    yield not adapted, ("lora.base_dtype", "lora.quantization"), "no adapter is trained"
    yield "wandb" not in c.trackers, ("run.project",), "run.trackers does not contain wandb"
    yield c.push_to_hub is None, ("checkpoint.push_private",), "checkpoint.push_to_hub is not set"
