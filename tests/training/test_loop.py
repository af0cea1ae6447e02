"""The loop of a run: its metrics, skipped rows, evaluation, and when it stops."""

import json
import math
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from gvpo import runfiles
from gvpo.collapse import collapse_warning
from gvpo.errors import RewardError, RoundTripError, TrainingError
from gvpo.evaluation import Evaluation
from gvpo.rollout.collect import Rollout
from gvpo.rollout.usable import usable
from gvpo.training import loop as module
from gvpo.training.session import evaluator
from tests.training.toy import DIGITS, ROWS, lines, model, same, trainer, weights

DOCUMENT = Path(__file__).parents[2] / "docs/reference/run-directory.md"


def documented_keys() -> set[str]:
    """Return the keys in the first column of the metrics tables."""
    section = DOCUMENT.read_text().partition("## metrics.jsonl")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    return {key for row in rows for key in re.findall(r"`([^`]+)`", row.split("|")[1])}


def test_a_line_has_the_documented_keys_and_no_others(tmp_path: Path):
    trainer(tmp_path, steps=1).train()
    before, line = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    elsewhere = {
        "reward/NAME",
        "multiplier/NAME",
        "moe/changed",
        "moe/load_max",
        "moe/balance_loss",
        "rows/masked",
        "rows/dropped",
        "curriculum/accuracy",
        "groups/late",
        "groups/in_flight",
        "seconds/publishing",
        "seconds/sampler_idle",
        "seconds/trainer_idle",
        "groups/fresh",
        "groups/kept",
        "groups/evicted",
        "groups/dropped",
        "rows/stored",
        "groups/replaced",
        "gvpo/anchor_term",
        "rows/history_missing",
        "rows/logged_missing",
        "rows/expert_missing",
        "seconds/environment",
        "eval/env_turns",
    }
    elsewhere |= {key for key in documented_keys() if key.startswith("env/")}
    documented = documented_keys() - elsewhere | {"reward/digits"}
    assert set(line) == documented - {"eval/overlap"}
    assert before["step"] == 0
    assert before["eval/overlap"] == 1.0  # the toy evaluates on what it trains on
    evaluated = {key for key in documented if key.startswith("eval/")}
    assert set(before) == {"step", "seconds/evaluating"} | evaluated


def test_several_updates_also_log_their_last_values(tmp_path: Path):
    trainer(tmp_path, steps=1, groups_per_update=2, held=[], eval_problems=0).train()
    (line,) = lines(tmp_path)
    assert line["train/updates"] == 2
    assert {key.removesuffix("/last") for key in line if key.endswith("/last")} <= set(line)
    assert {"train/loss/last", "gvpo/residual_ratio/last", "offpolicy/ess/last"} <= set(line)
    assert "gvpo/certificate" in line
    assert "gvpo/certificate/last" not in line  # the second update's policy did not sample its rows
    assert not [key for key in line if key.startswith("eval/")]


@pytest.mark.parametrize("objective", ["gvpo", "grpo", "gspo", "rloo", "dapo"])
def test_one_update_on_fresh_samples_is_exactly_on_policy(tmp_path: Path, objective: str):
    trainer(tmp_path, steps=2, objective=objective, held=[], eval_problems=0).train()
    for line in lines(tmp_path):
        assert (line["offpolicy/logratio_mean"], line["offpolicy/logratio_best"], line["offpolicy/ess"]) == (0, 0, 1)


@pytest.mark.parametrize(("objective", "reference"), [("gvpo", "initial"), ("gvpo", "previous"), ("grpo", "previous")])
def test_later_updates_are_off_policy(tmp_path: Path, objective: str, reference: str):
    """Both with stored old log-probs and with only the sampler's."""
    settings = {"objective": objective, "reference": reference, "passes": 2, "learning_rate": 0.03}
    trainer(tmp_path, steps=1, held=[], eval_problems=0, **settings).train()
    (line,) = lines(tmp_path)
    assert line["offpolicy/logratio_mean/last"] != 0
    assert 0 < line["offpolicy/ess/last"] < 1


