"""The private names of TRL that the plug-in reads or overrides, checked before they are used.

TRL promises none of them. Versions 1.10 to 1.16 have all of them; a newer one that lacks a name is refused with that
name, instead of failing in the middle of a run or training on something else.
"""

import inspect
import sys
from collections.abc import Container
from typing import Any

from gvpo.errors import ConfigError

try:
    import trl
    from trl import GRPOConfig as GRPOConfig
    from trl import GRPOTrainer as GRPOTrainer
except ImportError as error:
    raise ImportError("gvpo.integrations.trl needs TRL; pip install 'gvpo[trl]'") from error

TESTED = "1.16.0"

METHODS: dict[str, tuple[str, ...]] = {
    "_calculate_rewards": ("inputs", "prompts", "completions", "completion_ids_list"),
    "_generate_and_score_completions": ("inputs",),
    "_prepare_inputs": (),
    "training_step": ("model", "inputs", "num_items_in_batch"),
    "_compute_loss": ("model", "inputs"),
    "_get_per_token_logps_and_entropies": ("model", "input_ids", "attention_mask", "logits_to_keep"),
    "_save_rng_state": ("output_dir",),
    "_load_optimizer_and_scheduler": ("checkpoint",),
}
"""Methods of GRPOTrainer with the parameters that are passed to them."""

FIELDS = ("steps_per_generation", "generation_batch_size", "num_generations", "num_iterations", "beta", "loss_type")
"""Fields of GRPOConfig."""

ATTRIBUTES = (
    "_step",
    "_metrics",
    "_buffered_inputs",
    "_current_train_step_time",
    "_is_vlm",
    "aux_loss_enabled",
    "mask_truncated_completions",
    "num_generations",
    "num_iterations",
    "reward_weights",
    "router_aux_loss_coef",
    "temperature",
)
"""Attributes of a GRPOTrainer."""

KEYS = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages", "num_items_in_batch")
"""Keys of the dict that `_generate_and_score_completions` returns."""


def check_classes() -> None:
    """Raise an error if a class of TRL lacks a name, or is not TRL's own.

    Raises:
        ConfigError: If a method, a parameter or a field is missing, or if Unsloth has replaced the trainer.
    """
    if "unsloth" in sys.modules or not GRPOTrainer.__module__.startswith("trl."):
        raise ConfigError(
            "Unsloth replaces parts of TRL's GRPOTrainer, so gvpo's update would not be exact; do not import unsloth"
        )
    for name, parameters in METHODS.items():
        method = getattr(GRPOTrainer, name, None)
        if method is None:
            raise _missing(f"GRPOTrainer.{name}")
        accepted = inspect.signature(method).parameters
        for parameter in parameters:
            if parameter not in accepted:
                raise _missing(f"the parameter {parameter} of GRPOTrainer.{name}")
    for name in FIELDS:
        if name not in inspect.signature(GRPOConfig).parameters:
            raise _missing(f"GRPOConfig.{name}")


def check_trainer(trainer: Any) -> None:
    """Raise an error if a constructed trainer lacks an attribute.

    Raises:
        ConfigError: If one is missing.
    """
    for name in ATTRIBUTES:
        if not hasattr(trainer, name):
            raise _missing(f"GRPOTrainer.{name}")


def check_keys(batch: Container[str]) -> None:
    """Raise an error if a generation batch lacks a key.

    Raises:
        ConfigError: If one is missing.
    """
    for name in KEYS:
        if name not in batch:
            raise _missing(f"the key {name!r} in its batches of completions")


def _missing(what: str) -> ConfigError:
    return ConfigError(f"TRL {trl.__version__} lacks {what}, which gvpo needs; pip install 'trl=={TESTED}'")
