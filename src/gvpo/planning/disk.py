"""What a run leaves on the disk."""

from gvpo.planning.architecture import Architecture
from gvpo.planning.memory import FLOAT
from gvpo.planning.workload import Workload

BYTES_PER_TOKEN = 28
"""A completion's token in a rollout file before compression.

Its id, five float32 values (log-probs of policy, reference, old policy and sampler; entropy), four bytes of text."""


def checkpoint_bytes(model: Architecture, *, reference: bool) -> float:
    """A checkpoint: float32 weights, AdamW's two moments, and the stored reference."""
    return FLOAT * model.parameters * (4 if reference else 3)


def rollout_bytes(workload: Workload) -> float:
    """The rollout file of a step, if every completion is as long as it may be."""
    return workload.rows * workload.completion_tokens * BYTES_PER_TOKEN


def run_bytes(model: Architecture, workload: Workload, *, keep: int, rollouts: int) -> float:
    """All of a run at its fullest: the checkpoints kept, the best one, one being written, and rollout files.

    Args:
        model: the sizes.
        workload: what a step does.
        keep: checkpoint.keep.
        rollouts: how many steps write their completions.
    """
    return (keep + 2) * checkpoint_bytes(model, reference=workload.reference) + rollouts * rollout_bytes(workload)