@pytest.mark.parametrize(
    "settings",
    [{"temperature": 0.7}, {"top_p": 0.9}, {"top_k": 3}, {"sampling_ban": ["[9]"]}, {"sampling_allow": ["[0-5]"]}],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:sampling with:gvpo.errors.GvpoWarning")
def test_rows_that_are_not_samples_of_the_policy_have_no_certificate(tmp_path: Path, settings: dict[str, Any]):
    trainer(tmp_path, steps=1, objective="gvpo", held=[], eval_problems=0, **settings).train()
    (line,) = lines(tmp_path)
    assert "gvpo/residual_ratio" in line
    assert "gvpo/certificate" not in line


def test_rollouts_contain_the_results_of_each_row(tmp_path: Path):
    trainer(tmp_path, steps=2, objective="gvpo", beta=0.5, learning_rate=0.03).train()
    rows = runfiles.read_rollouts(runfiles.rollout_path(tmp_path, 2))
    assert len(rows) == 16
    for row in rows:
        log_ratio = sum(row.logprobs) - sum(row.ref_logprobs)
        assert row.implicit_reward == pytest.approx(0.5 * log_ratio, abs=1e-4)
        assert row.reward == pytest.approx(row.text.count(row.columns["digit"]) / 3)
        assert row.prompt == row.columns["digit"]
        assert row.sampler_logprobs == pytest.approx(list(row.logprobs), abs=1e-4)
        assert (row.version, row.age) == (1, 0)
    for start in range(0, 16, 4):
        assert sum(row.weight for row in rows[start : start + 4]) == pytest.approx(0.0, abs=1e-5)
    assert any(abs(row.implicit_reward) > 1e-3 for row in rows)


def test_old_log_probs_of_every_row_are_in_the_rollouts_if_a_step_has_several_updates(tmp_path: Path):
    trainer(tmp_path, steps=1, objective="grpo", groups_per_update=2, held=[], eval_problems=0).train()
    rows = runfiles.read_rollouts(runfiles.rollout_path(tmp_path, 1))
    for row in rows:
        assert row.old_logprobs == pytest.approx(list(row.sampler_logprobs), abs=1e-4)


@pytest.mark.parametrize(("every", "written"), [(0, []), (1, [1, 2, 3, 4, 5]), (3, [1, 3, 5]), (100, [1, 5])])
def test_selected_rollouts_are_written(tmp_path: Path, every: int, written: list[int]):
    trainer(tmp_path, steps=5, rollouts_every=every, held=[], eval_problems=0).train()
    assert runfiles.rollout_steps(tmp_path) == written


def test_problems_drawn_twice_in_a_step_get_separate_samples(tmp_path: Path):
    trainer(tmp_path, steps=1, data=ROWS[:1], prompts_per_step=2, held=[], eval_problems=0).train()
    rows = runfiles.read_rollouts(runfiles.rollout_path(tmp_path, 1))
    assert len({row.group for row in rows}) == 2
    assert [row.text for row in rows[:4]] != [row.text for row in rows[4:]]


# rewards that fail


def failing(bad: str) -> Any:
    """Return NaN on the first row of a group; on problem `bad` return it on all rows but the last."""

    def reward(completions: Any, digit: Any, **_: Any) -> list[float]:
        values = [float(index) for index in range(len(completions))]
        broken = len(values) - 1 if digit[0] == bad else 1
        return [math.nan] * broken + values[broken:]

    return reward


def test_rows_without_a_reward_are_dropped_and_groups_of_one_are_skipped(tmp_path: Path):
    trainer(tmp_path, rewards=failing("3"), data=ROWS[:4], steps=1, held=[], eval_problems=0).train()
    (line,) = lines(tmp_path)
    assert line["rows/failed"] == (1 + 1 + 1 + 3) / 16
    assert (line["groups/total"], line["groups/skipped"], line["train/updates"]) == (4, 1, 1)
    assert line["reward/mean"] == (3 * (1 + 2 + 3) + 3) / 10
    rows = runfiles.read_rollouts(runfiles.rollout_path(tmp_path, 1))
    trained = {(row.columns["digit"], row.row) for row in rows if row.weight is not None}
    assert trained == {(digit, row) for digit in "012" for row in (1, 2, 3)}
    assert {row.reason.partition(":")[0] for row in rows if row.reward is None} == {"nan"}
    for digit in "012":
        of_group = [row for row in rows if row.columns["digit"] == digit and row.weight is not None]
        assert sum(row.weight for row in of_group) == pytest.approx(0.0, abs=1e-5)


def test_error_explains_why_most_rewards_fail(tmp_path: Path):
    def broken(completions: Any, **_: Any) -> list[float]:
        raise ValueError("no such table")

    with pytest.raises(RewardError, match=r"most rewards of step 1 failed: .*exception"):
        trainer(tmp_path, rewards=broken, held=[], eval_problems=0).train()


def test_steps_without_a_usable_group_end_the_run_after_five(tmp_path: Path):
    def half(completions: Any, **_: Any) -> list[float]:
        return [math.nan, 1.0]

    policy = model()
    start = weights(policy)
    with pytest.raises(TrainingError, match="no group could be trained on for 5 steps"):
        trainer(tmp_path, rewards=half, policy=policy, group_size=2, steps=9, held=[], eval_problems=0).train()
    assert [(line["groups/skipped"], line["train/updates"]) for line in lines(tmp_path)] == [(4, 0)] * 4
    assert same(weights(policy), start)


def test_the_reference_is_refreshed_even_in_a_step_without_a_usable_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The weights do not change in step 3, so step 4 is compared with the policy itself."""
    calls = iter(range(1, 5))
    monkeypatch.setattr(module, "usable", lambda groups, **how: [] if next(calls) == 3 else usable(groups, **how))
    settings = {"steps": 4, "reference": "every:2", "learning_rate": 0.03}
    trainer(tmp_path, **settings, held=[], eval_problems=0).train()
    _, second, third, fourth = lines(tmp_path)
    assert third["groups/skipped"] == 4
    assert second["kl/reference"] > 1e-4
    assert fourth["kl/reference"] == pytest.approx(0.0, abs=1e-6)


def test_a_function_of_weight_0_may_fail_and_is_only_logged(tmp_path: Path):
    def broken(completions: Any, **_: Any) -> list[float]:
        raise ValueError("no such table")

    def right(completions: Any, **_: Any) -> list[float]:
        return [float(index) for index in range(len(completions))]

    settings = {"steps": 1, "reward_weights": [2.0, 0.0], "accuracy_reward": "right"}
    trainer(tmp_path, rewards=[right, broken], held=[], eval_problems=0, **settings).train()
    (line,) = lines(tmp_path)
    assert line["rows/failed"] == 0.0
    assert (line["reward/mean"], line["reward/right"]) == (3.0, 1.5)
    assert "reward/broken" not in line
    assert line["accuracy"] == 0.75


# evaluation, early stopping, retention


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let evaluations return these accuracies, in order."""

    def script(*accuracies: float) -> None:
        remaining: Iterator[float] = iter(accuracies)

        def evaluate(problems: Sequence[Any], *_: Any, **__: Any) -> Evaluation:
            return Evaluation(next(remaining), 0.0, 1.0, 0.0, Rollout([], [], []))

        monkeypatch.setattr(evaluator, "evaluate", evaluate)

    return script


def evaluated(tmp_path: Path, **settings: Any) -> dict[str, Any]:
    return trainer(tmp_path, eval_every=1, eval_greedy=False, rollouts_every=0, **settings).train()


def test_a_run_ends_early_when_it_is_good_enough(tmp_path: Path, scripted: Any):
    scripted(0.1, 0.5, 0.8, 0.9)
    summary = evaluated(tmp_path, steps=9, stop_at_accuracy=0.8)
    assert (summary["steps"], summary["accuracy_before"], summary["accuracy_after"]) == (2, 0.1, 0.8)
    assert (tmp_path / "checkpoints/step-000002").is_dir()


def test_a_run_ends_early_without_a_new_best_for_long(tmp_path: Path, scripted: Any):
    scripted(0.1, 0.5, 0.4, 0.6, 0.6, 0.3, 0.9)
    summary = evaluated(tmp_path, steps=9, patience=2)
    assert (summary["steps"], summary["best_accuracy"], summary["best_step"]) == (5, 0.6, 3)
    assert summary["accuracy_after"] == 0.3


def test_the_latest_checkpoints_and_the_best_are_kept(tmp_path: Path, scripted: Any):
    scripted(0.0, 0.1, 0.9, 0.2, 0.3, 0.3)
    evaluated(tmp_path, steps=5, checkpoint_every=1, checkpoint_keep=2)
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["step-000002", "step-000004", "step-000005"]


@pytest.mark.parametrize(("every", "steps"), [(0, [0, 5]), (2, [0, 2, 4, 5])])
def test_evaluations_happen_before_after_and_every_n_steps(tmp_path: Path, every: int, steps: list[int]):
    trainer(tmp_path, steps=5, eval_every=every, held=ROWS[:2], eval_greedy=False).train()
    assert [line["step"] for line in lines(tmp_path) if "eval/accuracy" in line] == steps
    assert not any("eval/accuracy_greedy" in line for line in lines(tmp_path))
    assert runfiles.rollout_steps(tmp_path, runfiles.HELD_OUT) == steps
    answers = runfiles.read_rollouts(runfiles.rollout_path(tmp_path, 5, runfiles.HELD_OUT))
    assert [(row.prompt, row.source) for row in answers] == [(each["prompt"], "live") for each in ROWS[:2]]
    assert all(row.text and row.reward is not None for row in answers)


def test_evaluations_of_a_run_are_paired(tmp_path: Path):
    """The noise is the same before and after, so an unchanged policy has exactly the same numbers."""
    summary = trainer(tmp_path, steps=1, learning_rate=1e-30, eval_samples=3).train()
    before, after = lines(tmp_path)
    measured = [key for key in before if key.startswith("eval/") and key != "eval/overlap"]
    assert {key: after[key] for key in measured} == {key: before[key] for key in measured}
    assert 0 < before["eval/reward"] < 1
    assert summary["accuracy_before"] == summary["accuracy_after"]


def test_the_first_checkpoint_is_loaded_back_and_a_difference_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seen: list[tuple[Path, list[str]]] = []
    monkeypatch.setattr(module, "verify_round_trip", lambda model, tokenizer, path, texts: seen.append((path, texts)))
    settings = {"steps": 2, "checkpoint_every": 1, "held": [], "eval_problems": 0}
    trainer(tmp_path / "a", checkpoint_verify=True, **settings).train()
    ((path, texts),) = seen
    assert path.name == "step-000001"
    assert texts[0] in DIGITS
    assert any(len(text) == 3 for text in texts)

    def differs(*_: Any) -> None:
        raise RoundTripError("other tokens come back")

    monkeypatch.setattr(module, "verify_round_trip", differs)
    with pytest.raises(RoundTripError):
        trainer(tmp_path / "b", checkpoint_verify=True, **settings).train()


FALLING = {"objective": "gvpo", "reference": "initial", "beta": 0.1, "passes": 12, "learning_rate": 0.05, "steps": 3}


def test_a_run_whose_log_probs_all_fall_warns_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Many passes at a high rate warn on the terminal, in the summary, and when a report is made of the metrics."""
    summary = trainer(tmp_path, held=[], eval_problems=0, **FALLING).train()
    warning = collapse_warning(runfiles.read_metrics(tmp_path / "metrics.jsonl"))
    assert summary["warnings"].count(warning) == 1
    shown = " ".join(capsys.readouterr().err.split())
    assert shown.count(f"{tmp_path.name}: warning: {warning}") == 1  # during the run
    assert shown.count(f"gvpo: warning: {warning}") == 1  # at its end
    assert lines(tmp_path)[-1]["offpolicy/logratio_mean/last"] < -1


def test_an_ordinary_run_has_no_warnings(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    summary = trainer(tmp_path, steps=5, objective="gvpo", held=[], eval_problems=0).train()
    assert summary["warnings"] == []
    assert "warning" not in capsys.readouterr().err


def test_a_resumed_run_keeps_its_warning_and_does_not_repeat_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    settings = {**FALLING, "held": [], "eval_problems": 0, "checkpoint_every": 1}
    before = trainer(tmp_path, **settings).train()["warnings"]
    capsys.readouterr()
    shutil.rmtree(tmp_path / "checkpoints" / runfiles.step_name(3))
    assert trainer(tmp_path, **settings).train(resume=True)["warnings"] == before
    assert f"{tmp_path.name}: warning" not in capsys.readouterr().err  # only the end says it again
