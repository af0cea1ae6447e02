"""Properties of a model's adapter that decide how it is trained, saved or merged."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gvpo.errors import ModelError
from gvpo.model import lora

_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Values of `init_lora_weights` for which peft subtracts the adapter's start from the base's weights."""

_FREE, _ZERO = ("lora_A", "lora_embedding_B"), ("lora_B", "lora_embedding_A")
"""Factors of peft's adapters. The second ones start at zero, so that the product is zero."""


def changing_start(model: nn.Module) -> str | None:
    """Return the `init_lora_weights` of an adapter whose start changes the base's weights, or None for any other."""
    start = lora.own_config(model).init_lora_weights
    return start if isinstance(start, str) and start.startswith(_CHANGE_THE_BASE) else None


def repeats_layers(model: nn.Module) -> bool:
    """Return whether the adapter repeats layers, which then share their weights."""
    return bool(lora.own_config(model).layer_replication)


def require_layers(model: Any) -> None:
    """Raise an error if an adapter repeats layers of an architecture whose config lists the kind of each layer.

    Raises:
        ModelError: If the list is then shorter than the number of layers, which transformers does not support.
    """
    kinds = getattr(model.config.get_text_config(), "layer_types", None)
    if repeats_layers(model) and kinds is not None:
        raise ModelError(
            f"layer_replication does not work with {type(model).__name__}, whose config lists its layers one by one; "
            "remove it"
        )


def trains_whole_modules(model: nn.Module) -> bool:
    """Return whether the adapter trains whole modules or tokens in addition to its matrices."""
    config = lora.own_config(model)
    return bool(config.modules_to_save or config.trainable_token_indices)


def is_adapters_own(name: str) -> bool:
    """Return whether a parameter with this name belongs to an adapter, active or not, instead of the base."""
    return "lora_" in name or "modules_to_save." in name


def require_active(model: nn.Module) -> None:
    """Raise an error if an adapter is in a state in which it cannot be trained.

    Raises:
        ModelError: If it is disabled, or merged into the weights. The message says how to undo that.
    """
    for layer in lora.layers_of(model):
        if getattr(layer, "merged", False):
            raise ModelError("the adapter is merged into the model's weights; call unmerge_adapter() on the PeftModel")
        if getattr(layer, "disable_adapters", False):
            raise ModelError("the adapter is disabled; call enable_adapter_layers() on the PeftModel")


def is_at_base(model: nn.Module) -> bool:
    """Return whether the adapter has no effect yet, exactly, so that the base equals the current model."""
    from peft.utils import ModulesToSaveWrapper

    originals = {
        f"{name}.modules_to_save": dict(module.original_module.named_parameters())
        for name, module in model.named_modules()
        if isinstance(module, ModulesToSaveWrapper)
    }
    return all(_is_neutral(name, parameter, originals) for name, parameter in lora.trainable(model))


def _is_neutral(name: str, parameter: Tensor, originals: Mapping[str, Mapping[str, Tensor]]) -> bool:
    """Return whether a trainable parameter leaves the base's output unchanged."""
    parts = name.split(".")
    if any(part in parts for part in _FREE):
        return True
    if any(part in parts for part in _ZERO):
        return not bool(parameter.detach().count_nonzero())
    for copied, original in originals.items():
        if name.startswith(f"{copied}."):
            return torch.equal(original[name.removeprefix(f"{copied}.").partition(".")[2]], parameter)
    return False  # DoRA's magnitudes, trained biases: the base may have been something else
