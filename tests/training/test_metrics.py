"""The metrics line and the rollout rows of a step with hand-computed values."""

import dataclasses
import math
from statistics import fmean
from typing import Any

import pytest
import torch

from gvpo.evaluation import Evaluation
from gvpo.rollout.collect import Rollout, failures
from gvpo.rollout.usable import TrainingGroup, usable
from gvpo.training.learner import StepResult, Update
from gvpo.training.metrics import (
    evaluation_metrics,
    held_out_rows,
    rollout_rows,
    source_metrics,
    step_metrics,
    trained_rows,
)
from gvpo.types import Completion, Group, Problem, Verdict
from gvpo.update.group_backward import RowGradient, UpdateOutput

NO_REWARD = Verdict(None, {"right": 1.0, "short": None}, "timeout: short gave no answer in 10 s")
VERDICTS = [
    [Verdict(1.5, {"right": 1.0, "short": 0.5}), Verdict(0.5, {"right": 0.0, "short": 0.5}), NO_REWARD],
    [Verdict(2.0, {"right": 1.0, "short": 1.0}), Verdict(2.0, {"right": 1.0, "short": 1.0})],  # dead
    [Verdict(0.0, {"right": 0.0, "short": 0.0}), NO_REWARD],  # left with one row
]
LENGTHS = [[2, 3, 1], [1, 1], [4, 1]]


def made_group(index: int) -> Group:
    rows = [
        Completion(
            list(range(length)),
            verdict.reward,
            sampler_logprobs=[-1.25] * length,
            finish_reason="length" if length == 3 else "stop",
            text=f"row {index}.{position}",
            version=6,
            versions=[6, 7, 7, 7][:length] if length > 1 else None,
        )
        for position, (length, verdict) in enumerate(zip(LENGTHS[index], VERDICTS[index], strict=True))
    ]
    return Group([5, 6], rows, id=f"problem-{index}", columns={"answer": "42"})


GROUPS = [made_group(index) for index in range(3)]
ROLLOUT = Rollout(GROUPS, VERDICTS, [Problem("?", g.id) for g in GROUPS], {"sampling": 1.5, "rewarding": 0.5})


def with_log_probs(entry: TrainingGroup) -> TrainingGroup:
    """Set the reference to -1.5 per token; in the second group the mask scores only the first token."""
    rows = [
        dataclasses.replace(
            row,
            ref_logprobs=[-1.5] * len(row.tokens),
            old_logprobs=[-1.0] * len(row.tokens),
            mask=[1.0] + [0.0] * (len(row.tokens) - 1),
        )
        for row in entry.group.completions
    ]
    return dataclasses.replace(entry, group=dataclasses.replace(entry.group, completions=rows))


def update(
    entries: list[TrainingGroup],
    loss: float,
    *,
    applied: bool = True,
    rate: float = 0.1,
    number: int = 0,
    metrics: dict[str, float] | None = None,
) -> Update:
    """Set every token to -1 with entropy 0.5; c is minus the reward on each token. The step is 7."""
    rows = [
        RowGradient(torch.full((n,), -1.0), torch.full((n,), 0.5), torch.full((n,), -(row.reward or 0.0)))
        for entry in entries
        for row in entry.group.completions
        for n in [len(row.tokens)]
    ]
    found = {"gvpo/certificate": 10 * loss} if metrics is None else metrics
    output = UpdateOutput(torch.tensor(loss), {key: torch.tensor(value) for key, value in found.items()}, rows)
    return Update(entries, output, 2 * loss, rate, applied, step=7, number=number)


USED = [with_log_probs(entry) for entry in usable(GROUPS, rewarded=True, at_least=2)]
LEARNED = StepResult([update(USED[:1], 1.0, rate=0.2), update(USED[1:], 3.0, number=1)], scoring=0.25, updating=0.75)


