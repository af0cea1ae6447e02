"""What a run can be told: one pydantic model per section of a recipe, and their flat union for Python.

A recipe is sparse TOML in sections; `TrainConfig` is the same keys without the sections. The rule that maps one to the
other: a field's name is its key, with the section in front where the key alone would be ambiguous.

    [run]        dir = "runs/a"       TrainConfig(run_dir="runs/a",
    [objective]  beta = 0.2                       beta=0.2,
    [checkpoint] every = 50                       checkpoint_every=50)

Knows nothing of torch and models, and the objectives by their table alone (`gvpo.config.objectives`).
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gvpo.config.combinations import impossible
from gvpo.config.objectives import OBJECTIVES, learning_from, taking
from gvpo.errors import ConfigError
from gvpo.nearest import did_you_mean


class Section(BaseModel):
    """Common to all sections: an unknown key is an error, and settings never change after they were checked."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


class RunConfig(Section):
    """[run] Where the run lives and what its noise is."""

    run_dir: Path | None = Field(
        default=None, description="run directory; the command line picks a free runs/NAME by itself"
    )
    seed: int = Field(default=0, ge=0, description="seeds the data order, the sampling noise and a fresh model")
    trackers: list[Literal["tensorboard", "wandb"]] = Field(
        default_factory=list, description="where metrics lines also go: tensorboard, wandb"
    )
    project: str = Field(default="gvpo", min_length=1, description="project of Weights & Biases")
    rank_timeout: float = Field(
        default=1800.0, gt=0, description="with several processes: seconds that one waits for the others"
    )


class ModelConfig(Section):
    """[model] The policy."""

    model_path: str | None = Field(
        default=None, description="directory or hub id of a causal language model; a run is its newest checkpoint"
    )
    model_init: dict[str, Any] | None = Field(
        default=None, description="make a fresh model instead: {architecture, ...keys of its transformers config}"
    )
    vocabulary: list[str] | None = Field(
        default=None, description="make a fresh tokenizer with these tokens (with model.init)"
    )
    tokenizer: str | None = Field(
        default=None, description="directory or hub id of the tokenizer, if not the model's own"
    )
    compute_dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="autocast dtype; weights and optimizer state stay float32. auto: bfloat16 on GPUs"
    )
    attention: str = Field(default="sdpa", description="transformers attention implementation")
    gradient_checkpointing: bool = Field(
        default=False,
        description="keep one activation a layer and compute the others again in the backward: less memory, more time",
    )


class LoraSection(Section):
    """[lora] Train an adapter on the frozen model; neither rank nor path: all weights are trained."""

    lora_rank: int | None = Field(default=None, ge=1, description="of a fresh adapter's matrices")
    lora_alpha: int | None = Field(
        default=None, ge=1, description="its output is scaled by alpha / rank; default twice the rank"
    )
    lora_target_modules: list[str] = Field(
        default_factory=list, description="names of the layers it changes; default all linear ones but the head"
    )
    lora_dropout: float = Field(default=0.0, ge=0, description="0 alone: updates need exact forwards")
    lora_path: str | None = Field(default=None, description="directory or hub id of an adapter to start from instead")
    lora_quantization: Literal["none", "4bit"] = Field(
        default="none", description="4bit: the frozen weights in NF4, by bitsandbytes (QLoRA)"
    )
    lora_base_dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="of the frozen weights; the adapter's are float32 always"
    )


