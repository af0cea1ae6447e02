"""The policy that a run starts from: the loaded model on its device, with its LoRA adapter if it trains one."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from gvpo.config import RunPlan, TrainConfig
from gvpo.errors import ConfigError, ModelError
from gvpo.model import adapter_kinds, lora
from gvpo.model.generation_config import settle
from gvpo.model.known_tokens import restrict
from gvpo.model.model import checkpoint_activations, load_model
from gvpo.model.round_trip import rehearse_adapter
from gvpo.model.tokenizer import load_tokenizer
from gvpo.model.weight_files import note_origin
from gvpo.progress import error_console
from gvpo.rollout.problems import training_stops
from gvpo.training.checks import check_fit, check_routing
from gvpo.update.distributed import ranks
from gvpo.update.distributed.fsdp import is_sharded

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ANNOUNCED = 50_000_000
"""Number of parameters above which a person notices that a model is loaded or checked once more."""


def check_adapter(config: TrainConfig, peft_config: object | None) -> None:
    """Check `peft_config` before a model is loaded.

    Raises:
        ModelError: If it is not a `peft.LoraConfig`, or has dropout.
        ConfigError: If the settings ask for an adapter as well.
    """
    if peft_config is None:
        return
    lora.require_lora(peft_config)
    if config.lora_rank is not None or config.lora_path is not None:
        raise ConfigError("peft_config and the [lora] settings both request an adapter; pass only one")


def load_policy(
    plan: RunPlan,
    model: "str | Path | PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase | None",
    peft_config: object | None = None,
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Return the starting policy on its device, and its tokenizer.

    Args:
        plan: Plan of the run.
        model: Directory, Hub model ID or loaded model, which is changed in place.
        tokenizer: Tokenizer of the model; by default, the one saved with it.
        peft_config: A `peft.LoraConfig` for a new adapter.

    Raises:
        ModelError: If the model, the adapter or the tokenizer cannot be used.
        ConfigError: If the settings do not work with this model.
    """
    config = plan.settings
    policy = starting_policy(model, config, peft_config)
    ranks.require_same_weights(policy)
    words = tokenizer or load_tokenizer(_tokenizer_path(model, config))
    check_routing(config, policy)
    check_fit(config, policy, words, samples=plan.samples)
    if lora.is_adapted(policy) and config.checkpoint_verify:
        _say_what_takes_time(policy)
        ranks.on_first(lambda: rehearse_adapter(policy, words))
    settle(policy, training_stops(config, words, policy))
    restrict(policy, words)
    return policy, words


def _say_what_takes_time(policy: "PreTrainedModel") -> None:
    """Announce that an adapter's base is loaded a second time, to compare it with the one on disk."""
    if (name := lora.named_base(policy)) and policy.num_parameters() > ANNOUNCED:
        error_console(quiet=not ranks.is_first()).print(
            f"loading {name} again to check that the adapter will fit it (checkpoint.verify=false skips)"
        )


def _tokenizer_path(model: "str | Path | PreTrainedModel", config: TrainConfig) -> str:
    path = config.tokenizer or (str(model) if isinstance(model, str | Path) else str(model.name_or_path))
    if not path:
        raise ConfigError("this model was randomly initialized and has no tokenizer; pass processing_class")
    return path


def starting_policy(
    model: "str | Path | PreTrainedModel", config: TrainConfig, peft_config: object | None
) -> "PreTrainedModel":
    """Load the model if a name is passed, add the run's adapter to it, and move it to this process's device.

    Args:
        model: Directory, Hub model ID or loaded model, which is changed in place.
        config: Settings of the run.
        peft_config: A `peft.LoraConfig` for a new adapter, instead of the adapter of the settings.

    Returns:
        The policy in train mode; its trainable weights are float32.

    Raises:
        ModelError: If the model or the adapter cannot be used, or no weight is trainable.
        ConfigError: If a half-precision or quantised base is requested without an adapter, or weights are to be split
            that cannot be.
    """
    policy = _loaded(model, config) if isinstance(model, str | Path) else _given(model, config)
    if config.lora_path is not None:
        lora.load_adapter(policy, config.lora_path)
    elif (wanted := peft_config or lora.settings(config)) is not None:
        lora.add_adapter(policy, wanted, seed=config.seed)
    _require_trainable(policy)
    if not lora.is_adapted(policy):
        _refuse_frozen_weights(policy, config)
        if policy.dtype in (torch.bfloat16, torch.float16):  # half-precision weights do not change at RL's rates
            policy.float()
    elif config.sharding == "full":
        raise ConfigError("a LoRA run cannot be split over processes yet; leave train.sharding at 'none'")
    if config.sharding == "none":  # otherwise it is moved to the device in parts
        policy.to(ranks.device())  # type: ignore[arg-type]  # transformers' stubs forget the device
    policy.train()
    if config.gradient_checkpointing:
        checkpoint_activations(policy)
    return policy


def _loaded(name: str | Path, config: TrainConfig) -> "PreTrainedModel":
    return load_model(
        name,
        dtype=getattr(torch, config.lora_base_dtype),
        attention=config.attention,
        quantization=config.lora_quantization,
    )


def _given(model: "PreTrainedModel", config: TrainConfig) -> "PreTrainedModel":
    if is_sharded(model):
        raise ConfigError("this model is already split; pass the whole model and set train.sharding='full'")
    if config.lora_quantization != "none" and not getattr(model, "is_quantized", False):
        raise ConfigError(
            "lora.quantization is applied while a model is loaded, and this model is loaded; pass its path or ID"
        )
    return model


def _require_trainable(policy: "PreTrainedModel") -> None:
    if lora.is_adapted(policy):
        adapter_kinds.require_active(policy)
        adapter_kinds.require_layers(policy)
        _refuse_mixed_precision(policy)
        policy.name_or_path = lora.named_base(policy)  # absolute, so it stays valid in another directory
        note_origin(policy, policy.name_or_path)
    if next(lora.trainable(policy), None) is None:
        raise ModelError(
            "no weight of the model requires a gradient, so there is nothing to train; call requires_grad_() on it, "
            "load an adapter with is_trainable=True, or set lora.rank for a new one"
        )


def _refuse_mixed_precision(policy: "PreTrainedModel") -> None:
    """Raise ModelError if whole float32 modules would be trained on a half-precision base without autocast."""
    if policy.dtype.itemsize < 4 and ranks.device().type == "cpu" and adapter_kinds.trains_whole_modules(policy):
        raise ModelError(
            "modules_to_save and trainable_token_indices are trained in float32, which a half-precision base cannot "
            "compute with on a CPU; load the base in float32"
        )


def _refuse_frozen_weights(policy: "PreTrainedModel", config: TrainConfig) -> None:
    """Raise ConfigError if all weights are trained but the settings describe frozen ones."""
    if getattr(policy, "is_quantized", False) or config.lora_quantization != "none":
        raise ConfigError("quantised weights cannot be trained; set lora.rank to train an adapter on them")
    if config.lora_base_dtype != "float32":
        raise ConfigError("lora.base_dtype is for the frozen weights under an adapter; set lora.rank too")
