"""What kind of adapter a model has, where that decides how it is trained, saved or merged."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gvpo.errors import ModelError
from gvpo.model import lora

_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Values of `init_lora_weights` for which peft takes the adapter's start out of the base's weights."""

_FREE, _ZERO = ("lora_A", "lora_embedding_B"), ("lora_B", "lora_embedding_A")
"""The factors of peft's adapters: it starts the second ones at zero, so that their product is."""


def changing_start(model: nn.Module) -> str | None:
    """Return the `init_lora_weights` of an adapter whose start changes the base's own weights; None for any other."""
    start = lora.own_config(model).init_lora_weights
    return start if isinstance(start, str) and start.startswith(_CHANGE_THE_BASE) else None


def repeats_layers(model: nn.Module) -> bool:
    """Return whether the adapter makes several layers of one, which then share their weights."""
    return bool(lora.own_config(model).layer_replication)


def require_layers(model: Any) -> None:
    """Refuse an adapter that repeats layers of an architecture whose config lists the kind of each layer.

    Raises:
        ModelError: the list is shorter than the model has layers now, which transformers cannot compute with.
    """
    kinds = getattr(model.config.get_text_config(), "layer_types", None)
    if repeats_layers(model) and kinds is not None:
        raise ModelError(
            f"layer_replication does not work with {type(model).__name__}, whose config lists its layers one by one; "
            "leave it out"
        )


def trains_whole_modules(model: nn.Module) -> bool:
    """Return whether the adapter trains modules or tokens of its own besides its matrices."""
    config = lora.own_config(model)
    return bool(config.modules_to_save or config.trainable_token_indices)


def is_adapters_own(name: str) -> bool:
    """Return whether a parameter of that name belongs to an adapter, active or not, and not to the base."""
    return "lora_" in name or "modules_to_save." in name


def require_active(model: nn.Module) -> None:
    """Refuse an adapter in a state in which it cannot be trained.

    Raises:
        ModelError: it is switched off, or merged into the weights; the message says how to undo that.
    """
    for layer in lora.layers_of(model):
        if getattr(layer, "merged", False):
            raise ModelError("the adapter is merged into the model's weights; call unmerge_adapter() on the PeftModel")
        if getattr(layer, "disable_adapters", False):
            raise ModelError("the adapter is switched off; call enable_adapter_layers() on the PeftModel")


def is_at_base(model: nn.Module) -> bool:
    """Return whether an adapter changes nothing yet, exactly: then its base is the model as it is now."""
    from peft.utils import ModulesToSaveWrapper

    originals = {
        f"{name}.modules_to_save": dict(module.original_module.named_parameters())
        for name, module in model.named_modules()
        if isinstance(module, ModulesToSaveWrapper)
    }
    return all(_is_neutral(name, parameter, originals) for name, parameter in lora.trainable(model))


def _is_neutral(name: str, parameter: Tensor, originals: Mapping[str, Mapping[str, Tensor]]) -> bool:
    """Return whether one trainable parameter leaves the base's output as it is."""
    parts = name.split(".")
    if any(part in parts for part in _FREE):
        return True
    if any(part in parts for part in _ZERO):
        return not bool(parameter.detach().count_nonzero())
    for copied, original in originals.items():
        if name.startswith(f"{copied}."):
            return torch.equal(original[name.removeprefix(f"{copied}.").partition(".")[2]], parameter)
    return False  # DoRA's magnitudes, trained biases: the base is not certain to be what was there