class DataConfig(Section):
    """[data] The problems and how they become prompts."""

    task: str | None = Field(default=None, description="name of a built-in task (gvpo.data.TASKS)")
    task_options: dict[str, Any] = Field(default_factory=dict, description="options of the task")
    train_data: str | None = Field(
        default=None,
        description="JSONL or parquet file, or hub id, with a `prompt` column; with data.task in the task's own form",
    )
    eval_data: str | None = Field(default=None, description="the same for held-out problems")
    prompt_column: str | None = Field(default=None, description="column of the data that is read as `prompt`")
    answer_column: str | None = Field(default=None, description="column that is read as `answer`, which rewards need")
    completion_column: str | None = Field(default=None, description="column that is read as `completion` (sft)")
    messages_column: str | None = Field(
        default=None, description="column that is read as `messages`: conversations that end with the answer (sft)"
    )
    chosen_column: str | None = Field(default=None, description="column that is read as `chosen`")
    rejected_column: str | None = Field(default=None, description="column that is read as `rejected`")
    completions_column: str | None = Field(default=None, description="column that is read as `completions`")
    rewards_column: str | None = Field(default=None, description="column that is read as `rewards`")
    groups_data: str | None = Field(
        default=None,
        description="train offline on logged groups: rows with `prompt`, `completions` and `rewards`, preferences: "
        "`prompt`, `chosen` and `rejected`, or the directory of a run",
    )
    eval_groups: str | None = Field(
        default=None, description="held-out rows of the same form: how often implicit rewards rank them right"
    )
    chosen_by: Literal["best", "softmax"] = Field(
        default="best",
        description="Choice of the chosen answer: the one with the best score, or one drawn by softmax(scores) "
        f"({', '.join(learning_from('pairs'))})",
    )
    weak_negatives: int = Field(
        default=0,
        ge=0,
        description="Number of answers to other prompts that each prompt gets as negatives "
        f"({', '.join(taking('weak_weight'))})",
    )
    keep_share: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Share of the rows to keep: those most likely under aligned models, by `gvpo score` "
        f"({', '.join(learning_from('answers'))})",
    )
    sample_groups: int | None = Field(
        default=None, ge=1, description="train offline on this many groups, sampled once from the starting model"
    )
    train_problems: int | None = Field(
        default=None,
        ge=1,
        description="number of rows to train on, from the first one on",
    )
    eval_problems: int = Field(default=200, ge=0, description="how many held-out problems to make or keep")
    chat: Literal["auto", "chat", "plain"] = Field(default="auto", description="use the tokenizer's chat template")
    system_prompt: str | None = Field(default=None, description="system message put before each prompt (chat only)")
    template_args: dict[str, Any] = Field(default_factory=dict, description="keywords for the chat template")


class WarmStartConfig(Section):
    """[warm_start] Supervised steps on the task's demonstrations that make the starting model; 0 steps: none."""

    warm_start_steps: int = Field(default=0, ge=0, description="steps of supervised training before the run")
    warm_start_batch: int = Field(default=64, ge=1, description="demonstrations a step")
    warm_start_learning_rate: float = Field(default=4e-3, gt=0, description="at its peak")
    warm_start_schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant", description="as train.schedule"
    )
    warm_start_warmup: int = Field(default=0, ge=0, description="updates of linear warm-up")
    warm_start_demonstrations: int = Field(
        default=20_000, ge=1, description="how many demonstrations to draw from the task"
    )
    warm_start_options: dict[str, Any] = Field(default_factory=dict, description="options of the demonstrations")


class SamplingConfig(Section):
    """[sampling] How completions are drawn."""

    group_size: int = Field(default=8, ge=1, description="completions a prompt, k")
    max_tokens: int = Field(default=512, ge=1, description="tokens a completion at most")
    temperature: float = Field(default=1.0, gt=0, description="of sampling and of all log-probs")
    top_p: float = Field(default=1.0, gt=0, le=1, description="draw from the likeliest tokens of this mass; 1: off")
    top_k: int = Field(default=0, ge=0, description="0: off")
    stop_token_ids: list[int] = Field(default_factory=list, description="stop tokens besides the model's own")
    sampling_allow: list[str] = Field(
        default_factory=list, description="what completions consist of alone: see `gvpo docs decoding`"
    )
    sampling_ban: list[str] = Field(default_factory=list, description="what completions have none of")
    tokens_per_batch: int = Field(default=65_536, ge=1, description="tokens held in the sampler's cache at once")


class RewardConfig(Section):
    """[rewards] What is good."""

    reward_funcs: list[str] = Field(
        default_factory=list, description="names of gvpo.rewards, module:function or file.py:function"
    )
    reward_weights: list[float] | None = Field(
        default=None, description="one per function; default 1 each; 0 only logs"
    )
    reward_options: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="by function: the settings that it is made with; `reward` among them names what to make, so that "
        "one can be used twice",
    )
    accuracy_reward: str | None = Field(
        default=None, description="the function that judges right (> 0.5); default the first"
    )
    reward_timeout: float = Field(default=10.0, gt=0, description="seconds a call may take")
    reward_workers: int = Field(default=2, ge=1, description="worker processes")
    reward_memory_limit: float = Field(default=4.0, gt=0, description="GiB that a worker may allocate")


def _keyword(setting: str, text: str, **bounds: Any) -> Any:
    """Return the field of an objective's keyword; its description names the objectives that take it."""
    return Field(default=None, description=f"{text} ({', '.join(taking(setting))})", **bounds)


