"""Completions that reach the maximum length without an end: kept, masked or dropped, against hand-written sums."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch

from gvpo import runfiles
from gvpo.config import TrainConfig, resolve
from gvpo.errors import ConfigError, TrainingError
from gvpo.objectives import gvpo, rloo
from gvpo.rollout.usable import Overlong, usable
from gvpo.types import Completion, Group
from gvpo.update.group_backward import group_backward
from tests.training.toy import lines, model, trainer

BETA = 0.5
LENGTHS, REWARDS = [2, 3, 1, 3], [1.0, 0.0, 0.25, 2.0]
OVERLONG = 3
"""Index of the row without an end."""


def group() -> Group:
    rows = [
        Completion(
            [3 + index, *range(4, 3 + length)],
            reward,
            ref_logprobs=[-1.0 - index] * length,
            finish_reason="length" if index == OVERLONG else "stop",
        )
        for index, (length, reward) in enumerate(zip(LENGTHS, REWARDS, strict=True))
    ]
    return Group([3], rows, id="g")


def pushed(overlong: Overlong, objective: Any) -> tuple[list[float], list[float]]:
    """Return the log-ratio of each trained row, and minus the sum of its coefficients."""
    kept = [entry.group for entry in usable([group()], rewarded=True, at_least=2, overlong=overlong)]
    rows = group_backward(model(), kept, objective).rows
    ratios = [
        float((row.logprobs - torch.as_tensor(done.ref_logprobs)).sum())
        for row, done in zip(rows, kept[0].completions, strict=True)
    ]
    return ratios, [-float(row.coefficients[0]) for row in rows]


def test_drop_centres_gvpo_over_the_rows_with_an_end_and_its_weights_sum_to_0():
    ratios, found = pushed("drop", functools.partial(gvpo, beta=BETA))
    rewards = REWARDS[:OVERLONG]
    centre, ratio = sum(rewards) / 3, sum(ratios) / 3
    naive = [BETA / 2 * ((reward - centre) - BETA * (own - ratio)) for reward, own in zip(rewards, ratios, strict=True)]
    assert found == pytest.approx(naive, abs=1e-5)
    assert sum(found) == pytest.approx(0.0, abs=1e-5)


def test_mask_counts_the_reward_in_gvpo_with_a_log_ratio_of_0_and_the_trained_weights_no_longer_sum_to_0():
    ratios, found = pushed("mask", functools.partial(gvpo, beta=BETA))
    own = [*ratios[:OVERLONG], 0.0]
    centre, ratio = sum(REWARDS) / 4, sum(own) / 4
    weights = [(reward - centre) - BETA * (each - ratio) for reward, each in zip(REWARDS, own, strict=True)]
    assert sum(weights) == pytest.approx(0.0, abs=1e-6)
    assert found == pytest.approx([*(BETA / 3 * weight for weight in weights[:OVERLONG]), 0.0], abs=1e-5)
    assert sum(found) == pytest.approx(-BETA / 3 * weights[OVERLONG], abs=1e-5)
    assert abs(sum(found)) > 0.01


@pytest.mark.parametrize("overlong", ["mask", "drop"])
def test_mask_is_that_of_trl_and_drop_leaves_the_row_out_of_the_baseline(overlong: Overlong):
    """RLOO subtracts the mean of the other rows; masked rows are among these and among the divisor, dropped are not."""
    _, found = pushed(overlong, on_policy_rloo)
    rewards = REWARDS if overlong == "mask" else REWARDS[:OVERLONG]
    k = len(rewards)
    advantages = [reward - (sum(rewards) - reward) / (k - 1) for reward in rewards]
    wanted = [each / k for each in advantages[:OVERLONG]] + ([0.0] if overlong == "mask" else [])
    assert found == pytest.approx(wanted, abs=1e-5)


def on_policy_rloo(logprobs: torch.Tensor, *, rewards: Any, group: Any, mask: Any) -> Any:
    return rloo(logprobs, old_logprobs=logprobs.detach(), rewards=rewards, group=group, mask=mask)


def test_a_group_without_any_end_is_not_trained_on():
    rows = [Completion([3], reward, finish_reason="length") for reward in (0.0, 1.0)]
    for overlong, count in (("keep", 1), ("mask", 0), ("drop", 0)):
        assert len(usable([Group([1], rows)], rewarded=True, at_least=2, overlong=overlong)) == count  # type: ignore[arg-type]
    one = [*rows, Completion([4], 0.5)]
    (kept,) = usable([Group([1], one)], rewarded=True, at_least=2, overlong="mask")
    assert [row.mask for row in kept.group.completions] == [[0.0], [0.0], None]
    assert usable([Group([1], one)], rewarded=True, at_least=2, overlong="drop") == []


# in a run


@pytest.mark.parametrize("overlong", ["mask", "drop"])
def test_a_run_counts_the_rows_and_does_not_train_on_them(tmp_path: Path, overlong: str):
    trainer(tmp_path, held=None, eval_problems=0, objective="grpo", overlong_completions=overlong).train()
    for line in lines(tmp_path):
        assert line["rows/masked" if overlong == "mask" else "rows/dropped"] == line["rows/truncated"] > 0
    rows = runfiles.read_rollouts(runfiles.rollout_path(tmp_path, 1))
    cut = [row for row in rows if row.finish_reason == "length"]
    assert all(row.reward is not None for row in cut)
    trained = [row for row in cut if row.weight is not None]
    assert bool(trained) == (overlong == "mask")
    assert all((row.weight, row.mask) == (0.0, [0.0] * 3) for row in trained)


def test_a_run_in_which_no_completion_ends_says_so(tmp_path: Path):
    message = "fewer than two rows that have a reward and an end .13 rows reached the maximum length, and train.over"
    with pytest.raises(TrainingError, match=message):
        trainer(tmp_path, held=None, eval_problems=0, max_tokens=1, steps=9, overlong_completions="drop").train()


def test_the_setting_is_for_groups_and_a_mask_warns_gvpo():
    with pytest.raises(ConfigError, match=r"train\.overlong_completions is for objectives that learn from groups; dpo"):
        resolve(TrainConfig(model_path="m", objective="dpo", groups_data="a", overlong_completions="drop"))
    for objective, warns in (("gvpo", True), ("grpo", False)):
        plan = resolve(TrainConfig(model_path="m", objective=objective, overlong_completions="mask"))
        assert any("log Z(x) does not cancel" in notice for notice in plan.notices) == warns


def test_without_an_end_a_certificate_is_not_of_the_policy(tmp_path: Path):
    for overlong, present in (("keep", True), ("drop", False)):
        run_dir = tmp_path / overlong
        trainer(run_dir, held=None, eval_problems=0, steps=1, overlong_completions=overlong).train()
        (line,) = lines(run_dir)
        assert ("gvpo/certificate" in line) == present
