"""Runs that drop or replace dead groups, and runs with a curriculum: against scripts, resumed, refused."""

from pathlib import Path
from typing import Any

import pytest

from gvpo import runfiles
from gvpo.config import resolve
from gvpo.errors import ConfigError, TrainingError
from gvpo.rollout.order import ShuffledOrder
from gvpo.training.checks import check_rewards
from tests.training.rank_jobs import online_run
from tests.training.toy import config, lines, model, noticed, same, stopped_at, trainer, weights
from tests.training.world import world

SETTINGS: dict[str, Any] = {"steps": 6, "group_size": 3, "checkpoint_every": 2, "eval_problems": 0}
REPLACE = {"rollout_dead_groups": "replace", "rollout_max_replacements": 2}
CURRICULUM = {"rollout_curriculum": "accuracy", "rollout_curriculum_target": 0.3}


def run(path: Path, *, resume: bool = False, **settings: Any):
    policy = model()
    trainer(path, policy=policy, held=[], **{**SETTINGS, **settings}).train(resume=resume)
    return weights(policy)


def groups(path: Path, step: int) -> list[list[runfiles.RolloutRow]]:
    """Return the rows of a step by group, in the order of the file."""
    found: dict[str, list[runfiles.RolloutRow]] = {}
    for row in runfiles.read_rollouts(runfiles.rollout_path(path, step)):
        found.setdefault(row.group, []).append(row)
    return list(found.values())


def is_dead(rows: list[runfiles.RolloutRow]) -> bool:
    return len({row.reward for row in rows}) == 1


def test_dead_groups_are_shown_but_not_trained_on(tmp_path: Path):
    run(tmp_path, rollout_dead_groups="drop")
    for line in lines(tmp_path):
        found = groups(tmp_path, line["step"])
        assert len(found) == 4
        for rows in found:
            assert all((row.weight is None) == is_dead(rows) for row in rows)
        assert line["groups/dead"] == line["groups/skipped"] == line["groups/dropped"] == sum(map(is_dead, found))
    assert sum(line["groups/dead"] for line in lines(tmp_path)) > 0


def test_dead_groups_are_replaced_by_the_next_prompts_of_the_stream(tmp_path: Path):
    run(tmp_path, **REPLACE)
    stream = ShuffledOrder(range(10), 4, 0)
    position, replaced = 0, 0
    for line in lines(tmp_path):
        found = groups(tmp_path, line["step"])
        expected, alive = [], 0
        for _ in range(3):  # the first round and two of replacements
            missing = 4 - alive
            drawn = stream.draw(position + len(expected), missing)
            alive += sum(not is_dead(rows) for rows in found[len(expected) : len(expected) + missing])
            expected += [f"row-{place + 1}" for place in drawn]
            if alive == 4:
                break
        assert [rows[0].group.partition("#")[0] for rows in found] == expected
        assert line["groups/replaced"] == len(expected) - 4
        assert line["groups/total"] - line["groups/skipped"] == alive
        position += len(expected)
        replaced += len(expected) - 4
    assert replaced > 0


def test_a_group_has_the_same_rows_whether_dead_groups_are_replaced_or_not(tmp_path: Path):
    run(tmp_path / "a", steps=1, **REPLACE)
    run(tmp_path / "b", steps=1)
    tokens = [[[row.tokens for row in rows] for rows in groups(tmp_path / name, 1)] for name in "ab"]
    assert tokens[0][:4] == tokens[1]


def test_a_curriculum_that_is_off_and_dead_groups_that_are_kept_change_no_bit(tmp_path: Path):
    assert same(run(tmp_path / "a", steps=3), run(tmp_path / "b", steps=3, rollout_dead_groups="keep"))


def test_a_curriculum_draws_prompts_near_the_target_more_often(tmp_path: Path):
    run(tmp_path, **{**CURRICULUM, "steps": 8, "prompts_per_step": 2})
    drawn = [rows[0].group for step in range(1, 9) for rows in groups(tmp_path, step)]
    assert len(drawn) == 16
    assert all(len({rows[0].group for rows in groups(tmp_path, step)}) == 2 for step in range(1, 9))
    assert "curriculum/accuracy" not in lines(tmp_path)[0]  # nothing was drawn before the first step
    assert 0 <= lines(tmp_path)[-1]["curriculum/accuracy"] <= 1


TOGETHER = {**REPLACE, **CURRICULUM, "rollout_history": 1, "rollout_staleness": 2}


@pytest.mark.parametrize("settings", [REPLACE, CURRICULUM, TOGETHER], ids=["replace", "curriculum", "together"])
def test_a_stopped_run_resumes_with_equal_bits(tmp_path: Path, settings: dict[str, Any]):
    whole = run(tmp_path / "whole", **settings)
    with stopped_at(3):
        run(tmp_path / "cut", **settings)
    assert same(whole, run(tmp_path / "cut", resume=True, **settings))
    assert [line["groups/total"] for line in lines(tmp_path / "whole")] == [
        line["groups/total"] for line in lines(tmp_path / "cut")
    ]


def test_two_ranks_have_the_same_groups_as_one(tmp_path: Path):
    settings = {**SETTINGS, **REPLACE, **CURRICULUM, "held": []}
    with noticed():
        online_run(tmp_path / "one", **settings)
    world(2, tmp_path, online_run, tmp_path / "two", **settings)
    for step in range(1, 7):
        one, two = (groups(tmp_path / name, step) for name in ("one", "two"))
        assert [[row.tokens for row in rows] for rows in one] == [[row.tokens for row in rows] for rows in two]


def test_a_run_without_a_group_to_learn_from_ends_with_advice(tmp_path: Path):
    def constant(completions: Any, **_: Any) -> list[float]:
        return [1.0] * len(completions)

    with pytest.raises(TrainingError, match=r"all groups are dead by their reward, .* is 'replace'; choose prompts"):
        trainer(tmp_path, policy=model(), held=[], rewards=constant, **{**SETTINGS, **REPLACE}).train()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({**REPLACE, "sample_groups": 8}, "rollout.dead_groups='replace' samples other prompts in each step"),
        ({**CURRICULUM, "sample_groups": 8}, "rollout.curriculum chooses the prompts to sample in each step"),
        ({**CURRICULUM, "epochs": 2}, "train.epochs counts passes through the prompts in order"),
        ({**REPLACE, "epochs": 2}, "the replacement of dead groups does not make; set train.steps"),
        ({"rollout_dead_groups": "drop", "objective": "sft"}, "rollout.dead_groups is for objectives that learn from"),
    ],
)
def test_what_cannot_work_is_refused(settings: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        resolve(config(model_path="x", **settings))


def test_without_rewards_there_is_nothing_to_choose_by():
    plan = resolve(config(model_path="x", objective="distill", teacher="y", **CURRICULUM))
    with pytest.raises(ConfigError, match="curriculum follows rewards, and there are none"):
        check_rewards(plan, {}, held_out=False)


def test_settings_without_effect_are_named():
    plan = resolve(config(model_path="x", rollout_dead_by="accuracy", rollout_curriculum_target=0.3))
    assert any("rollout.dead_by has no effect" in notice for notice in plan.notices)
    assert any("rollout.curriculum_target has no effect" in notice for notice in plan.notices)
