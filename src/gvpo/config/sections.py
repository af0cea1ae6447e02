"""The sections of a recipe, one pydantic model per section, with the types, bounds and descriptions of all settings."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from gvpo.config.environment import EnvironmentSection
from gvpo.config.objectives import OBJECTIVES, learning_from, taking
from gvpo.config.rollout import RolloutSection
from gvpo.config.sampling import SamplingConfig
from gvpo.config.section import Section


class RunConfig(Section):
    """[run] The run's directory, and its random seed."""

    run_dir: Path | None = Field(
        default=None, description="Run directory; by default the command line chooses a free directory runs/NAME"
    )
    seed: int = Field(
        default=0, ge=0, description="Random seed of the data order, of sampling and of a randomly initialized model"
    )
    trackers: list[Literal["tensorboard", "wandb"]] = Field(
        default_factory=list, description="Experiment trackers that also receive the metrics: tensorboard, wandb"
    )
    project: str = Field(default="gvpo", min_length=1, description="Project name in Weights & Biases")
    rank_timeout: float = Field(
        default=1800.0, gt=0, description="Timeout in seconds for one process to wait for the others"
    )


class ModelConfig(Section):
    """[model] The policy."""

    model_path: str | None = Field(
        default=None,
        description="Directory or Hub ID of a causal language model; a run directory means its latest checkpoint",
    )
    model_init: dict[str, Any] | None = Field(
        default=None,
        description="Architecture and transformers config of a randomly initialized model, instead of model.path: "
        "{architecture = ..., ...}",
    )
    vocabulary: list[str] | None = Field(default=None, description="Tokens of a new tokenizer (with model.init)")
    tokenizer: str | None = Field(
        default=None, description="Directory or Hub ID of the tokenizer; by default the model's own"
    )
    compute_dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="Dtype of the matrix products of forwards and backwards; weights, optimizer state and logits are "
        "always float32. auto: bfloat16 on GPUs, and on CPUs that multiply a model at least 512 wide faster in it",
    )
    attention: str = Field(default="sdpa", description="Attention implementation of transformers")
    gradient_checkpointing: bool = Field(
        default=False,
        description="Recompute activations in the backward pass and keep only one per layer: less memory, more time",
    )


class LoraSection(Section):
    """[lora] An adapter on the frozen model. Without rank and path, all weights are trained."""

    lora_rank: int | None = Field(default=None, ge=1, description="Rank of a new adapter's matrices")
    lora_alpha: int | None = Field(
        default=None,
        ge=1,
        description="Scale of the adapter: its output is multiplied by alpha / rank; default: twice the rank",
    )
    lora_target_modules: list[str] = Field(
        default_factory=list,
        description="Names of the layers that the adapter changes; default: all linear layers except the head",
    )
    lora_dropout: float = Field(
        default=0.0,
        ge=0,
        description="Dropout of the adapter; only 0 is supported, because updates need exact forwards",
    )
    lora_path: str | None = Field(
        default=None, description="Directory or Hub ID of an adapter to start from, instead of lora.rank"
    )
    lora_quantization: Literal["none", "4bit"] = Field(
        default="none", description="Quantization of the frozen weights; 4bit: NF4 with bitsandbytes (QLoRA)"
    )
    lora_base_dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="Dtype of the frozen weights; the adapter is always float32"
    )


