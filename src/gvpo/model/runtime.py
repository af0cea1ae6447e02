"""Information that needs no model: a model's configuration on the Hub, and the devices that torch can use."""

from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig

from gvpo.errors import ModelError
from gvpo.hub import from_hub


def hub_config(name: str) -> dict[str, Any]:
    """Return the configuration of a model on the Hub, or in its cache, without downloading weights.

    Raises:
        ModelError: If there is no such configuration.
    """
    try:
        with from_hub(name):
            found: dict[str, Any] = AutoConfig.from_pretrained(name).to_dict()
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"there is no directory {name}, and no configuration of that name was found on the Hub or in its cache "
            f"({type(error).__name__}); check the name and the connection, or give a local config.json"
        ) from error
    return found


def torch_devices() -> list[str]:
    """Return descriptions of the devices that torch can use, best first."""
    cuda = [_cuda(index) for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    mps = ["Apple GPU (mps)"] if torch.backends.mps.is_available() else []
    return [*cuda, *mps, f"CPU, {torch.get_num_threads()} threads"]


def _cuda(index: int) -> str:
    facts = torch.cuda.get_device_properties(index)
    bfloat16 = "" if torch.cuda.is_bf16_supported() else ", no bfloat16"
    return f"cuda:{index} {facts.name}, {facts.total_memory / 2**30:.0f} GiB{bfloat16}"


def compute_dtype(weight: Tensor) -> torch.dtype:
    """Return the dtype in which a matmul with this tensor is computed, taking autocast into account."""
    kind = weight.device.type
    if weight.dtype != torch.float64 and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return weight.dtype
