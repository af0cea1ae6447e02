"""Segments and advantages of turns: on rows by hand, and in a run whose rollout file shows what each turn got."""

from statistics import fmean, stdev
from typing import Any

import pytest

from gvpo import Trainer
from gvpo.config import TrainConfig, find_objective
from gvpo.rollout.usable import TrainingGroup
from gvpo.runfiles import read_rollouts, rollout_path
from gvpo.training.step.turn_credit import with_turns
from gvpo.types import Completion, EpisodeTurn, Group
from tests.training import guessing, toy

EPISODE = Completion(
    [1, 2, 3, 4, 5],
    reward=3.0,
    mask=[1, 1, 0, 1, 1],
    turns=(EpisodeTurn(0, 2, 3, reward=1.0), EpisodeTurn(3, 5, 5, reward=1.0)),
)
ANSWER = Completion([6, 7], reward=1.0, extras={"kept": 1})
UNPAID = Completion([8, 9], reward=0.0, mask=[1, 0], turns=(EpisodeTurn(0, 1, 2), EpisodeTurn(2, 2, 2)))
GROUP = [TrainingGroup(Group([0], [EPISODE, ANSWER, UNPAID]), 0, (0, 1, 2))]


def extras(name: str, **settings: Any) -> list[Any]:
    config = TrainConfig(objective=name, **settings)
    (entry,) = with_turns(GROUP, find_objective(name), config)
    return [row.extras for row in entry.group.completions]


def test_advantages_per_turn_are_spread_over_its_tokens():
    first, second, third = extras("dr_grpo", environment_turn_credit="to_go")
    assert first == {"advantages": [2.5, 2.5, 2.5, 2.0, 2.0]}  # 3 - (1 + 0) / 2, and 2 - (0 + 0) / 2
    assert second == {"kept": 1, "advantages": pytest.approx([-0.5, -0.5])}
    assert third == {"advantages": [-2.0, -2.0]}
    scaled = extras("grpo", environment_turn_credit="to_go")
    assert scaled[0]["advantages"][0] == pytest.approx(2.5 / (stdev([3.0, 1.0, 0.0]) + 1e-4))


def test_turns_are_segments_unless_a_text_ends_them():
    assert extras("gsspo") == [{"segments": [0, 0, 0, 1, 1]}, {"kept": 1, "segments": [0, 0]}, {"segments": [0, 0]}]
    assert extras("gsspo", segment_at="1") == [{}, {"kept": 1}, {}]


def test_other_objectives_get_nothing():
    assert extras("gvpo") == [{}, {"kept": 1}, {}]


def lengths():
    """Return a reward that fails for some rows: these must not be in the baselines of others."""

    def length(completions: Any, **_: Any) -> list[float]:
        return [float("nan") if text.startswith(("8", "9")) else len(text) / 10 for text in completions]

    return length


@pytest.mark.parametrize("objective", ["grpo", "gspo_token", "gsspo"])
def test_a_run_gives_each_turn_its_own_credit(tmp_path, objective):
    config = TrainConfig(
        run_dir=tmp_path,
        objective=objective,
        environment_between="{observation}",
        environment_max_turns=3,
        environment_turn_credit="to_go",
        stop_token_ids=list(range(3, 13)),
        max_tokens=16,
        group_size=6,
        prompts_per_step=3,
        steps=1,
        eval_problems=0,
        checkpoint_verify=False,
        reward_workers=1,
    )
    rewards, rows = lengths() if objective == "grpo" else None, guessing.ROWS
    Trainer(toy.model(), rewards, config, rows, processing_class=toy.tokenizer(), environment=guessing.Guess).train()
    found = read_rollouts(rollout_path(tmp_path, 1))
    trained = [row for row in found if row.reward is not None]
    assert (len(trained) < len(found)) == (rewards is not None)
    assert {len(row.turns) for row in trained} > {1}
    for row in trained:
        for number, turn in enumerate(row.turns):
            parts = len(row.turns) * (turn["stop"] - turn["start"]) if objective == "gsspo" else sum(row.mask)
            advantage = turn["weight"] * parts * len(trained)
            assert advantage == pytest.approx(by_hand(row, number, trained), abs=1e-5)
    assert all(turn["weight"] is None for row in found if row.reward is None for turn in row.turns)


def by_hand(row, number, trained):
    group = [each for each in trained if each.group == row.group]
    others = [to_go(each, number) for each in group if each.row != row.row]
    return (to_go(row, number) - fmean(others)) / (stdev([each.reward for each in group]) + 1e-4)


def to_go(row, number):
    paid = [turn["reward"] or 0.0 for turn in row.turns]
    return row.reward - sum(paid[:number]) if number < len(paid) else 0.0
