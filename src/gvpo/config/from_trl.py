"""Conversion of TRL's configurations: the settings of gvpo with which a run does what TRL's trainer would do.

    GRPOConfig, RLOOConfig, DPOConfig, SFTConfig or a dict ──convert──▶ settings, options without a counterpart

Options whose values carry over unchanged are marked in the table of `gvpo.config.aliases`; the functions here convert
the others. Imports neither TRL nor transformers: a configuration is read through its dataclass fields.
"""

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from gvpo.config.aliases import ANSWERS, Answer
from gvpo.config.trl_engine import engine, weights
from gvpo.errors import ConfigError, type_of
from gvpo.nearest import did_you_mean

Settings = Iterator[tuple[str, Any]]
"""Settings in the spelling of recipes, with their values."""

UNKNOWN = "gvpo does not know it"
FLAGS = {"all": ["tensorboard", "wandb"], "none": []}
"""Values of report_to that stand for several trackers."""

_COMMON = {
    "output_dir": "trainer_output",
    "max_steps": -1,
    "num_train_epochs": 3.0,
    "learning_rate": 1e-6,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0,
    "max_grad_norm": 1.0,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "gradient_checkpointing": True,
    "bf16": True,
    "fp16": False,
    "seed": 42,
    "logging_steps": 10,
    "eval_strategy": "no",
    "eval_steps": None,
    "save_strategy": "steps",
    "save_steps": 500,
    "save_total_limit": None,
    "report_to": "none",
    "project": "huggingface",
    "push_to_hub": False,
    "hub_model_id": None,
    "hub_private_repo": None,
}
_REFERENCE = {"sync_ref_model": False, "ref_model_sync_steps": 512, "ref_model_mixup_alpha": 0.6}
_ONLINE = {
    **_COMMON,
    **_REFERENCE,
    "num_generations": 8,
    "max_completion_length": 512,
    "generation_batch_size": None,
    "steps_per_generation": None,
    "num_iterations": 1,
    "beta": 0.0,
    "use_vllm": False,
    "vllm_mode": "colocate",
    "vllm_gpu_memory_utilization": 0.3,
}
_CLIPPED = {
    "epsilon": 0.2,
    "epsilon_high": None,
    "loss_type": "dapo",
    "importance_sampling_level": "token",
    "scale_rewards": "group",
    "vllm_importance_sampling_correction": True,
    "vllm_importance_sampling_mode": "sequence_mask",
    "vllm_importance_sampling_cap": None,
    "vllm_importance_sampling_clip_max": 3.0,
    "mask_truncated_completions": False,
}
_CUT = {"max_length": 1024, "truncation_mode": "keep_start"}
DEFAULTS: dict[str, dict[str, Any]] = {
    "GRPOConfig": {**_ONLINE, **_CLIPPED},
    "RLOOConfig": {**_ONLINE, "mask_truncated_completions": False, "num_generations": 2, "beta": 0.05},
    "DPOConfig": {**_COMMON, **_REFERENCE, **_CUT, "beta": 0.1, "loss_type": ["sigmoid"]},
    "SFTConfig": {**_COMMON, **_CUT, "learning_rate": 2e-5, "loss_type": "nll"},
}
"""TRL's defaults of the options that a conversion reads, by configuration; they complete a dict."""

ONLINE = ("GRPOConfig", "RLOOConfig")
LOSSES = {"grpo": "grpo", "dapo": "dapo", "bnpo": "dapo", "dr_grpo": "dr_grpo", "cispo": "cispo"}
"""Values of loss_type that are objectives of gvpo. bnpo averages over the tokens of each forward; since forwards never
change a result here, it becomes dapo, the mean over all tokens of the update."""


