"""Distance of the policy from the policies that sampled its rows: metrics of one update, for every objective.

    l_i = sum_t mask * (logprobs - log-probs of the policy that sampled the row)

The log-probs of the policy that sampled a row are found in three ways, in this order:

    the current policy sampled it, and this is the step's first update      the policy itself, so l_i is exactly 0
    the policy at the start of the step sampled it                          old_logprobs, else sampler_logprobs
    the row was logged, or sampled by an earlier policy                     sampler_logprobs

Rows without such log-probs are skipped; if no row has them there are no metrics.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gvpo.types import Completion, FloatSequence

if TYPE_CHECKING:
    from gvpo.training.learner import Update


@dataclass
class _Moved:
    """Log-ratios of the rows of a group in nats, their rewards, and whether any is relative to recorded log-probs."""

    ratios: list[float]
    rewards: list[float | None]
    recorded: bool

    def best(self) -> list[float]:
        """Return the log-ratios of the rows with the highest reward; an empty list if the rewards do not differ."""
        known = [reward for reward in self.rewards if reward is not None]
        if not known or max(known) == min(known):
            return []
        return [ratio for ratio, reward in zip(self.ratios, self.rewards, strict=True) if reward == max(known)]


def offpolicy_metrics(update: "Update", *, truncated: bool = False) -> dict[str, float]:
    """Compare the policy at an update with the policies that sampled the update's rows.

    Args:
        update: The update.
        truncated: Whether rows are sampled from a part of the tokens. Recorded log-probs are then larger than those of
            the whole distribution, so log-ratios to them are below 0 before the policy changes.

    Returns:
        `offpolicy/logratio_mean` over all rows, `offpolicy/logratio_best` over the rows of the highest reward in the
        groups whose rewards differ (both in nats), and `offpolicy/ess`, in (0, 1]. Keys without rows are absent, and so
        are the first two if rows are truncated and compared with recorded log-probs.
    """
    groups = list(_moved(update))
    ratios = [ratio for group in groups for ratio in group.ratios]
    if not ratios:
        return {}
    if truncated and any(group.recorded for group in groups):
        return {"offpolicy/ess": effective_share(ratios)}
    best = [ratio for group in groups for ratio in group.best()]
    return {
        "offpolicy/logratio_mean": _mean(ratios),
        **({"offpolicy/logratio_best": _mean(best)} if best else {}),
        "offpolicy/ess": effective_share(ratios),
    }


def effective_share(log_ratios: Sequence[float]) -> float:
    """Return the effective sample size of importance ratios e^l over their number: (sum w)^2 / (n sum w^2).

    It is 1 if all ratios are equal, and 1/n if one of them outweighs all others. It depends only on differences of
    log-ratios, so it does not overflow, and a shift common to all rows does not change it.
    """
    values = torch.tensor(log_ratios, dtype=torch.float64)
    weights = (values - values.max()).exp()
    return min(1.0, float(weights.sum().square() / (len(values) * weights.square().sum())))


def is_on_policy(update: "Update") -> bool:
    """Return whether all rows were sampled by the policy that the update started from."""
    return update.number == 0 and all(
        row.age(update.step) == 0 for entry in update.groups for row in entry.group.completions
    )


def _moved(update: "Update") -> Iterator[_Moved]:
    results = iter(update.output.rows)
    for entry in update.groups:
        moved = _Moved([], [], recorded=False)
        for row in entry.group.completions:
            logprobs = next(results).logprobs
            behaviour = _behaviour(row, logprobs, update)
            if behaviour is not None:
                moved.ratios.append(_log_ratio(row, logprobs, behaviour))
                moved.rewards.append(row.reward)
                moved.recorded |= behaviour is row.sampler_logprobs
        yield moved


def _log_ratio(completion: Completion, logprobs: Tensor, behaviour: FloatSequence) -> float:
    difference = logprobs.double() - torch.as_tensor(behaviour, dtype=torch.float64)
    if completion.mask is not None:
        difference = difference.where(torch.as_tensor(completion.mask) != 0, 0.0)
    return float(difference.sum())


def _behaviour(completion: Completion, logprobs: Tensor, update: "Update") -> FloatSequence | None:
    """Return the log-probs of the policy that sampled the row, found as this module's docstring describes."""
    if completion.age(update.step) != 0:
        return completion.sampler_logprobs
    if update.number == 0:
        return logprobs
    return completion.old_logprobs if completion.old_logprobs is not None else completion.sampler_logprobs


def _mean(values: Sequence[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).mean())