def test_the_line_of_a_step_with_hand_computed_values():
    k3 = math.exp(-0.5) + 0.5 - 1  # reference minus policy is -0.5 on the one scored token of each of four rows
    assert step_metrics(7, ROLLOUT, LEARNED, judge="right") == pytest.approx(
        {
            "reward/mean": (1.5 + 0.5 + 2 + 2 + 0) / 5,
            "reward/std": math.sqrt((0.3**2 + 0.7**2 + 2 * 0.8**2 + 1.2**2) / 5),
            "reward/right": 5 / 7,  # a row that another function failed on still counts here
            "reward/short": 3 / 5,
            "rows/failed": 2 / 7,
            "rows/paid_worst": 0.0,
            "accuracy": 5 / 7,
            "groups/total": 3,
            "groups/dead": 1,
            "groups/skipped": 1,
            "length/mean": 13 / 7,
            "length/max": 4,
            "rows/truncated": 1 / 7,
            "rows/live": 1.0,
            "rows/history": 0.0,
            "rows/logged": 0.0,
            "rows/expert": 0.0,
            "age/mean": 0.0,
            "age/max": 0,
            "tokens/sampled": 13,
            "tokens/prompt": 6,
            "kl/reference": k3,
            "entropy": 0.5,
            "sampler/mismatch": 0.25,
            "sampler/mismatch_max": 0.25,
            "sampler/kl": math.exp(0.25) - 0.25 - 1,
            "train/updates": 2,
            "train/skipped_updates": 0,
            "tokens/trained": 4,  # one scored token in each of the four rows that have a reward and a partner
            "train/loss": 2.0,
            "train/loss/last": 3.0,
            "train/grad_norm": 4.0,
            "train/grad_norm/last": 6.0,
            "train/lr": 0.1,
            "gvpo/certificate": 10.0,  # of the first update only; the second update's policy did not sample its rows
            "offpolicy/logratio_mean": 0.0,  # old log-probs of the second update are -1 too
            "offpolicy/logratio_mean/last": 0.0,
            "offpolicy/logratio_best": 0.0,
            "offpolicy/ess": 1.0,
            "offpolicy/ess/last": 1.0,
            "seconds/sampling": 1.5,
            "seconds/rewarding": 0.5,
            "seconds/scoring": 0.25,
            "seconds/updating": 0.75,
        }
    )


def test_held_out_rows_are_the_sampled_answers_and_then_the_greedy_one():
    greedy = Rollout(
        [dataclasses.replace(group, completions=group.completions[:1]) for group in GROUPS],
        [verdicts[:1] for verdicts in VERDICTS],
        ROLLOUT.problems,
    )
    rows = held_out_rows(20, ROLLOUT, greedy, lambda ids: f"prompt of {len(ids)} tokens")
    places = [(0, "live"), (1, "live"), (2, "live"), (3, "greedy"), (0, "live"), (1, "live"), (2, "greedy")]
    assert [(row.row, row.source) for row in rows] == [*places, (0, "live"), (1, "live"), (2, "greedy")]
    assert {(row.step, row.prompt) for row in rows} == {(20, "prompt of 2 tokens")}
    assert rows[3].text == "row 0.0"
    assert rows[3].reward_parts == {"right": 1.0, "short": 0.5}
    assert len(held_out_rows(20, ROLLOUT, None, lambda ids: "")) == 7


def test_a_single_update_has_no_last_value():
    line = step_metrics(7, ROLLOUT, StepResult([update(USED, 1.0)], 0.0, 0.0), judge="right")
    assert not [key for key in line if key.endswith("/last")]


def test_a_key_that_some_updates_lack_is_a_mean_over_the_others():
    given = [{"gvpo/a": 1.0}, {"gvpo/a": 3.0, "gvpo/b": 5.0}, {"gvpo/b": 7.0}]
    updates = [update(USED, 1.0, number=number, metrics=metrics) for number, metrics in enumerate(given)]
    line = step_metrics(7, ROLLOUT, StepResult(updates, 0.0, 0.0), judge=None)
    assert (line["gvpo/a"], line["gvpo/b"], line["gvpo/b/last"]) == (2.0, 6.0, 7.0)
    assert "gvpo/a/last" not in line