class DataConfig(Section):
    """[data] The problems, and the format of prompts."""

    task: str | None = Field(default=None, description="Name of a built-in task (gvpo.data.TASKS)")
    task_options: dict[str, Any] = Field(default_factory=dict, description="Options of the task")
    train_data: str | None = Field(
        default=None,
        description="Training data: a JSONL or Parquet file or a Hub dataset ID, with a column `prompt`; with "
        "data.task, in the task's own format",
    )
    eval_data: str | None = Field(default=None, description="Held-out data, in the format of data.train")
    prompt_column: str | None = Field(default=None, description="Name of the column to use as `prompt`")
    answer_column: str | None = Field(
        default=None, description="Name of the column to use as `answer`, the reference answer for rewards"
    )
    completion_column: str | None = Field(default=None, description="Name of the column to use as `completion` (sft)")
    messages_column: str | None = Field(
        default=None,
        description="Name of the column to use as `messages`: conversations that end with the answer (sft)",
    )
    chosen_column: str | None = Field(default=None, description="Name of the column to use as `chosen`")
    rejected_column: str | None = Field(default=None, description="Name of the column to use as `rejected`")
    completions_column: str | None = Field(default=None, description="Name of the column to use as `completions`")
    rewards_column: str | None = Field(default=None, description="Name of the column to use as `rewards`")
    groups_data: str | None = Field(
        default=None,
        description="Logged groups for offline training: rows with `prompt`, `completions` and `rewards`, preferences "
        "with `prompt`, `chosen` and `rejected`, or a run directory",
    )
    eval_groups: str | None = Field(
        default=None,
        description="Held-out groups in the format of data.groups, to measure how often implicit rewards rank answers"
        " correctly",
    )
    chosen_by: Literal["best", "softmax"] = Field(
        default="best",
        description="Choice of the chosen answer: the one with the best score, or one sampled by softmax(scores) "
        f"({', '.join(learning_from('pairs'))})",
    )
    weak_negatives: int = Field(
        default=0,
        ge=0,
        description="Number of answers to other prompts that each prompt receives as negatives "
        f"({', '.join(taking('weak_weight'))})",
    )
    keep_share: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Fraction of the rows to keep, the most likely ones under aligned models (see `gvpo score`) "
        f"({', '.join(learning_from('answers'))})",
    )
    overlong_prompts: Literal["error", "drop"] = Field(
        default="error",
        description="Treatment of prompts that leave no room for a completion in the model's context; error: refuse to "
        "start; drop: leave them out, with a warning",
    )
    overlong_answers: Literal["drop", "cut", "error"] = Field(
        default="drop",
        description="Treatment of written and logged answers that do not fit into the model's context after their "
        "prompt; drop: leave them out, with a warning; cut: cut off their ends, with a warning; error: refuse to start",
    )
    max_row_tokens: int | None = Field(
        default=None,
        ge=2,
        description="Maximum number of tokens of a prompt with its answer, for data.overlong_answers; default: the "
        "model's context",
    )
    sample_groups: int | None = Field(
        default=None,
        ge=1,
        description="Number of groups to sample once from the starting model and then train on offline",
    )
    train_problems: int | None = Field(
        default=None,
        ge=1,
        description="Maximum number of training rows, counted from the first row",
    )
    eval_problems: int = Field(default=200, ge=0, description="Maximum number of held-out problems")
    chat: Literal["auto", "chat", "plain"] = Field(
        default="auto",
        description="Prompt format; chat: the tokenizer's chat template; plain: the bare text; auto: chat if the "
        "tokenizer has a template",
    )
    system_prompt: str | None = Field(default=None, description="System message before each prompt (chat only)")
    template_args: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments of the chat template")


class WarmStartConfig(Section):
    """[warm_start] Supervised steps on the task's demonstrations, which train the starting model."""

    warm_start_steps: int = Field(
        default=0, ge=0, description="Number of supervised steps before the run; 0: no warm start"
    )
    warm_start_batch: int = Field(default=64, ge=1, description="Number of demonstrations per warm-start step")
    warm_start_learning_rate: float = Field(default=4e-3, gt=0, description="Peak learning rate of the warm start")
    warm_start_schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant", description="Learning-rate schedule of the warm start, see train.schedule"
    )
    warm_start_warmup: int = Field(
        default=0, ge=0, description="Number of warm-start updates with a linearly increasing learning rate"
    )
    warm_start_demonstrations: int = Field(
        default=20_000, ge=1, description="Number of demonstrations to generate with the task"
    )
    warm_start_options: dict[str, Any] = Field(default_factory=dict, description="Options of the task's demonstrations")


class RewardConfig(Section):
    """[rewards] Rewards of completions."""

    reward_funcs: list[str] = Field(
        default_factory=list, description="Reward functions: names in gvpo.rewards, module:function or file.py:function"
    )
    reward_weights: list[float] | None = Field(
        default=None, description="Weight of each reward function; default: 1 each; 0: the values are only logged"
    )
    reward_options: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="Options per reward function; the option `reward` names the function, so that one function can be"
        " used twice",
    )
    accuracy_reward: str | None = Field(
        default=None,
        description="Reward function that decides whether a completion is correct (value above 0.5); default: the "
        "first",
    )
    reward_timeout: float = Field(default=10.0, gt=0, description="Timeout per reward call, in seconds")
    reward_workers: int = Field(default=2, ge=1, description="Number of worker processes that compute rewards")
    reward_memory_limit: float = Field(default=4.0, gt=0, description="Maximum memory per worker, in GiB")


