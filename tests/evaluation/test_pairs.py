"""Tests of held-out preferences against hand-computed accuracy and margins."""

import pytest
import torch

from gvpo.evaluation.pairs import pair_metrics
from gvpo.types import Completion, Group
from gvpo.update.group_backward import TokenLogprobs


def answer(score: float) -> Completion:
    return Completion([1, 2], score, ref_logprobs=[-1.0, -1.0])


def scored(log_ratio: float) -> TokenLogprobs:
    return TokenLogprobs(torch.tensor([-1.0 + log_ratio, -1.0]), torch.zeros(2))


def test_groups_have_equal_weights_and_a_tie_counts_half():
    """Scores 2 1 0 and log-ratios 1 3 0 give margins 1 - 3, 1 - 0, 3 - 0: 2 of 3 are right; the other group ties."""
    groups = [Group([0], [answer(1), answer(2), answer(0)]), Group([0], [answer(1), answer(0)])]
    metrics = pair_metrics(groups, [scored(x) for x in (3.0, 1.0, 0.0, 0.5, 0.5)], beta=0.5)
    assert metrics == pytest.approx(
        {
            "eval/pair_accuracy": (2 / 3 + 1 / 2) / 2,
            "eval/pair_margin": 0.5 * (2 / 3 + 0) / 2,
            "eval/chosen_logratio": (1.0 + 0.5) / 2,
            "eval/rejected_logratio": (1.5 + 0.5) / 2,
        }
    )


def test_answers_with_equal_scores_do_not_form_a_pair():
    groups = [Group([0], [answer(1), answer(1), answer(0)])]
    metrics = pair_metrics(groups, [scored(x) for x in (0.0, 9.0, -1.0)], beta=1.0)
    assert metrics["eval/pair_accuracy"] == 1.0
    assert metrics["eval/pair_margin"] == pytest.approx((1.0 + 10.0) / 2)
