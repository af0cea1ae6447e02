"""`gvpo train calculator`: a policy learns to call a tool in several turns."""

import json
from pathlib import Path

import pytest

from gvpo.cli.main import main
from gvpo.runfiles import HELD_OUT, read_rollouts, rollout_path

SMALL = ["train.steps=1", "warm_start.steps=2", "data.eval_problems=4", "train.prompts_per_step=2", "eval.greedy=false"]


def summary(run: Path, recipe: str, *settings: str) -> dict[str, float]:
    assert main(["train", recipe, f"run.dir={run}", *settings]) == 0
    return json.loads((run / "summary.json").read_text())


@pytest.mark.filterwarnings("ignore::gvpo.errors.GvpoWarning")
def test_rewards_are_sums_over_turns_and_accuracy_counts_right_last_lines(tmp_path: Path):
    demonstrations = [
        "warm_start.steps=60",
        "warm_start.options={mistakes = 0.3}",
        "data.task_options={operations = 1}",
    ]
    found = summary(tmp_path / "run", "calculator", *SMALL, *demonstrations)
    rows = read_rollouts(rollout_path(tmp_path / "run", 1))
    assert {turn["reward"] for row in rows for turn in row.turns} <= {0.0, 0.25, 1.0, None}
    assert any(len(row.turns) > 1 for row in rows)
    for row in rows:
        paid = [turn["reward"] for turn in row.turns if turn["reward"] is not None]
        assert row.reward == row.reward_parts["environment"] == sum(paid)
        assert row.reward_parts["calculator"] == float(1.0 in paid)
    held_out = read_rollouts(rollout_path(tmp_path / "run", 1, HELD_OUT))
    assert found["accuracy_after"] == sum(row.reward_parts["calculator"] or 0.0 for row in held_out) / 4


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_gvpo_learns_to_call_the_calculator_on_every_seed(tmp_path: Path, seed: int):
    found = summary(tmp_path / "run", "calculator", f"run.seed={seed}")
    assert found["accuracy_before"] < 0.3
    assert found["accuracy_after"] >= 0.8
