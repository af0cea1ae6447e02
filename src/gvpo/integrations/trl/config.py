"""Settings: TRL's, and a few more."""

from dataclasses import dataclass, field, fields
from typing import Any

from gvpo import notices
from gvpo.errors import ConfigError
from gvpo.integrations.trl.surface import GRPOConfig

ENGINES = ("auto", "gvpo", "trl")
REFERENCES = ("previous", "initial")

UNREAD = (
    "loss_type",
    "epsilon",
    "epsilon_high",
    "delta",
    "scale_rewards",
    "importance_sampling_level",
    "top_entropy_quantile",
    "entropy_coef",
    "use_adaptive_entropy",
    "off_policy_mask_threshold",
    "use_bias_correction_kl",
)
"""Settings of GRPO's loss, which GVPO's loss does not have."""


@dataclass
class FastGRPOConfig(GRPOConfig):  # type: ignore[misc]  # TRL is untyped
    """`GRPOConfig` with the settings of gvpo's update.

    Args:
        engine: "gvpo" runs gvpo's update, "trl" TRL's own loss, and "auto" chooses "gvpo" where it is correct.
        tokens_per_microbatch: Maximum number of tokens per forward pass of gvpo's update. It bounds memory and does not
            change the gradient. The default is the larger of 8192 and the tokens of `per_device_train_batch_size` rows
            of full length.

    Raises:
        ConfigError: If a setting is out of range.
    """

    engine: str = field(
        default="auto",
        metadata={"help": "Engine of the update: 'gvpo', 'trl', or 'auto' for 'gvpo' where it is correct."},
    )
    tokens_per_microbatch: int | None = field(
        default=None, metadata={"help": "Maximum number of tokens per forward pass of gvpo's update."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_one_of("engine", self.engine, ENGINES)
        if self.tokens_per_microbatch is not None and self.tokens_per_microbatch < 1:
            raise ConfigError(f"tokens_per_microbatch is {self.tokens_per_microbatch}; use at least 1, or None")


@dataclass
class GVPOConfig(FastGRPOConfig):
    """`GRPOConfig` for GVPO. Settings of TRL keep their names, meanings and defaults.

    One default differs: `vllm_importance_sampling_correction` is False, because GVPO needs no importance weights, and
    the correction costs a forward pass per completion.

    Args:
        gvpo_beta: Strength of the pull to the reference, in units of reward per nat. It replaces TRL's `beta`, which
            is the weight of GRPO's KL term.
        reference: Policy that log-ratios are relative to: "previous" for the one that generated the completions,
            "initial" for the one at the start of the run.
        engine: "gvpo" runs gvpo's update, "trl" TRL's own forward passes, both with the exact gradient. "auto" chooses
            "gvpo" where it is correct.
        tokens_per_microbatch: See `FastGRPOConfig`.

    Raises:
        ConfigError: If a setting is out of range, or belongs to another objective.
    """

    beta: float = field(default=0.0, metadata={"help": "Not used by GVPO; set gvpo_beta."})
    gvpo_beta: float = field(
        default=0.1, metadata={"help": "Strength of the pull to the reference, in units of reward per nat."}
    )
    reference: str = field(
        default="previous",
        metadata={
            "help": "Policy that log-ratios are relative to: 'previous' generated the completions, or 'initial'."
        },
    )
    vllm_importance_sampling_correction: bool = field(
        default=False, metadata={"help": "Whether TRL computes importance weights, which GVPO does not need."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_one_of("reference", self.reference, REFERENCES)
        if not self.gvpo_beta > 0:
            raise ConfigError(f"gvpo_beta is {self.gvpo_beta}; use a value above 0, such as 0.1")
        if self.beta not in (0.0, self.gvpo_beta):
            raise ConfigError(
                f"beta={self.beta} is the weight of GRPO's KL term, which GVPO does not have; set gvpo_beta instead"
            )
        if self.multi_objective_aggregation != "sum_then_normalize":
            raise ConfigError(
                f"multi_objective_aggregation={self.multi_objective_aggregation!r} gives no reward; GVPO "
                "needs the default, 'sum_then_normalize'"
            )
        self.beta = self.gvpo_beta if self.reference == "initial" else 0.0  # makes TRL score the reference, or not
        unread = [name for name in UNREAD if getattr(self, name, None) != _default(name)]
        if unread:
            notices.warn(f"GVPO's loss has no {', '.join(unread)}; these settings have no effect")


def _require_one_of(name: str, value: str, possible: tuple[str, ...]) -> None:
    if value not in possible:
        raise ConfigError(f"{name} is {value!r}; use {', '.join(map(repr, possible[:-1]))} or {possible[-1]!r}")


def _default(name: str) -> Any:
    """Return the value that TRL's configuration has where a script does not set it."""
    default = next(each.default for each in fields(GRPOConfig) if each.name == name)
    return "group" if name == "scale_rewards" else default
