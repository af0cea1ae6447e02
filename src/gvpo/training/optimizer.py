"""The optimizer: AdamW in float32, a schedule that depends only on the update's number, and a guarded step."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from gvpo.config import TrainConfig
from gvpo.update.distributed.fsdp import full


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters, without weight decay for vectors (norms, biases)."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_eps,
    )


def learning_rate(config: TrainConfig, update: int, total: int) -> float:
    """Return the rate of update `update` (from 0) of `total`: linear warm-up, then the schedule, which ends near 0."""
    if update < config.warmup_updates:
        return config.learning_rate * (update + 1) / config.warmup_updates
    progress = (update - config.warmup_updates) / max(1, total - config.warmup_updates)
    progress = min(1.0, progress)
    if config.schedule == "linear":
        return config.learning_rate * (1.0 - progress)
    if config.schedule == "cosine":
        return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))
    return config.learning_rate


def step(
    optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], *, rate: float, max_grad_norm: float
) -> float:
    """Take one clipped optimizer step on the gradients in `.grad`, and clear them.

    Returns:
        The gradient's norm before clipping. If it is not finite, no parameter was updated.
    """
    norm = float(full(nn.utils.clip_grad_norm_(list(parameters), max_grad_norm)))
    if math.isfinite(norm):
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm
