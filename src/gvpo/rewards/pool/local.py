"""Rewards in the trainer's process, called once for all groups of a scoring: models on its device, judges over HTTP.

Most are gvpo's own and enforce their own deadlines. Users' functions belong in the pool's workers, where they can be
killed; those that cannot be sent there run here as well (`in_process.py`). Local rewards return verdicts, so that a
failure has its reason.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeGuard, runtime_checkable

from gvpo.errors import GvpoError
from gvpo.rewards.base import RewardBatch, RewardFunc, RewardSignature
from gvpo.types import Verdict
from gvpo.workers.functions import checked
from gvpo.workers.replies import Reply


@runtime_checkable
class LocalReward(Protocol):
    """A reward that runs in the trainer's process."""

    def __call__(self, **arguments: Any) -> list[float | None]:
        """Return one value per row like any reward function; None if a row has none, for any reason."""
        ...

    def verdicts(self, **arguments: Any) -> Sequence[Verdict]:
        """Return one verdict per row: a reward, or a reason "KIND: ..." why there is none; neither means abstention."""
        ...


def is_local(function: RewardFunc | LocalReward) -> TypeGuard[LocalReward]:
    """Return whether a reward runs in the trainer's process."""
    return isinstance(function, LocalReward)


def judge_locally(reward: LocalReward, wanted: RewardSignature, batches: Sequence[RewardBatch]) -> Reply:
    """Call a local reward once for the rows of some groups, in order.

    Raises:
        GvpoError: If the reward cannot work with this data or on this machine.
    """
    try:
        verdicts = list(reward.verdicts(**joined_arguments(wanted, batches)))
    except GvpoError:
        raise
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        return Reply(failed=("exception", f"raised {text}"))
    reply = checked([verdict.reward for verdict in verdicts], sum(map(len, batches)))
    if "failed" in reply:
        kind, detail = reply["failed"]
        return Reply(failed=(kind, detail))
    reasons = [_reason(v.reason) or found for v, found in zip(verdicts, reply["reasons"], strict=True)]
    return Reply(reply["values"], reasons)


def _reason(text: str) -> tuple[str, str] | None:
    kind, _, detail = text.partition(": ")
    return (kind, detail) if text else None


def joined_arguments(wanted: RewardSignature, batches: Sequence[RewardBatch]) -> Mapping[str, list[Any]]:
    """Return the arguments of all groups one after the other; a column that a group lacks is None there."""
    parts = [wanted.arguments(batch) for batch in batches]
    names = sorted({name for part in parts for name in part})
    return {
        name: [
            value for part, batch in zip(parts, batches, strict=True) for value in part.get(name, [None] * len(batch))
        ]
        for name in names
    }
