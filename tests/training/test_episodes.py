"""Training on episodes of several turns."""

import pytest

from gvpo import Trainer
from gvpo.config import TrainConfig
from gvpo.runfiles import read_metrics, read_rollouts, rollout_path
from tests.training import guessing, toy

SETTINGS = {
    "environment_between": "{observation}",
    "environment_max_turns": 4,
    "environment_turn_tokens": 2,
    "max_tokens": 16,
    "group_size": 4,
    "prompts_per_step": 4,
    "steps": 2,
    "learning_rate": 1e-3,
    "eval_problems": 0,
}


@pytest.mark.parametrize("objective", ["gvpo", "grpo", "gspo_token"])
def test_a_run_trains_on_episodes(tmp_path, objective):
    config = TrainConfig(run_dir=tmp_path / "run", objective=objective, stop_token_ids=[3, 4], **SETTINGS)
    trainer = Trainer(
        toy.model(), None, config, guessing.ROWS, processing_class=toy.tokenizer(), environment=guessing.Guess
    )
    trainer.train()
    rows = read_rollouts(rollout_path(tmp_path / "run", 1))
    assert any(sum(row.mask) < len(row.tokens) for row in rows)
    assert {row.finish_reason for row in rows} <= {"stop", "length", "turns", "context"}
    line = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]
    assert 0 <= line["reward/environment"] <= 1
    assert line["sampler/mismatch_max"] < 1e-4
