"""The rules between settings: which cannot work together, and which have an unexpected effect.

They are applied in one place, `gvpo.config.plan.resolve`. Each receives the plan so far and the arguments besides the
settings; each message contains the keys and a remedy.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from gvpo.config.defaults import rows_may_be_old
from gvpo.config.engine_rules import impossible_engines
from gvpo.config.environment_rules import impossible_environments
from gvpo.config.objectives import INPUT_OF, learning_from, taking
from gvpo.config.rollout_rules import doubtful_sources, impossible_sources
from gvpo.config.settings import OBJECTIVE_KEYWORDS, OWN_REFERENCES, TrainConfig, updates_per_step

if TYPE_CHECKING:
    from gvpo.config.plan import Given, RunPlan

EXAMPLES = {
    "segment_at": r'for example "\n", one segment per line',
    "costs": "for example { name_of_a_reward = 0.1 }",
    "teacher": "the path or Hub ID of a model with the same tokens",
}

MOST_UPDATES, WEAK_BETA = 4, 0.1
"""Number of updates on a rollout above which, and largest beta at which, the log-probs of all rows often fell."""

Broken = Iterator[tuple[bool, str]]
"""Pairs of whether a rule is broken and the message in that case."""


def impossible(plan: "RunPlan", given: "Given") -> Broken:
    """Yield the rules about settings that are valid by themselves but cannot work together."""
    yield from _objective(plan)
    yield from _sources(plan, given)
    yield from impossible_sources(plan)
    yield from impossible_engines(plan)
    yield from impossible_environments(plan, given)
    yield from _preferences(plan)
    yield from _overlong(plan)
    yield from _batches(plan.settings)
    yield from _model(plan.settings, given)


def _batches(c: TrainConfig) -> Broken:
    yield (
        c.epochs is not None and "steps" in c.model_fields_set,
        f"set train.steps or train.epochs, not both (they are {c.steps} and {c.epochs})",
    )
    yield (
        c.groups_per_update is not None and c.groups_per_update > c.prompts_per_step,
        f"train.groups_per_update={c.groups_per_update} is larger than train.prompts_per_step={c.prompts_per_step}",
    )
    yield (
        c.reward_weights is not None and len(c.reward_weights) != len(c.reward_funcs) and bool(c.reward_funcs),
        f"rewards.weights has {len(c.reward_weights or [])} values for {len(c.reward_funcs)} rewards.funcs",
    )
    named = [item.rpartition(":")[2] for item in c.reward_funcs]
    lost = next((name for name in c.reward_options if name not in named), None)
    yield (
        lost is not None and bool(named),
        f"rewards.options.{lost} does not belong to any of rewards.funcs, which are {', '.join(named)}",
    )
    yield (
        c.sharding == "full" and c.tokens_per_microbatch == "auto",
        "train.tokens_per_microbatch='auto' cannot measure a split model; set a number with train.sharding='full'",
    )


def _objective(plan: "RunPlan") -> Broken:
    c, spec = plan.settings, plan.objective
    bindable = [key for key in OBJECTIVE_KEYWORDS if key not in INPUT_OF]
    foreign = next((key for key in bindable if getattr(c, key) is not None and not spec.takes(key)), None)
    possible = ", ".join(key for key in bindable if spec.takes(key)) or "none of these"
    yield foreign is not None, f"objective.{foreign} is not a keyword of {c.objective}; it accepts {possible}"
    for key, example in EXAMPLES.items():
        name, is_set, is_needed = INPUT_OF[key], getattr(c, key) is not None, INPUT_OF[key] in spec.needs
        comes_from_turns = name == "segments" and plan.has_environment
        yield (
            is_needed and not is_set and not comes_from_turns,
            f"{c.objective} needs {name}: set objective.{key} ({example})",
        )
        yield (
            is_set and not is_needed,
            f"objective.{key} is not for {c.objective}, which uses no {name}; remove it",
        )
    yield (
        c.multiplier_rate is not None and c.costs is None,
        "objective.multiplier_rate needs objective.costs, which is not set; remove it",
    )
    yield (
        "rewards" not in spec.needs and c.kl_in_reward > 0,
        f"objective.kl_in_reward changes rewards, but {c.objective} has none; set it to 0",
    )
    yield (
        c.group_size < spec.min_group and plan.source != "logged",
        f"{c.objective} compares a prompt's completions: set sampling.group_size to {spec.min_group} or more "
        f"(it is {c.group_size})",
    )


def _sources(plan: "RunPlan", given: "Given") -> Broken:
    c, learns_from = plan.settings, plan.objective.learns_from
    offline = plan.source in ("logged", "sampled once")
    yield c.groups_data is not None and c.sample_groups is not None, "set data.groups or data.sample_groups, not both"
    yield c.groups_data is not None and c.train_data is not None, "set data.groups or data.train, not both"
    yield c.groups_data is not None and given.train is not None, "set data.groups or pass train_dataset, not both"
    yield (
        offline and c.reference == "previous",
        "objective.reference='previous' is the policy that samples, but offline training does not sample; set it to "
        "'initial' or 'every:N'",
    )
    yield (
        plan.source == "logged" and c.reference == "sampler",
        "objective.reference='sampler' is the policy that sampled a group, but no policy of the run sampled logged "
        "groups; set it to 'initial' or 'every:N'",
    )
    yield (
        offline and c.costs is not None,
        "objective.costs needs live samples: the rates of logged groups never change, so multipliers would grow "
        "forever; remove data.groups and data.sample_groups",
    )
    has_groups = c.groups_data is not None or c.sample_groups is not None or given.train == "groups"
    yield (
        has_groups and learns_from == "answers",
        f"{c.objective} learns from answers, not from groups; give rows with `prompt` and `completion`, or set "
        "data.task",
    )
    yield (
        learns_from == "pairs" and plan.source == "live",
        f"{c.objective} learns from preferences, not from live samples: set data.groups to rows with `prompt`, "
        "`chosen` and `rejected`, or pass them as train_dataset",
    )


def _preferences(plan: "RunPlan") -> Broken:
    c, learns_from = plan.settings, plan.objective.learns_from
    yield (
        learns_from != "groups" and c.temperature != 1,
        f"{c.objective} learns from written answers, but sampling.temperature={c.temperature:g} would divide the "
        "logits that it trains; set sampling.temperature=1",
    )
    yield (
        c.chosen_by != "best" and learns_from != "pairs",
        f"data.chosen_by is for {' and '.join(learning_from('pairs'))}; {c.objective} compares all answers",
    )
    yield (
        c.weak_negatives > 0 and not plan.objective.takes("weak_weight"),
        f"data.weak_negatives is for {' and '.join(taking('weak_weight'))}; {c.objective} has none",
    )
    yield (
        c.keep_share < 1 and learns_from != "answers",
        f"data.keep_share is for {' and '.join(learning_from('answers'))}; filter the data of {c.objective} yourself",
    )


def _overlong(plan: "RunPlan") -> Broken:
    c = plan.settings
    yield (
        c.overlong_completions != "keep" and plan.objective.learns_from != "groups",
        f"train.overlong_completions is for objectives that learn from groups; {c.objective} learns from written "
        "answers, see data.overlong_answers",
    )
    yield (
        c.overlong_answers == "cut" and "aligned_mean_logprobs" in plan.objective.needs,
        f"data.overlong_answers='cut' does not fit {c.objective}, whose scores are of whole answers; set it to 'drop'",
    )


def _model(c: TrainConfig, given: "Given") -> Broken:
    named = c.model_path is not None or c.model_init is not None or given.model
    yield not named, "there is no model: set model.path to a directory or Hub model ID, or model.init to create one"
    yield c.model_init is not None and c.model_path is not None, "set model.path or model.init, not both"
    yield (
        c.vocabulary is not None and c.model_init is None,
        "model.vocabulary is for a newly created model; also set model.init",
    )
    yield (
        c.model_init is not None and c.vocabulary is None and c.tokenizer is None and not given.model,
        "model.init needs a tokenizer: set model.vocabulary, or model.tokenizer to a directory",
    )
    yield c.warm_start_steps > 0 and c.task is None, "warm_start needs data.task: its demonstrations come from there"
    yield from _lora(c)


def _lora(c: TrainConfig) -> Broken:
    adapted = c.lora_rank is not None or c.lora_path is not None
    fresh = {"alpha": c.lora_alpha, "target_modules": c.lora_target_modules}
    set_too = next((name for name, value in fresh.items() if value), None)
    yield (
        c.lora_dropout > 0,
        f"lora.dropout={c.lora_dropout:g} does not work: updates need exact forwards; set it to 0",
    )
    yield c.lora_rank is not None and c.lora_path is not None, "set lora.rank (a new adapter) or lora.path, not both"
    yield set_too is not None and c.lora_rank is None, f"lora.{set_too} is for a new adapter; also set lora.rank"
    yield (
        adapted and c.model_init is not None and c.warm_start_steps == 0,
        "LoRA would train an adapter on frozen random weights; set warm_start.steps, or model.path",
    )


def _covered(plan: "RunPlan") -> str:
    """Return the name of the policy whose support the samples of a run have to cover."""
    return "the teacher" if plan.objective.takes("teacher") else "the reference policy"


def doubtful(plan: "RunPlan") -> Broken:
    """Yield a notice for settings that work but have an unexpected effect."""
    c, spec = plan.settings, plan.objective
    own = c.reference in OWN_REFERENCES and not rows_may_be_old(c, plan.source)
    updates = updates_per_step(c) * c.rollout_reuse
    beta = float(spec.bound(c).get("beta") or 1.0)
    yield (
        spec.needs_support and plan.source == "live" and updates > MOST_UPDATES and beta <= WEAK_BETA,
        f"{updates} updates on the same rollout with objective.beta={beta} often make all log-probs fall; set "
        "objective.beta=0.3 and objective.reference='sampler', or make fewer updates (`gvpo docs troubleshooting`)",
    )
    yield (
        spec.at_reference is not None and own and updates_per_step(c) == 1,
        f"{c.objective.upper()} with objective.reference={c.reference!r} and one update per rollout is "
        f"{spec.at_reference}; "
        "set reference='initial' or 'every:N', or train.groups_per_update below train.prompts_per_step",
    )
    yield (
        c.overlong_completions == "mask" and spec.needs_support,
        f"train.overlong_completions='mask' leaves {c.objective.upper()} with weights that do not sum to 0 over the "
        "trained rows of a group, so log Z(x) does not cancel; 'drop' keeps the sum at 0 (`gvpo docs data`)",
    )
    yield from doubtful_sources(plan)
    yield (
        c.kl_in_reward > 0 and own,
        f"objective.kl_in_reward with reference={c.reference!r} changes nothing: its log-probs are computed with the "
        "policy before the step, which is the reference; set reference='initial' or 'every:N'",
    )
    yield (
        spec.needs_support and plan.source != "live" and plan.source != "written",
        f"logged groups are finite and never cover {_covered(plan)}, so this run does not reach the unique "
        f"optimum of {c.objective.upper()}: completions outside the data are not penalized; watch eval/accuracy and "
        "stop early (`gvpo docs offline`)",
    )
