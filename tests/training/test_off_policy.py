"""The distance of a policy from the policies that sampled its rows, against a naive loop and extreme log-probs."""

import dataclasses
import math

import pytest
import torch

from gvpo.collapse import collapse_warning
from gvpo.rollout.collect import Rollout
from gvpo.rollout.usable import TrainingGroup
from gvpo.training.learner import StepResult, Update
from gvpo.training.metrics import step_metrics
from gvpo.training.off_policy import effective_share, is_on_policy, offpolicy_metrics
from gvpo.types import Completion, Group
from gvpo.update.group_backward import RowGradient, UpdateOutput

STEP = 5


def made(groups, *, number=1, version=STEP - 1):
    """Return an update on rows (log-ratio, reward), each of two tokens with current log-probs -1."""
    entries = [
        TrainingGroup(
            Group(
                [1],
                [
                    Completion([2, 3], reward, old_logprobs=[-1 - ratio, -1.0], version=version)
                    for ratio, reward in rows
                ],
            ),
            index,
            tuple(range(len(rows))),
        )
        for index, rows in enumerate(groups)
    ]
    results = [RowGradient(torch.tensor([-1.0, -1.0]), torch.zeros(2), torch.zeros(2)) for rows in groups for _ in rows]
    return Update(entries, UpdateOutput(torch.tensor(0.0), {}, results), 1.0, 0.1, True, STEP, number)


def with_rows(update, **change):
    entries = [
        dataclasses.replace(
            entry,
            group=dataclasses.replace(
                entry.group, completions=[dataclasses.replace(row, **change) for row in entry.group.completions]
            ),
        )
        for entry in update.groups
    ]
    return dataclasses.replace(update, groups=entries)


def test_log_ratios_and_effective_sample_size_have_hand_computed_values():
    update = made([[(1.0, 1.0), (-2.0, 0.0)], [(0.5, 2.0), (0.25, 2.0), (-1.0, 0.0)]])
    weights = [math.exp(ratio) for ratio in (1.0, -2.0, 0.5, 0.25, -1.0)]
    assert offpolicy_metrics(update) == pytest.approx(
        {
            "offpolicy/logratio_mean": (1 - 2 + 0.5 + 0.25 - 1) / 5,
            "offpolicy/logratio_best": (1 + 0.5 + 0.25) / 3,
            "offpolicy/ess": sum(weights) ** 2 / (5 * sum(weight**2 for weight in weights)),
        }
    )


def test_tokens_that_are_not_scored_do_not_count():
    update = with_rows(made([[(3.0, 1.0), (-1.0, 0.0)]]), mask=[0.0, 1.0])
    assert offpolicy_metrics(update)["offpolicy/logratio_mean"] == 0.0


def test_the_first_update_on_own_samples_is_exactly_on_policy():
    """This is true despite another engine's rounding or a stale attribute."""
    update = with_rows(made([[(3.0, 1.0), (-1.0, 0.0)]], number=0), sampler_logprobs=[-1.1, -0.9])
    assert is_on_policy(update)
    assert offpolicy_metrics(update) == {
        "offpolicy/logratio_mean": 0.0,
        "offpolicy/logratio_best": 0.0,
        "offpolicy/ess": 1.0,
    }


def test_rows_of_earlier_policies_and_files_are_compared_with_their_sampler():
    """Old log-probs of such rows come from the step's start, from a policy that did not sample them."""
    update = with_rows(made([[(3.0, 1.0), (3.0, 0.0)]], number=0, version=0), sampler_logprobs=[-3.0, -1.0])
    assert not is_on_policy(update)
    assert offpolicy_metrics(update)["offpolicy/logratio_mean"] == 2.0


@pytest.mark.parametrize("version", [None, 0, STEP - 1])
def test_rows_whose_sampler_is_unknown_have_no_metrics(version):
    update = with_rows(made([[(3.0, 1.0), (3.0, 0.0)]], version=version), old_logprobs=None)
    assert offpolicy_metrics(update) == {}


def test_rows_whose_sampler_is_unknown_are_skipped():
    first, second = with_rows(made([[(3.0, 1.0), (3.0, 0.0)]]), old_logprobs=None), made([[(1.0, 1.0), (-2.0, 0.0)]])
    both = dataclasses.replace(
        second,
        groups=[*first.groups, *second.groups],
        output=dataclasses.replace(second.output, rows=[*first.output.rows, *second.output.rows]),
    )
    assert offpolicy_metrics(both) == offpolicy_metrics(second)


@pytest.mark.parametrize("rewards", [(1.0, 1.0), (None, None)])
def test_without_differing_rewards_no_row_is_best(rewards):
    update = made([[(3.0, rewards[0]), (1.0, rewards[1])]])
    assert set(offpolicy_metrics(update)) == {"offpolicy/logratio_mean", "offpolicy/ess"}


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ([0.0, 0.0, 0.0], 1.0),
        ([-1000.0, -1000.0], 1.0),  # a shift common to all rows changes only the mean log-ratio
        ([1000.0, -1000.0], 0.5),
        ([1000.0, 0.0, -1000.0, 0.0], 0.25),
        ([0.0, math.log(3)], 16 / 20),
        ([5.0], 1.0),
    ],
)
def test_the_effective_share_neither_overflows_nor_leaves_its_range(ratios, expected):
    assert effective_share(ratios) == pytest.approx(expected, abs=1e-15)


def test_a_thousand_nats_in_either_direction_are_finite():
    values = offpolicy_metrics(made([[(1000.0, 1.0), (-1000.0, 0.0)]]))
    assert values == {"offpolicy/logratio_mean": 0.0, "offpolicy/logratio_best": 1000.0, "offpolicy/ess": 0.5}


@pytest.mark.parametrize(("shift", "warns"), [(-10.0, True), (0.0, False), (10.0, False)])
def test_a_batch_whose_log_probs_fall_together_causes_the_warning(shift, warns):
    """The differences within groups, and so all centred metrics, are the same in each case."""
    update = made([[(shift + 1.0, 1.0), (shift - 1.0, 0.0)], [(shift + 0.5, 1.0), (shift, 0.0)]])
    rollout = Rollout([entry.group for entry in update.groups], [], [], {"sampling": 1.0})
    line = step_metrics(STEP, rollout, StepResult([update], 0.0, 0.0), judge=None)
    assert line["offpolicy/logratio_mean"] == pytest.approx(shift + 0.125)
    assert line["offpolicy/ess"] == pytest.approx(
        offpolicy_metrics(made([[(1, 1), (-1, 0), (0.5, 1), (0, 0)]]))["offpolicy/ess"]
    )
    assert bool(collapse_warning([line])) == warns