def _keyword(setting: str, text: str, **bounds: Any) -> Any:
    """Return the field of an objective's keyword; its description lists the objectives that accept it."""
    return Field(default=None, description=f"{text} ({', '.join(taking(setting))})", **bounds)


class ObjectiveConfig(Section):
    """[objective] The loss. Keywords that are not set have the objective's own defaults."""

    objective: str = Field(
        default="gvpo",
        description=f"Name of the objective: {', '.join(OBJECTIVES)}",
    )
    reference: str = Field(
        default="auto",
        pattern=r"^(auto|previous|sampler|initial|every:[1-9]\d*)$",
        description="Reference policy: previous (the policy at the start of the step), sampler (the policy that "
        "sampled the group), initial (at the start of the run), every:N (refreshed every N steps); auto: sampler for "
        "GVPO with several updates per rollout, or with stale or reused groups, otherwise initial",
    )
    beta: float | None = _keyword(
        "beta",
        "Strength of the pull to the reference policy, in reward per nat; the default of gvpo depends on where "
        "its groups come from, and on the number of updates per rollout",
        gt=0,
    )
    variance_weight: float | None = _keyword("variance_weight", "Weight of the variance term, for ablations")
    covariance_weight: float | None = _keyword("covariance_weight", "Weight of the covariance term, for ablations")
    anchor: float | None = _keyword(
        "anchor",
        "Weight of the squared mean of beta times the log-ratios of a group, which holds their mean at 0; the optimum "
        "moves with it",
        ge=0,
    )
    clip_low: float | None = _keyword("clip_low", "Lower clip range: ratios below 1 - clip_low are clipped", ge=0)
    clip_high: float | None = _keyword("clip_high", "Upper clip range: ratios above 1 + clip_high are clipped", ge=0)
    scale_rewards: bool | None = _keyword(
        "scale_rewards", "Division of advantages by the standard deviation of the group"
    )
    baseline: Literal["mean", "leave_one_out"] | None = _keyword(
        "baseline", "Baseline that is subtracted from rewards: the mean of the group, or of the other completions"
    )
    reduction: Literal["sequence_mean", "token_mean", "constant"] | None = _keyword(
        "reduction", "Average over tokens and completions"
    )
    max_length: int | None = _keyword(
        "max_length", "Divisor of the constant reduction; default sampling.max_tokens", ge=1
    )
    kl_coef: float | None = _keyword("kl_coef", "Weight of a KL penalty in the loss", ge=0)
    is_cap: float | None = _keyword(
        "is_cap",
        "Largest truncated importance weight min(exp(old - sampler log-probs), is_cap) of a token; default: 2 for rows "
        "of older policies or another engine with rollout.old_logprobs='trainer', otherwise no weights",
        gt=0,
    )
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
    teacher: str | None = _keyword(
        "teacher",
        "Directory or Hub ID of the model to imitate, which has the policy's tokens; a run directory means its latest "
        "checkpoint",
    )
    kl_in_reward: float = Field(
        default=0.0,
        ge=0,
        description="Beta of a KL penalty that is subtracted from the rewards, computed from the old log-probs",
    )


