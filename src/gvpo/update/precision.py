"""Mixed precision: the effect of `model.compute_dtype` on this machine."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from gvpo.config import TrainConfig
from gvpo.update.distributed import ranks


def is_half(config: TrainConfig) -> bool:
    """Return whether forward passes are computed in bfloat16. Weights are always float32."""
    wanted = config.compute_dtype
    return wanted == "bfloat16" or (wanted == "auto" and ranks.device().type == "cuda")


def autocast(config: TrainConfig) -> AbstractContextManager[Any]:
    """Return the autocast context of forward passes."""
    return torch.autocast(ranks.device().type, dtype=torch.bfloat16) if is_half(config) else nullcontext()
