"""Mixed precision: what `model.compute_dtype` means on this machine."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from gvpo.config import TrainConfig
from gvpo.update.distributed import ranks


def is_half(config: TrainConfig) -> bool:
    """Whether forwards are computed in bfloat16; weights are float32 always."""
    wanted = config.compute_dtype
    return wanted == "bfloat16" or (wanted == "auto" and ranks.device().type == "cuda")


def autocast(config: TrainConfig) -> AbstractContextManager[Any]:
    """What forwards are made under."""
    return torch.autocast(ranks.device().type, dtype=torch.bfloat16) if is_half(config) else nullcontext()
