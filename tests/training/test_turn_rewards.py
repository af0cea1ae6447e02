"""Every objective that samples trains on the rewards of turns, whether they are summed or the last one counts."""

from typing import Any

import pytest

from gvpo import Trainer
from gvpo.config import OBJECTIVES, TrainConfig
from gvpo.runfiles import read_metrics, read_rollouts, rollout_path
from tests.training import guessing, toy

NAMES = [name for name, spec in OBJECTIVES.items() if spec.learns_from == "groups" and spec.needs_rewards]
COSTS = {"constrained_grpo": {"costs": {"length": 0.5}, "reward_weights": [0.0]}}


def lengths():
    def length(completions: Any, **_: Any) -> list[float]:
        return [len(text) / 16 for text in completions]

    length.__name__ = "length"
    return length


@pytest.mark.parametrize(("name", "rewards"), [(name, ("sum", "last")[i % 2]) for i, name in enumerate(NAMES)])
def test_an_objective_trains_on_the_rewards_of_turns(tmp_path, name, rewards):
    config = TrainConfig(
        run_dir=tmp_path,
        objective=name,
        environment_between="{observation}",
        environment_max_turns=3,
        environment_turn_rewards=rewards,
        stop_token_ids=list(range(3, 13)),
        max_tokens=8,
        prompts_per_step=4,
        group_size=6,
        steps=1,
        eval_problems=0,
        checkpoint_verify=False,
        checkpoint_every=0,
        reward_workers=1,
        **COSTS.get(name, {}),
    )
    functions = lengths() if name in COSTS else None
    Trainer(toy.model(), functions, config, guessing.ROWS, processing_class=toy.tokenizer(), environment=Paid).train()
    for row in read_rollouts(rollout_path(tmp_path, 1)):
        paid = [turn["reward"] for turn in row.turns]
        assert row.reward == pytest.approx(sum(paid) if rewards == "sum" else paid[-1])
    (line,) = read_metrics(tmp_path / "metrics.jsonl")
    assert line["train/grad_norm"] > 0


class Paid(guessing.Guess):
    """Pays every turn a tenth of its guess."""

    def step(self, text: str) -> tuple[str, float, bool]:
        say, _, done = super().step(text)
        return say, int(text[:1] or "0") / 10, done
