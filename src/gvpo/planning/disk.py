"""Disk space of a run."""

from gvpo.planning.architecture import Architecture
from gvpo.planning.memory import FLOAT
from gvpo.planning.workload import Workload

BYTES_PER_TOKEN = 28
"""Bytes per completion token in a rollout file, before compression.

They are the token ID, five float32 values (log-probs of policy, reference, old policy and sampler; entropy) and four
bytes of text.
"""


def checkpoint_bytes(model: Architecture, *, reference: bool, lora_rank: int = 0) -> float:
    """Return the bytes of a checkpoint: float32 weights that are trained, their two moments, the stored reference.

    The reference of a new adapter is the model without it, and is not stored.
    """
    if lora_rank:
        return FLOAT * 3 * model.adapter_parameters(lora_rank)
    return FLOAT * model.parameters * (4 if reference else 3)


def rollout_bytes(workload: Workload) -> float:
    """Return the bytes of a step's rollout file if every completion has the maximum length."""
    return workload.rows * workload.completion_tokens * BYTES_PER_TOKEN


def run_bytes(model: Architecture, workload: Workload, *, keep: int, rollouts: int) -> float:
    """Return a run's maximum bytes on disk: kept checkpoints, the best one, one being written, and rollout files.

    Args:
        model: Sizes of the model.
        workload: Sizes of a step.
        keep: Value of checkpoint.keep.
        rollouts: Number of steps that write their completions.
    """
    checkpoint = checkpoint_bytes(model, reference=workload.reference, lora_rank=workload.lora_rank)
    return (keep + 2) * checkpoint + rollouts * rollout_bytes(workload)
