"""Training on episodes of several turns."""

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from gvpo import Trainer
from gvpo.config import TrainConfig
from gvpo.errors import ConfigError, RewardError
from gvpo.rollout.episodes.sampler import episode_seed
from gvpo.runfiles import read_metrics, read_rollouts, rollout_path
from gvpo.types import FINISH_REASONS
from tests.training import guessing, toy

SETTINGS = {
    "environment_between": "{observation}",
    "environment_max_turns": 4,
    "environment_workers": 1,
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
    assert 1 < line["env/turns"] <= 4
    assert 0 < line["seconds/environment"] < line["seconds/sampling"]
    shares = {"errors", "timeouts", "died", "cut_observations", "lost", "no_room", "turn_limit"}
    assert all(0 <= line[f"env/{name}"] <= 1 for name in shares)


def trainer(run_dir: Path | None, environment: Any = guessing.Guess, rewards: Any = None, **settings: Any) -> Trainer:
    config = TrainConfig(run_dir=run_dir, **{"stop_token_ids": [3, 4], **SETTINGS, **settings})
    return Trainer(
        toy.model(),
        rewards,
        config,
        guessing.ROWS,
        guessing.ROWS[:4],
        processing_class=toy.tokenizer(),
        environment=environment,
    )


def test_a_run_evaluates_its_episodes_in_and_outside_of_a_run(tmp_path):
    run = trainer(tmp_path / "run", eval_problems=4, eval_samples=2, steps=1)
    outside = run.evaluate()
    run.train()
    before = read_metrics(tmp_path / "run" / "metrics.jsonl")[0]
    keys = ("eval/accuracy", "eval/reward", "eval/length", "eval/env_turns")
    assert {key: outside[key] for key in keys} == {key: before[key] for key in keys}
    assert before["eval/env_turns"] > 1
    rows = read_rollouts(rollout_path(tmp_path / "run", 0, "held-out"))
    assert len(rows) == 4 * 3
    assert all(row.turns for row in rows)


def test_a_reward_may_require_the_turns_of_episodes(tmp_path):
    run = trainer(tmp_path / "run", rewards=guessing.of_turns, reward_weights=[0.5], reward_workers=1, steps=1)
    run.train()
    for row in read_rollouts(rollout_path(tmp_path / "run", 1)):
        assert row.reward_parts["of_turns"] == len(row.turns)
        assert row.reward == row.reward_parts["environment"] + 0.5 * len(row.turns)


def test_a_reward_that_requires_turns_needs_an_environment():
    with pytest.raises(RewardError, match=r"of_turns.*turns of episodes.*environment\.name"):
        trainer(None, None, guessing.of_turns, environment_max_turns=8, environment_turn_tokens=None)


def test_no_reward_may_have_the_name_of_that_of_the_environment():
    with pytest.raises(ConfigError, match="a reward is called 'environment'"):
        trainer(None, rewards=functools.partial(environment))


def environment(completions: Sequence[str], **_: Any) -> list[float]:
    return [0.0 for _ in completions]


def test_an_opening_is_in_the_prompt_and_an_episode_that_cannot_begin_is_not_trained_on(tmp_path):
    run = trainer(tmp_path / "run", guessing.Opening, steps=3, eval_problems=4)
    run.train()
    rows = [row for step in (1, 2, 3) for row in read_rollouts(rollout_path(tmp_path / "run", step))]
    for row in rows:
        digit = row.columns["digit"]
        seed = episode_seed(0, row.step, row.group)
        if digit == "0":
            assert (row.tokens, row.reward, row.weight, row.opening) == ([], None, None, "")
            assert row.finish_reason == "environment"
            assert "no zero" in row.reason
        else:
            assert row.opening == str(seed % 10)
            assert row.prompt_tokens == toy.tokenizer()(digit + row.opening).input_ids
    assert any(row.tokens == [] for row in rows)
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert max(line.get("env/lost", 0) for line in lines) == 0.25
    assert all(math.isfinite(line["eval/reward"]) for line in lines[:1])


def test_reward_functions_do_not_score_an_episode_that_never_began(tmp_path):
    class Free(guessing.Opening):
        pays = False

    trainer(tmp_path / "run", Free, guessing.of_turns, reward_workers=1, steps=3).train()
    rows = [row for step in (1, 2, 3) for row in read_rollouts(rollout_path(tmp_path / "run", step))]
    assert any(row.tokens == [] for row in rows)
    for row in rows:
        assert row.reward == (len(row.turns) if row.tokens else None)
    with pytest.raises(ConfigError, match=r"accuracy_reward is 'environment', whose turns have no rewards"):
        trainer(None, Free, guessing.of_turns, accuracy_reward="environment")


def test_an_opening_that_leaves_no_room_ends_the_group_and_not_the_run(tmp_path):
    class Long(guessing.Guess):
        def reset(self, *, digit: str, seed: int, **_: Any) -> str:
            super().reset(digit=digit, seed=seed)
            return "5" * (70 if digit == "3" else 1)

    trainer(tmp_path / "run", Long, steps=3).train()
    rows = [row for step in (1, 2, 3) for row in read_rollouts(rollout_path(tmp_path / "run", step))]
    long = [row for row in rows if row.columns["digit"] == "3"]
    assert long
    assert {(row.finish_reason, row.reward, len(row.tokens)) for row in long} == {("context", None, 0)}
    assert all("leaves no room in the model's context of 64" in row.reason for row in long)


def test_rows_at_the_token_limit_are_overlong_and_those_at_the_turn_limit_are_not(tmp_path):
    trainer(tmp_path / "run", overlong_completions="mask", max_tokens=12, steps=2).train()
    rows = [row for step in (1, 2) for row in read_rollouts(rollout_path(tmp_path / "run", step))]
    trained = [row for row in rows if row.weight is not None]
    masked = {
        reason: {sum(row.mask) == 0 for row in trained if row.finish_reason == reason} for reason in FINISH_REASONS
    }
    assert masked["context"] <= {True}
    assert masked["length"] == {True}
    assert masked["turns"] | masked["stop"] == {False}