class Options:
    """The options of one of TRL's configurations.

    Args:
        kind: A key of `DEFAULTS`.
        values: Every option that has a value, with defaults filled in.
        untouched: The values that the options have if nothing is set.
    """

    def __init__(self, kind: str, values: Mapping[str, Any], untouched: Mapping[str, Any]) -> None:
        self.kind, self.values, self._untouched = kind, values, untouched
        self._read: set[str] = set()
        self._lost: dict[str, str] = {}

    def __getitem__(self, name: str) -> Any:
        """Return the value of an option, which then counts as converted."""
        self._read.add(name)
        return self.values.get(name)

    def is_set(self, name: str) -> bool:
        """Return whether an option differs from its default."""
        value, default = self.values.get(name), self._untouched.get(name)
        return bool(value if default is None else value != default)

    def lose(self, name: str, why: str) -> None:
        """Record that the value of an option has no counterpart."""
        self._lost[name] = why

    def lost(self) -> list[str]:
        """Return the options without a counterpart that differ from their defaults, each with what to do instead."""
        for name in filter(self.is_set, self.values):
            answer = ANSWERS.get(name)
            if name not in self._read and not (answer and answer.needless):
                self._lost.setdefault(name, _instead(answer) if answer else UNKNOWN)
        return [f"{name}={_plain(self.values.get(name))!r} ({why})" for name, why in self._lost.items()]


def _instead(answer: Answer) -> str:
    return answer.sentence() if answer.key else answer.hint


def _plain(value: Any) -> Any:
    """Return the value of an option, also of one that transformers stores as a member of an enumeration."""
    return getattr(value, "value", value)


def convert(options: object, kind: str = "GRPOConfig") -> tuple[dict[str, Any], list[str]]:
    """Return the settings that correspond to TRL's options, and the options that have no counterpart.

    Args:
        options: A GRPOConfig, RLOOConfig, DPOConfig or SFTConfig, or a mapping of options.
        kind: Configuration that a mapping belongs to.

    Returns:
        Settings in the spelling of recipes with their values, and one text per option without a counterpart.

    Raises:
        ConfigError: If `options` is something else, or a mapping has an option that TRL does not have.
    """
    o = _of_mapping(options, kind) if isinstance(options, Mapping) else _of_object(options)
    rules = [_copied, _adapter, _length, _schedule, _precision, engine, _saving, _evaluation, _trackers, _RULES[o.kind]]
    return {key: value for rule in rules for key, value in rule(o)}, o.lost()


def _of_mapping(options: Mapping[str, Any], kind: str) -> Options:
    if kind not in DEFAULTS:
        raise ConfigError(f"kind={kind!r} is not a configuration of TRL; choose one of {', '.join(DEFAULTS)}")
    unknown = [name for name in options if name not in ANSWERS]
    if unknown:
        raise ConfigError(f"TRL has no option {unknown[0]!r}{did_you_mean(unknown[0], ANSWERS)}")
    return Options(kind, {**DEFAULTS[kind], **options}, DEFAULTS[kind])


def _of_object(options: object) -> Options:
    kind = next((base.__name__ for base in type(options).__mro__ if base.__name__ in DEFAULTS), None)
    if kind is None or not dataclasses.is_dataclass(options):
        raise ConfigError(f"cannot convert {type_of(options)}; pass {', '.join(DEFAULTS)} or a dict of options")
    return Options(kind, _values(options), _untouched(options))


def _untouched(options: Any) -> dict[str, Any]:
    """Return the values of a configuration of the same kind in which nothing is set, with those that it computes."""
    declared = {field.name: field.default for field in dataclasses.fields(options)}
    machine = {name: getattr(options, name) for name in ("use_cpu", "bf16") if name in declared}
    with suppress(Exception):  # a subclass may have required fields; on a CPU bf16 is refused
        return {**_values(type(options)(**machine)), **{name: declared[name] for name in machine}}
    return declared


def _values(options: Any) -> dict[str, Any]:
    return {field.name: getattr(options, field.name, None) for field in dataclasses.fields(options)}


def _copied(o: Options) -> Settings:
    """Yield the options whose values carry over unchanged."""
    for name in o.values:
        answer = ANSWERS.get(name)
        if answer is None or not answer.same or answer.key.startswith("lora."):
            continue
        if (value := o[name]) is not None:
            yield answer.key, json.loads(value) if name == "chat_template_kwargs" and isinstance(value, str) else value