class TrainSection(Section):
    """[train] The loop and the optimizer."""

    steps: int = Field(
        default=100, ge=1, description="Number of training steps; a step is one rollout with all its updates"
    )
    epochs: int | None = Field(
        default=None, ge=1, description="Number of passes through the training prompts, instead of train.steps"
    )
    prompts_per_step: int = Field(
        default=16, ge=1, description="Number of prompts per step, and so of groups per rollout"
    )
    groups_per_update: int | None = Field(
        default=None, ge=1, description="Number of groups per optimizer update; default: all groups of the rollout"
    )
    passes: int = Field(default=1, ge=1, description="Number of passes over each rollout")
    learning_rate: float = Field(default=1e-6, gt=0, description="Peak learning rate")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant", description="Learning-rate schedule after the warm-up; linear and cosine end at 0"
    )
    warmup_updates: int = Field(
        default=0, ge=0, description="Number of updates with a linearly increasing learning rate"
    )
    extend_schedule: bool = Field(
        default=False,
        description="Permission to resume a run with another number of steps although its schedule is linear or cosine",
    )
    weight_decay: float = Field(default=0.0, ge=0, description="Weight decay of matrices; norms and biases have none")
    adam_beta1: float = Field(default=0.9, ge=0, lt=1, description="Decay rate of AdamW's first moment")
    adam_beta2: float = Field(default=0.999, ge=0, lt=1, description="Decay rate of AdamW's second moment")
    adam_eps: float = Field(default=1e-8, gt=0, description="Epsilon of AdamW")
    max_grad_norm: float = Field(
        default=1.0, gt=0, description="Maximum gradient norm; larger gradients are scaled down to it"
    )
    tokens_per_microbatch: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        default=8192,
        description="Maximum number of tokens per forward, including padding. It bounds memory and does not change "
        "the result; it is halved when memory runs out. auto: measured on the device at the start of "
        "training",
    )
    prefix_sharing: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="Compute the prompt of a group only once; auto: if the model allows it; on: raise an error if it "
        "does not",
    )
    routing: Literal["free", "watch", "replay"] = Field(
        default="free",
        description="Expert routing in a mixture of experts; watch: count the experts that change within a step; "
        "replay: use the experts of the start of the step in all its updates (Routing Replay)",
    )
    router_aux_coef: float = Field(
        default=0.0, ge=0, description="Weight of the load-balancing loss in a mixture of experts"
    )
    sharding: Literal["none", "full"] = Field(
        default="none",
        description="Distribution of weights over processes; none: each has the whole model; full: each has a part of"
        " weights, gradients and optimizer state (FSDP2)",
    )
    overlong_completions: Literal["keep", "mask", "drop"] = Field(
        default="keep",
        description="Treatment of completions that reach the maximum length without an end, and of episodes in which a "
        "turn is cut or the environment's next text has no room (not of those at environment.max_turns); keep: train "
        "on them; mask: count their rewards, but do not train on their tokens; drop: remove them before the means of "
        "their group",
    )
    rollouts_every: int = Field(
        default=1,
        ge=0,
        description="Number of steps between rollout files; the first and the last step are always written; 0: none "
        "are written",
    )


class EvalConfig(Section):
    """[eval] Held-out evaluation during training. It also runs before and after."""

    eval_every: int = Field(
        default=0, ge=0, description="Number of steps between evaluations; 0: only before and after training"
    )
    eval_samples: int = Field(default=1, ge=1, description="Number of sampled completions per held-out problem")
    eval_greedy: bool = Field(default=True, description="Evaluate one greedy completion per held-out problem as well")
    stop_at_accuracy: float | None = Field(
        default=None, gt=0, le=1, description="Sampled accuracy at which training ends early"
    )
    patience: int | None = Field(
        default=None, ge=1, description="Number of evaluations without a new best after which training ends early"
    )


class CheckpointConfig(Section):
    """[checkpoint] Contents and frequency of checkpoints."""

    checkpoint_every: int = Field(
        default=0, ge=0, description="Number of steps between checkpoints; 0: only the last step is saved"
    )
    checkpoint_keep: int = Field(
        default=2, ge=1, description="Number of latest checkpoints to keep, in addition to the best by evaluation"
    )
    checkpoint_verify: bool = Field(
        default=True, description="Load the first checkpoint again and compare tokens and log-probs"
    )
    push_to_hub: str | None = Field(default=None, description="Hub repository for the final model, owner/name")
    push_private: bool = Field(default=True, description="Make a newly created Hub repository private")


SECTIONS: dict[str, type[Section]] = {
    "run": RunConfig,
    "model": ModelConfig,
    "lora": LoraSection,
    "data": DataConfig,
    "warm_start": WarmStartConfig,
    "sampling": SamplingConfig,
    "rollout": RolloutSection,
    "environment": EnvironmentSection,
    "rewards": RewardConfig,
    "objective": ObjectiveConfig,
    "train": TrainSection,
    "eval": EvalConfig,
    "checkpoint": CheckpointConfig,
}
