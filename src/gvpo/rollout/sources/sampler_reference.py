"""The reference of groups that later steps train on: the policy that sampled them, by log-probs that they carry."""

import dataclasses
import time
from collections.abc import Callable, Sequence

from gvpo.rollout.collect import Rollout
from gvpo.types import Group
from gvpo.update.group_backward import TokenLogprobs

Score = Callable[[Sequence[Group]], Sequence[TokenLogprobs]]
"""Function that returns the log-probs of the current policy for every row, group by group."""


def with_reference(rollout: Rollout, score: Score) -> Rollout:
    """Return a rollout whose rows carry the current policy's log-probs as `ref_logprobs`, and count the seconds."""
    if not rollout.groups:
        return rollout
    began = time.perf_counter()
    rows = iter(score(rollout.groups))
    groups = [
        dataclasses.replace(
            group,
            completions=[
                dataclasses.replace(row, ref_logprobs=next(rows).logprobs.tolist()) for row in group.completions
            ],
        )
        for group in rollout.groups
    ]
    seconds = {**rollout.seconds, "scoring": time.perf_counter() - began}
    return dataclasses.replace(rollout, groups=groups, seconds=seconds)
