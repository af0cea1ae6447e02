"""The names and shapes of the weights that vLLM needs: those of the whole `state_dict()` of transformers' model.

vLLM continues without a missing weight and only logs it. A tied `lm_head.weight`, which `named_parameters()` and files
of `save_pretrained` leave out, is such a weight: without it, the output is neither the old model's nor the new one's.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from gvpo.errors import ModelError

Shapes = Mapping[str, tuple[int, ...]]
"""Shape of each entry of a `state_dict()` by name."""


def shapes_of(weights: Mapping[str, Tensor]) -> Shapes:
    """Return the shapes of a `state_dict()`."""
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}


def shapes_for(config: Any) -> Shapes:
    """Return the shapes of the `state_dict()` of the model that a configuration of transformers describes."""
    with torch.device("meta"):
        return shapes_of(AutoModelForCausalLM.from_config(config).state_dict())


def check_shapes(found: Shapes, expected: Shapes) -> None:
    """Check that weights are complete and fit the engine's model.

    Raises:
        ModelError: If a name is unknown or missing, or if a shape differs.
    """
    if unknown := found.keys() - expected.keys():
        raise ModelError(
            f"the engine's model has no weight {min(unknown)}; send the state_dict() of the same architecture"
        )
    if missing := expected.keys() - found.keys():
        raise ModelError(
            f"{len(missing)} of {len(expected)} weights are missing, such as {min(missing)}; send all entries of "
            "state_dict(), which include tied weights, unlike named_parameters() and files of save_pretrained"
        )
    for name, shape in found.items():
        if shape != expected[name]:
            raise ModelError(f"the weight {name} has shape {shape} and the engine's model needs {expected[name]}")


def require_replaceable(config: Any, device: str) -> None:
    """Check that vLLM can replace the weights of a model.

    On a CPU, the outputs of a mixture of experts are wrong after `reload_weights`, without an error.

    Args:
        config: Configuration of the model.
        device: Type of the device on which vLLM runs.

    Raises:
        ModelError: If it cannot.
    """
    if device == "cpu" and hasattr(config.get_text_config(), "num_experts_per_tok"):
        raise ModelError(
            "vLLM on a CPU samples something else from a mixture of experts after an update of its weights; train this "
            "model with sampling.engine='transformers', or sample on a GPU"
        )