def stale(entries: list[TrainingGroup]) -> list[TrainingGroup]:
    """Let one row of the first group be sampled by the policy after step 5."""
    first, *others = entries[0].group.completions
    rows = [dataclasses.replace(first, version=5), *others]
    return [
        dataclasses.replace(entries[0], group=dataclasses.replace(entries[0].group, completions=rows)),
        *entries[1:],
    ]


@pytest.mark.parametrize(
    ("entries", "number", "exact", "there"),
    [
        (USED, 0, True, True),  # samples of the policy, in its first update
        (USED, 1, True, False),  # the policy has moved since it sampled
        (stale(USED), 0, True, False),  # one row is older
        (USED, 0, False, False),  # another temperature, or tokens that are never sampled
    ],
)
def test_the_certificate_needs_samples_of_the_policy(entries, number, exact, there):
    learned = StepResult([update(entries, 1.0, number=number)], 0.0, 0.0)
    line = step_metrics(7, ROLLOUT, learned, judge=None, exact=exact)
    assert ("gvpo/certificate" in line) == there


def test_the_mismatch_is_that_of_scored_tokens_of_the_current_policys_rows():
    """Rows of earlier policies and of later updates differ from their sampler because the policy has moved."""

    def mismatch(entries: list[TrainingGroup], number: int = 0) -> dict[str, float]:
        learned = StepResult([update(entries, 1.0, number=number)], 0.0, 0.0)
        line = step_metrics(7, ROLLOUT, learned, judge=None)
        return {key: value for key, value in line.items() if key.startswith("sampler/")}

    def found(*differences: float) -> Any:
        sizes = [abs(each) for each in differences]
        divergence = fmean(math.exp(each) - each - 1 for each in differences)
        return pytest.approx(
            {"sampler/mismatch": fmean(sizes), "sampler/mismatch_max": max(sizes), "sampler/kl": divergence}
        )

    (first, *others) = USED[0].group.completions
    far = dataclasses.replace(first, sampler_logprobs=[-0.2, -9.0])  # the second token is masked
    entry = dataclasses.replace(USED[0], group=dataclasses.replace(USED[0].group, completions=[far, *others]))
    assert mismatch([entry]) == found(-0.8, 0.25)
    assert mismatch(stale([entry])) == found(0.25)
    assert mismatch([entry], number=1) == {}


def test_rows_are_counted_by_source_and_have_ages_if_a_policy_of_the_run_sampled_them():
    origins = [("live", 6), ("live", 6), ("history", 2), ("history", 5), ("live", None), ("a.jsonl", None)]
    rows = [Completion([1], 0.0, source=source, version=version) for source, version in [*origins, ("expert", None)]]
    rollout = Rollout([Group([1], rows)], [[Verdict(0.0)] * 7], [])
    expected = pytest.approx(
        {
            "rows/live": 2 / 7,
            "rows/history": 2 / 7,
            "rows/logged": 2 / 7,
            "rows/expert": 1 / 7,
            "age/mean": (0 + 0 + 4 + 1) / 4,
            "age/max": 4,
        }
    )
    assert source_metrics(rollout, 7) == expected
    assert source_metrics(dataclasses.replace(rollout, verdicts=[]), 7) == expected  # distillation needs no rewards
    assert source_metrics(Rollout([Group([1], [Completion([1], source="demonstration")])], [], []), 7) == {}


def test_skipped_updates_are_counted_and_excluded_from_the_means():
    updates = [update(USED[:1], math.nan, applied=False), update(USED[1:], 3.0)]
    line = step_metrics(7, ROLLOUT, StepResult(updates, 0.0, 0.0), judge=None)
    assert (line["train/updates"], line["train/skipped_updates"], line["train/loss"]) == (1, 1, 3.0)
    assert "accuracy" not in line