class ObjectiveConfig(Section):
    """[objective] The formula. Keywords left out keep the objective's own default."""

    objective: str = Field(
        default="gvpo",
        description=f"Name of the objective: {', '.join(OBJECTIVES)}",
    )
    reference: str = Field(
        default="auto",
        pattern=r"^(auto|previous|initial|every:[1-9]\d*)$",
        description="the policy of the step's start (previous), of the run's start (initial), refreshed each N steps "
        "(every:N); auto: initial offline, else previous",
    )
    beta: float | None = _keyword("beta", "Strength of the pull to the reference, in reward per nat", gt=0)
    variance_weight: float | None = _keyword("variance_weight", "Weight of the variance term, for ablations")
    covariance_weight: float | None = _keyword("covariance_weight", "Weight of the covariance term, for ablations")
    clip_low: float | None = _keyword("clip_low", "Lower half-width of the clip range, 1 - clip_low", ge=0)
    clip_high: float | None = _keyword("clip_high", "Upper half-width of the clip range, 1 + clip_high", ge=0)
    scale_rewards: bool | None = _keyword(
        "scale_rewards", "Division of advantages by the standard deviation of the group"
    )
    baseline: Literal["mean", "leave_one_out"] | None = _keyword("baseline", "Value that a reward is compared with")
    reduction: Literal["sequence_mean", "token_mean", "constant"] | None = _keyword(
        "reduction", "Average over tokens and completions"
    )
    max_length: int | None = _keyword(
        "max_length", "Divisor of the constant reduction; default sampling.max_tokens", ge=1
    )
    kl_coef: float | None = _keyword("kl_coef", "Weight of a KL penalty in the loss", ge=0)
    weak_weight: float | None = _keyword("weak_weight", "Weight of the weak negatives", ge=0)
    segment_at: str | None = _keyword(
        "segment_at", "Text that ends a segment: a token that contains it is the last of its segment", min_length=1
    )
    costs: dict[str, Annotated[float, Field(ge=0)]] | None = _keyword(
        "costs", "Limits, { name of a reward function = largest mean }; give these functions the weight 0"
    )
    reward_multiplier: float | None = _keyword(
        "reward_multiplier", "Weight of the standardised reward against those of the costs", ge=0
    )
    multiplier_rate: float | None = _keyword(
        "multiplier_rate", "Growth of a cost's weight per step and per unit of its excess; default 0.1", ge=0
    )
    kl_in_reward: float = Field(
        default=0.0, ge=0, description="beta of a KL penalty taken off the rewards (old log-probs)"
    )


class TrainSection(Section):
    """[train] The loop and the optimizer."""

    steps: int = Field(default=100, ge=1, description="a step is a rollout and all its updates")
    epochs: int | None = Field(default=None, ge=1, description="times through the data; if set it decides train.steps")
    prompts_per_step: int = Field(default=16, ge=1, description="groups a rollout")
    groups_per_update: int | None = Field(
        default=None, ge=1, description="the optimizer batch; default the whole rollout"
    )
    passes: int = Field(default=1, ge=1, description="times that each rollout is gone through")
    learning_rate: float = Field(default=1e-6, gt=0, description="at its peak")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant", description="after warm-up, down to 0"
    )
    warmup_updates: int = Field(default=0, ge=0, description="updates of linear warm-up")
    weight_decay: float = Field(default=0.0, ge=0, description="of matrices; never of norms and biases")
    adam_beta1: float = Field(default=0.9, ge=0, lt=1, description="AdamW's decay of the gradient's mean")
    adam_beta2: float = Field(default=0.999, ge=0, lt=1, description="AdamW's decay of the gradient's square")
    adam_eps: float = Field(default=1e-8, gt=0, description="AdamW's epsilon")
    max_grad_norm: float = Field(default=1.0, gt=0, description="gradients are clipped to this norm")
    tokens_per_microbatch: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        default=8192,
        description="tokens a forward, padding included: memory, never the result; halved where memory runs out. "
        "auto: measured on the device when training starts",
    )
    prefix_sharing: Literal["auto", "on", "off"] = Field(
        default="auto", description="compute a group's prompt once; on: an error where the model cannot"
    )
    routing: Literal["free", "watch", "replay"] = Field(
        default="free",
        description="of a mixture of experts. watch: count the experts that change within a step; replay: force those "
        "of the step's start in all its updates (Routing Replay)",
    )
    router_aux_coef: float = Field(
        default=0.0, ge=0, description="of a mixture of experts: weight of the load-balancing loss"
    )
    sharding: Literal["none", "full"] = Field(
        default="none",
        description="with several processes: each holds the model (none), or its part of weights, gradients and "
        "optimizer state by FSDP2 (full)",
    )
    rollouts_every: int = Field(
        default=1, ge=0, description="write the samples of each N-th step, the first and the last; 0: never"
    )


class EvalConfig(Section):
    """[eval] Held-out evaluation while training; also always before and after."""

    eval_every: int = Field(default=0, ge=0, description="steps between evaluations; 0: only before and after")
    eval_samples: int = Field(default=1, ge=1, description="sampled completions a problem")
    eval_greedy: bool = Field(default=True, description="also one greedy completion a problem")
    stop_at_accuracy: float | None = Field(default=None, gt=0, le=1, description="end early at this sampled accuracy")
    patience: int | None = Field(
        default=None, ge=1, description="end early after this many evaluations without a new best"
    )


