"""Settings that are fine alone and cannot work together: what each combination's error says.

Some are known only when a run begins (offline groups may come as an argument): these messages have a name.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from gvpo.config.objectives import find_objective, learning_from, taking

if TYPE_CHECKING:
    from gvpo.config.settings import TrainConfig

NO_SAMPLER = (
    "objective.reference='previous' is the policy that samples, and offline none does; set it to 'initial' or 'every:N'"
)
FIXED_COSTS = (
    "objective.costs needs live samples: of logged groups the rates never change, and multipliers would grow for ever; "
    "leave out data.groups and data.sample_groups"
)
GROUPS_FOR_SFT = (
    "{name} learns from answers, not from groups; give rows with `prompt` and `completion`, or set data.task"
)


def impossible(c: "TrainConfig") -> Iterable[tuple[bool, str]]:
    """(condition, message) for settings that are fine alone and cannot work together."""
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
        f"rewards.options.{lost} is for none of rewards.funcs; they are {', '.join(named)}",
    )
    yield (
        c.vocabulary is not None and c.model_init is None,
        "model.vocabulary is for a fresh model; set model.init too",
    )
    yield c.model_init is not None and c.model_path is not None, "set model.path or model.init, not both"
    yield (
        c.sharding == "full" and c.tokens_per_microbatch == "auto",
        "train.tokens_per_microbatch='auto' cannot measure a split model; give a number with train.sharding='full'",
    )
    offline = c.groups_data is not None or c.sample_groups is not None
    yield c.groups_data is not None and c.sample_groups is not None, "set data.groups or data.sample_groups, not both"
    yield c.groups_data is not None and c.train_data is not None, "set data.groups or data.train, not both"
    yield offline and c.reference == "previous", NO_SAMPLER
    yield offline and c.costs is not None, FIXED_COSTS
    learns_from = find_objective(c.objective).learns_from
    yield offline and learns_from == "answers", GROUPS_FOR_SFT.format(name=c.objective)
    yield (
        learns_from != "groups" and c.temperature != 1,
        f"{c.objective} learns from written answers, and sampling.temperature={c.temperature:g} would divide the "
        "logits that it trains; set sampling.temperature=1",
    )
    yield from _preferences(c)
    yield from _lora(c)
    yield c.warm_start_steps > 0 and c.task is None, "warm_start needs data.task: its demonstrations come from there"


def _preferences(c: "TrainConfig") -> Iterable[tuple[bool, str]]:
    spec = find_objective(c.objective)
    yield (
        c.chosen_by != "best" and spec.learns_from != "pairs",
        f"data.chosen_by is for {' and '.join(learning_from('pairs'))}; {c.objective} compares all answers",
    )
    yield (
        c.weak_negatives > 0 and not spec.takes("weak_weight"),
        f"data.weak_negatives is for {' and '.join(taking('weak_weight'))}; {c.objective} has none",
    )
    yield (
        c.keep_share < 1 and spec.learns_from != "answers",
        f"data.keep_share is for {' and '.join(learning_from('answers'))}; filter the data of {c.objective} beforehand",
    )


def _lora(c: "TrainConfig") -> Iterable[tuple[bool, str]]:
    adapted = c.lora_rank is not None or c.lora_path is not None
    fresh = {"alpha": c.lora_alpha, "target_modules": c.lora_target_modules}
    given = next((name for name, value in fresh.items() if value), None)
    yield (
        c.lora_dropout > 0,
        f"lora.dropout={c.lora_dropout:g} does not work: updates need exact forwards; leave it at 0",
    )
    yield c.lora_rank is not None and c.lora_path is not None, "set lora.rank (a fresh adapter) or lora.path, not both"
    yield given is not None and c.lora_rank is None, f"lora.{given} is for a fresh adapter; set lora.rank too"
    yield (
        adapted and c.model_init is not None and c.warm_start_steps == 0,
        "lora would train beside random weights that stay as they are; set warm_start.steps, or model.path",
    )
