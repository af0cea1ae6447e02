"""Evaluation on held-out answers with scores: does the implicit reward rank the answers as the scores do?"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch

from gvpo.types import Completion, Group
from gvpo.update.group_backward import TokenLogprobs


@dataclass(frozen=True)
class _Judged:
    """An answer's score and its log-ratio to the starting policy, in nats."""

    score: float
    log_ratio: float


def pair_metrics(groups: Sequence[Group], scored: Sequence[TokenLogprobs], beta: float) -> dict[str, float]:
    """Return the eval/ metrics of held-out preferences: means over groups of means over their pairs of unequal scores.

    Args:
        groups: Groups with scores as rewards, and the starting policy's log-probs as `ref_logprobs`.
        scored: The policy's log-probs, one entry per row.
        beta: The beta of the objective: reward per nat.

    Returns:
        `eval/pair_accuracy`, the fraction of pairs ranked correctly (a tie counts half); `eval/pair_margin` in units of
        the reward; `eval/chosen_logratio` of the best answer and `eval/rejected_logratio` of the others, in nats.
    """
    remaining = iter(scored)
    judged = [[_judge(row, next(remaining)) for row in group.completions] for group in groups]
    margins = [_margins(answers) for answers in judged]
    best = [max(answers, key=lambda answer: answer.score) for answers in judged]
    others = [
        fmean(answer.log_ratio for answer in answers if answer is not top)
        for answers, top in zip(judged, best, strict=True)
    ]
    return {
        "eval/pair_accuracy": fmean(fmean((m > 0) + (m == 0) / 2 for m in each) for each in margins),
        "eval/pair_margin": beta * fmean(fmean(each) for each in margins),
        "eval/chosen_logratio": fmean(top.log_ratio for top in best),
        "eval/rejected_logratio": fmean(others),
    }


def _judge(row: Completion, scored: TokenLogprobs) -> _Judged:
    ratio = scored.logprobs - torch.as_tensor(row.ref_logprobs)
    return _Judged(row.reward or 0.0, float(ratio.double().sum()))


def _margins(answers: Sequence[_Judged]) -> list[float]:
    """Return the better answer's log-ratio minus the worse answer's, for each pair of unequal scores."""
    return [better.log_ratio - worse.log_ratio for better in answers for worse in answers if better.score > worse.score]