def _adapter(o: Options) -> Settings:
    """Yield the options of `trl grpo --config`, which has those of an adapter in addition."""
    rank, alpha, names = o["lora_r"] or 16, o["lora_alpha"] or 32, o["lora_target_modules"]
    if o["use_peft"]:
        yield from (("lora.rank", rank), ("lora.alpha", alpha), ("lora.dropout", o["lora_dropout"] or 0.0))
        listed = [names] if isinstance(names, str) else names or []
        yield "lora.target_modules", [name for name in listed if name != "all-linear"]  # the default of gvpo
        yield "lora.quantization", "4bit" if o["load_in_4bit"] else "none"


def _updates(o: Options) -> tuple[int, int, int]:
    """Return the prompts per rollout, the prompts per update, and the updates per rollout."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    rows = o["per_device_train_batch_size"] * processes
    update = rows * o["gradient_accumulation_steps"]
    if o.kind not in ONLINE:
        return update, update, 1
    size, parts = o["num_generations"], o["steps_per_generation"] or o["gradient_accumulation_steps"]
    sampled = o["generation_batch_size"] or rows * parts
    prompts, part = -(-max(sampled, update) // size), -(-update // size)
    if update % size:
        o.lose("gradient_accumulation_steps", f"an update has whole groups, here {part}")
    return prompts, part, -(-prompts // part) * o["num_iterations"]


def _steps(o: Options, updates: float) -> int:
    """Return a number of updates as a number of steps."""
    return max(1, math.ceil(updates / _updates(o)[2]))


def _length(o: Options) -> Settings:
    prompts, part, _ = _updates(o)
    yield "train.prompts_per_step", prompts
    if part < prompts:
        yield "train.groups_per_update", part
    epochs = o["num_train_epochs"]
    if o["max_steps"] > 0:
        yield "train.steps", _steps(o, o["max_steps"])
        return
    yield "train.epochs", max(1, math.ceil(epochs))
    if epochs != math.ceil(epochs):
        o.lose("num_train_epochs", "train.epochs is a whole number and was rounded up; set train.steps")


def _schedule(o: Options) -> Settings:
    name, norm = _plain(o["lr_scheduler_type"]), o["max_grad_norm"]
    yield "train.schedule", name if name in ("linear", "cosine") else "constant"
    if name not in ("linear", "cosine", "constant", "constant_with_warmup"):
        o.lose("lr_scheduler_type", "train.schedule is constant, linear or cosine")
    warmup = _count(o, "warmup_steps", "train.warmup_updates")
    yield "train.warmup_updates", 0 if name == "constant" else warmup  # transformers ignores it for `constant`
    yield "train.max_grad_norm", norm or 1e9  # 0 clips nothing


def _count(o: Options, name: str, key: str) -> int:
    """Return a number of updates, which TRL also accepts as a fraction of max_steps; 0 if it cannot be known."""
    value = o[name]
    if not value or value >= 1:
        return int(value or 0)
    if o["max_steps"] < 1:
        o.lose(name, f"a fraction needs max_steps; set {key}")
    return max(0, math.ceil(float(value) * int(o["max_steps"])))


def _precision(o: Options) -> Settings:
    if o["fp16"]:
        o.lose("fp16", ANSWERS["fp16"].hint)
    elif o["bf16"] is False:
        yield "model.compute_dtype", "float32"


def _saving(o: Options) -> Settings:
    strategy = _plain(o["save_strategy"])
    every = _count(o, "save_steps", "checkpoint.every")
    if strategy in ("epoch", "best"):
        o.lose("save_strategy", "set checkpoint.every to a number of steps")
    yield "checkpoint.every", _steps(o, every) if strategy == "steps" and every else 0
    if o["save_total_limit"]:
        yield "checkpoint.keep", o["save_total_limit"]
    yield from _hub(o)


def _hub(o: Options) -> Settings:
    name, private = o["hub_model_id"], o["hub_private_repo"]
    if not o["push_to_hub"]:
        return
    if name and "/" in name:
        yield "checkpoint.push_to_hub", name
        yield "checkpoint.push_private", private is not False
    else:
        o.lose("push_to_hub", "set checkpoint.push_to_hub=owner/name")


def _evaluation(o: Options) -> Settings:
    strategy, every = _plain(o["eval_strategy"]), _count(o, "eval_steps", "eval.every")
    if strategy == "epoch":
        o.lose("eval_strategy", "set eval.every to a number of steps")
    if strategy == "steps":
        yield "eval.every", _steps(o, every or o["logging_steps"])


def _trackers(o: Options) -> Settings:
    given = o["report_to"]
    names = FLAGS.get(given, [given]) if isinstance(given, str) else list(given or [])
    yield "run.trackers", [name for name in names if name in FLAGS["all"]]
    if set(names) - set(FLAGS["all"]):
        o.lose("report_to", "run.trackers is a list of tensorboard and wandb")
    if (project := o["project"]) and o.is_set("project"):
        yield "run.project", project


def _grpo(o: Options) -> Settings:
    yield from _masked(o)
    loss, scaled = _plain(o["loss_type"]), o["scale_rewards"]
    if loss not in LOSSES:
        o.lose("loss_type", f"objective.name has no such loss; {', '.join(LOSSES)} are available")
    by_sequence = o["importance_sampling_level"] == "sequence"
    yield "objective.name", "gspo" if by_sequence else LOSSES.get(loss, "dapo")
    yield from _bounds(o, cispo=loss == "cispo" and not by_sequence)
    yield from weights(o, by_sequence=by_sequence)
    yield "objective.scale_rewards", scaled not in (False, "none")
    if scaled == "batch":
        o.lose("scale_rewards", ANSWERS["scale_rewards"].hint)
    if o["beta"] > 0 and (by_sequence or loss == "cispo"):
        o.lose("beta", f"{'gspo' if by_sequence else loss} has no KL penalty")
    elif o["beta"] > 0:
        yield "objective.kl_coef", o["beta"]
        yield "objective.reference", _reference(o)


def _bounds(o: Options, *, cispo: bool) -> Settings:
    """Yield the clip range. TRL's cispo has no lower bound, and epsilon_high is the largest weight itself."""
    high = o["epsilon"] if o["epsilon_high"] is None else o["epsilon_high"]
    if not cispo:
        yield from (("objective.clip_low", o["epsilon"]), ("objective.clip_high", high))
        return
    yield "objective.clip_high", max(high - 1.0, 0.0)
    if high < 1:
        o.lose("epsilon_high", "cispo's largest weight is 1 + objective.clip_high, which is at least 1")


