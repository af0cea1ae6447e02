"""The choice of the engine: gvpo's update where it is correct, TRL's own forward passes elsewhere."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from gvpo import notices
from gvpo.errors import ConfigError

_FUSED_OPTIMIZERS = ("lomo", "adalomo")


def choose(trainer: Any, wanted: str) -> str:
    """Return "gvpo" or "trl".

    Raises:
        ConfigError: If "gvpo" is wanted and cannot be correct, or no engine can.
    """
    if str(trainer.args.optim).rpartition(".")[2].lower() in _FUSED_OPTIMIZERS:
        raise ConfigError(
            "optim='lomo' changes weights during the backward pass, which is not exact; use 'adamw_torch'"
        )
    reason = "" if wanted == "trl" else why_not_fast(trainer, wanted)
    if wanted == "gvpo" and reason:
        raise ConfigError(f"engine='gvpo' does not work with {reason}; use engine='trl'")
    if reason:
        notices.warn(f"engine='trl' is used, because gvpo's update does not work with {reason}")
    return "trl" if wanted == "trl" or reason else "gvpo"


def why_not_fast(trainer: Any, wanted: str) -> str:
    """Return what gvpo's update does not work with, or "" if it works. FSDP2 is used only if "gvpo" is wanted."""
    return next(_obstacles(trainer, trainer.accelerator.unwrap_model(trainer.model), wanted), "")


def _obstacles(trainer: Any, model: Any, wanted: str) -> Iterator[str]:
    """Yield the reasons against gvpo's update, whose backward passes do not go through accelerate."""
    args = trainer.args
    if trainer.is_deepspeed_enabled:
        yield "DeepSpeed, whose engine owns the backward pass"
    if trainer.is_fsdp_enabled:
        version = getattr(trainer.accelerator.state.fsdp_plugin, "fsdp_version", 1)
        if version != 2 or wanted != "gvpo":
            yield f"FSDP{version}" if version != 2 else "FSDP2 unless engine='gvpo' is set"
    if trainer.accelerator.scaler is not None or args.fp16:
        yield "fp16, whose losses are scaled"
    if trainer._is_vlm:
        yield "models for images"
    if args.torch_compile:
        yield "torch_compile"
    if getattr(model, "peft_config", None) and not _only_lora(model):
        yield "adapters other than LoRA"
    if not callable(getattr(model, "get_output_embeddings", None)) or model.get_output_embeddings() is None:
        yield "a model without a language model head"


def _only_lora(model: Any) -> bool:
    from peft import LoraConfig

    return all(isinstance(config, LoraConfig) for config in model.peft_config.values())


def adapter_dropout(model: Any) -> float:
    """Return the largest dropout of a model's adapters, or 0."""
    configs = (getattr(model, "peft_config", None) or {}).values()
    return max((float(getattr(config, "lora_dropout", 0.0) or 0.0) for config in configs), default=0.0)


def refuse_adapter_dropout(model: Any) -> None:
    """Raise an error if an adapter has dropout, with which the scored and the trained model would differ.

    Raises:
        ConfigError: If one has.
    """
    dropout = adapter_dropout(model)
    if dropout:
        raise ConfigError(f"the LoRA adapter has dropout {dropout} and updates need exact forwards; set lora_dropout=0")


def policy_of(trainer: Any, model: nn.Module) -> Any:
    """Return the transformers model inside the wrappers of DDP and PEFT, with the same modules."""
    inner = trainer.accelerator.unwrap_model(model)
    return inner.get_base_model() if getattr(inner, "peft_config", None) and hasattr(inner, "get_base_model") else inner


@contextmanager
def without_autocast_wrapper(model: nn.Module) -> Iterator[None]:
    """Call the model's forward without accelerate's wrapper, whose autocast would also apply to checks in float32."""
    own = vars(model)
    wrapped, original = own.get("forward"), own.get("_original_forward")
    if wrapped is None or original is None:
        yield
        return
    model.forward = original
    try:
        yield
    finally:
        model.forward = wrapped