def test_a_step_without_updates_has_no_values_of_updates():
    line = step_metrics(7, ROLLOUT, StepResult([], 0.0, 0.0), judge="right")
    assert line["groups/skipped"] == 3
    assert not line.keys() & {"train/loss", "train/lr", "kl/reference", "entropy", "sampler/mismatch"}


def test_without_a_reference_there_is_no_kl():
    entries = usable(GROUPS, rewarded=True, at_least=2)
    assert "kl/reference" not in step_metrics(7, ROLLOUT, StepResult([update(entries, 1.0)], 0.0, 0.0), judge=None)


def test_a_supervised_step_has_no_rewards():
    rollout = Rollout(GROUPS, [], ROLLOUT.problems)
    line = step_metrics(7, rollout, StepResult([update(USED, 1.0)], 0.0, 0.0), judge=None)
    assert not [key for key in line if key.startswith(("reward/", "rows/failed", "accuracy", "seconds/sampling"))]


def test_rollout_rows_contain_the_results_of_each_completion():
    rows = {(row.group, row.row): row for row in rollout_rows(7, ROLLOUT, LEARNED, ["a", "b", "c"], beta=0.2)}
    assert len(rows) == 7
    row = rows["problem-0", 0]
    assert (row.step, row.prompt, row.prompt_tokens, row.text, row.tokens) == (7, "a", [5, 6], "row 0.0", [0, 1])
    assert (row.reward, row.reward_parts, row.reason) == (1.5, {"right": 1.0, "short": 0.5}, "")
    assert row.weight == pytest.approx(1.5)  # minus c of its one scored token
    assert row.implicit_reward == pytest.approx(0.2 * 0.5)  # one scored token
    assert (row.logprobs, row.ref_logprobs, row.old_logprobs) == ([-1, -1], [-1.5, -1.5], [-1, -1])
    assert (row.sampler_logprobs, row.entropy, row.version, row.age) == ([-1.25, -1.25], [0.5, 0.5], 6, 0)
    assert (row.token_versions, rows["problem-0", 2].token_versions) == ([6, 7], None)
    assert row.columns == {"answer": "42"}
    assert rows["problem-0", 1].finish_reason == "length"


def test_rows_that_were_not_trained_on_have_a_reason_and_no_weight():
    rows = {(row.group, row.row): row for row in rollout_rows(7, ROLLOUT, LEARNED, ["a", "b", "c"], beta=0.2)}
    failed, alone = rows["problem-0", 2], rows["problem-2", 0]
    assert (failed.reward, failed.weight, failed.logprobs) == (None, None, None)
    assert failed.reason.startswith("timeout")
    assert (alone.reward, alone.weight, alone.reason) == (0.0, None, "")


def test_a_row_in_several_passes_is_reported_from_its_first_update():
    later = update(USED, 9.0)
    assert trained_rows([update(USED, 1.0), later])[0, 1].row is not trained_rows([later])[0, 1].row
    assert trained_rows([LEARNED.updates[0], later])[1, 0].row is later.output.rows[2]


def test_the_weights_sign_is_the_direction_of_the_push():
    rows = rollout_rows(1, ROLLOUT, StepResult([update(USED, 1.0)], 0.0, 0.0), ["a", "b", "c"], beta=0.1)
    assert [row.weight for row in rows if row.group == "problem-1"] == [2.0, 2.0]


@pytest.mark.parametrize("greedy", [True, False])
def test_evaluation_metrics(greedy: bool):
    def evaluation(accuracy: float) -> Any:
        return Evaluation(accuracy, reward=0.7, length=4.0, truncated=0.1, rollout=ROLLOUT)

    metrics = evaluation_metrics(evaluation(0.5), evaluation(0.9) if greedy else None)
    assert metrics == {
        "eval/accuracy": 0.5,
        "eval/reward": 0.7,
        "eval/length": 4.0,
        "eval/truncated": 0.1,
        **({"eval/accuracy_greedy": 0.9} if greedy else {}),
    }


def test_failures_are_reported_by_reason_and_number():
    assert failures(ROLLOUT) == "timeout (2 rows); the first is timeout: short gave no answer in 10 s"
