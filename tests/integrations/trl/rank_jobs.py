"""Jobs of two gloo ranks, as `accelerate launch --cpu` starts them."""

import os
from pathlib import Path
from typing import Any

import torch.distributed as dist

from tests.integrations.trl.by_hand import trained


def gradients(directory: Path, model: str, cases: dict[str, dict[str, Any]]) -> dict[str, list[float]]:
    """Return the errors of each case's gradients on this rank."""
    join_accelerate()
    return {name: trained(directory, model=model, **case)[1].errors for name, case in cases.items()}


def join_accelerate() -> None:
    """Set the variables by which accelerate finds the process group that this process has joined already."""
    rank, count = str(dist.get_rank()), str(dist.get_world_size())
    os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=count, LOCAL_WORLD_SIZE=count)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")