class CheckpointConfig(Section):
    """[checkpoint] What can be gone back to."""

    checkpoint_every: int = Field(default=0, ge=0, description="steps between checkpoints; 0: only the last")
    checkpoint_keep: int = Field(default=2, ge=1, description="newest ones kept, besides the best by evaluation")
    checkpoint_verify: bool = Field(
        default=True, description="load the first one back and compare tokens and log-probs"
    )
    push_to_hub: str | None = Field(default=None, description="owner/name on the hub that the final model goes to")
    push_private: bool = Field(default=True, description="a repository made for it is private")


SECTIONS: dict[str, type[Section]] = {
    "run": RunConfig,
    "model": ModelConfig,
    "lora": LoraSection,
    "data": DataConfig,
    "warm_start": WarmStartConfig,
    "sampling": SamplingConfig,
    "rewards": RewardConfig,
    "objective": ObjectiveConfig,
    "train": TrainSection,
    "eval": EvalConfig,
    "checkpoint": CheckpointConfig,
}
OBJECTIVE_KEYWORDS = tuple(
    name for name in ObjectiveConfig.model_fields if name not in ("objective", "reference", "kl_in_reward")
)
"""Settings of an objective; `gvpo.config.objectives` says which objective takes which."""

_PREFIX = {"rewards": "reward"}
_KEY = {"objective": "name", "train_data": "train", "eval_data": "eval", "groups_data": "groups"}


def _key(section: str, field: str) -> str:
    """The key under which a field stands in its section of a recipe."""
    if field in _KEY:
        return _KEY[field]
    return field.removeprefix(f"{_PREFIX.get(section, section)}_")


FIELDS: dict[str, str] = {
    f"{section}.{_key(section, field)}": field for section, model in SECTIONS.items() for field in model.model_fields
}
"""Dotted recipe key -> TrainConfig field."""


class TrainConfig(
    CheckpointConfig,
    EvalConfig,
    TrainSection,
    ObjectiveConfig,
    RewardConfig,
    SamplingConfig,
    WarmStartConfig,
    DataConfig,
    LoraSection,
    ModelConfig,
    RunConfig,
):
    """Every setting of a run, flat. `TrainConfig(run_dir="runs/a", beta=0.2, group_size=8)`.

    Raises:
        ConfigError: an unknown key, a wrong type or an impossible combination; the message names the recipe's key.
    """

    if not TYPE_CHECKING:  # type checkers and editors see pydantic's own signature, with every field

        def __init__(self, **settings: Any) -> None:
            unknown = [name for name in settings if name not in type(self).model_fields]
            if unknown:
                raise ConfigError(unknown_setting(unknown[0], type(self).model_fields))
            try:
                super().__init__(**settings)
            except ValidationError as error:
                raise ConfigError(_explain(error)) from None

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        for wrong, message in impossible(self):
            if wrong:
                raise ValueError(message)
        return self

    def replace(self, **changes: Any) -> "TrainConfig":
        """A copy with some settings changed, checked again."""
        return TrainConfig(**{**{name: getattr(self, name) for name in self.model_fields_set}, **changes})

    def to_recipe(self) -> dict[str, dict[str, Any]]:
        """Every setting, resolved, in the sections of a recipe; JSON-ready."""
        values = self.model_dump(mode="json")
        recipe: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
        for dotted, field in FIELDS.items():
            section, key = dotted.split(".")
            recipe[section][key] = values[field]
        return recipe


def _explain(error: ValidationError) -> str:
    """The first problem that pydantic found, under the recipe's name of the key."""
    first = error.errors()[0]
    message = _WANTED.get(first["type"], first["msg"].removeprefix("Value error, "))
    if not first["loc"]:
        return message
    field, *inside = map(str, first["loc"])
    dotted = next((dotted for dotted, name in FIELDS.items() if name == field), field)
    if dotted in _WANTED:  # the branch of a union that failed says nothing
        message, inside = _WANTED[dotted], []
    return f"{'.'.join([dotted, *inside])}={first['input']!r}: {message}"


_WANTED = {
    "list_type": 'give a list, ["..."]',
    "dict_type": "give a table, { key = value }",
    "string_type": 'give text, "..."',
    "finite_number": "give a finite number",
    "objective.reference": "give auto, previous, initial, or every:N with N above 0",
    "train.tokens_per_microbatch": "give a number of tokens, 1 or more, or auto",
}
"""What should stand there, where pydantic says it in Python's words; by its kind of error, or by key."""


def unknown_setting(name: str, known: Iterable[str]) -> str:
    """Return the message for a setting that does not exist; it names the nearest one that does."""
    return f"unknown setting {name!r}{did_you_mean(name, known)}"