def _rloo(o: Options) -> Settings:
    yield from _masked(o)
    yield "objective.name", "rloo"
    if o["beta"] > 0:
        yield "objective.kl_in_reward", o["beta"]
        yield "objective.reference", _reference(o)


def _masked(o: Options) -> Settings:
    if o["mask_truncated_completions"]:
        yield "train.overlong_completions", "mask"


def _cut(o: Options) -> Settings:
    if o["max_length"] is not None:
        yield "data.max_row_tokens", o["max_length"]
        yield "data.overlong_answers", "cut"
    if o["truncation_mode"] == "keep_end":
        o.lose("truncation_mode", "data.overlong_answers=cut removes the end")


def _reference(o: Options) -> str:
    every, mixup = o["ref_model_sync_steps"], o["ref_model_mixup_alpha"]
    if not o["sync_ref_model"]:
        return "initial"
    if mixup != 1:
        o.lose("ref_model_mixup_alpha", ANSWERS["ref_model_mixup_alpha"].hint)
    return f"every:{_steps(o, every)}"


def _dpo(o: Options) -> Settings:
    yield from _cut(o)
    losses = o["loss_type"]
    if losses not in ("sigmoid", ["sigmoid"]):
        o.lose("loss_type", ANSWERS["label_smoothing"].hint)
    yield "objective.name", "dpo"
    yield "objective.beta", o["beta"]
    yield "objective.reference", _reference(o)


def _sft(o: Options) -> Settings:
    yield from _cut(o)
    if o["loss_type"] not in ("nll", "chunked_nll"):
        o.lose("loss_type", "objective.name=sft is the negative log-likelihood")
    yield "objective.name", "sft"


_RULES: dict[str, Callable[[Options], Settings]] = {
    "GRPOConfig": _grpo,
    "RLOOConfig": _rloo,
    "DPOConfig": _dpo,
    "SFTConfig": _sft,
}
"""The objective of each configuration."""
