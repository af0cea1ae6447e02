"""Runs that train on each group in several steps, compared with a script that keeps a list of groups."""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast
from unittest.mock import ANY

import pytest
import torch

from gvpo import runfiles
from gvpo.errors import CheckpointError, ConfigError
from gvpo.rewards import RewardPool
from gvpo.rollout.collect import Rollout
from gvpo.rollout.dynamic.dead import DeadGroups
from gvpo.rollout.order import ShuffledOrder
from gvpo.rollout.rewards import NoRewards
from gvpo.rollout.sources.live import LiveSource
from gvpo.rollout.sources.reuse import ReuseSource, fresh_groups, most_groups, steps_for
from gvpo.runfiles import read_rollouts, rollout_path
from gvpo.sampling.base import SamplingParams
from gvpo.sampling.transformers import TransformersSampler
from tests.training.by_hand import QUIET, ByHand
from tests.training.toy import config, encoded, lines, model, same, share, stopped_at, tokenizer, trainer, weights


@pytest.fixture(scope="module")
def pool() -> Iterator[RewardPool]:
    with RewardPool({"digits": share()}, workers=1) as started:
        yield started


def train_by_hand(script: ByHand, steps: int) -> None:
    """Train on a list of [group, verdicts, problem, version, uses], as the guide describes."""
    c, kept, position = script.config, [], 0
    for step in range(1, steps + 1):
        young = [one for one in kept if c.rollout_max_age is None or step - 1 - one[3] <= c.rollout_max_age]
        evicted, kept, again = len(kept) - len(young), young, []
        count = 4 if step == 1 else step * 4 // c.rollout_reuse - (step - 1) * 4 // c.rollout_reuse
        while len(again) < 4 - count and len(again) < len(kept):
            again.append(min((one for one in kept if one not in again), key=lambda one: one[3:]))
        fresh = script.sample(position, 4 - len(again), step=step, version=step - 1)
        position += len(fresh.groups)
        for one in again:
            one[4] += 1
        new = [[*parts, step - 1, 1] for parts in zip(fresh.groups, fresh.verdicts, fresh.problems, strict=True)]
        kept = [one for one in kept + new if one[4] < c.rollout_reuse]
        while c.rollout_capacity is not None and 4 * len(kept) > c.rollout_capacity:
            oldest = max(place for place, one in enumerate(kept) if one[3] == min(each[3] for each in kept))
            del kept[oldest]
            evicted += 1
        counts = {"groups/fresh": len(new), "groups/kept": len(again), "groups/evicted": evicted}
        groups, verdicts, problems, *_ = zip(*new, *again, strict=True)
        counts["rows/stored"] = 4 * len(kept)
        script.train(Rollout(groups, verdicts, problems, metrics=counts, fresh=len(new)), step)


@pytest.mark.parametrize(
    "settings",
    [
        {"rollout_reuse": 2, "objective": "gvpo"},
        {"rollout_reuse": 2, "objective": "gvpo", "reference": "sampler", "rollout_capacity": 12},
        {"rollout_reuse": 3, "objective": "grpo", "groups_per_update": 2, "rollout_max_age": 1},
    ],
    ids=str,
)
def test_a_run_trains_on_each_group_in_several_steps(tmp_path: Path, pool: RewardPool, settings: dict[str, Any]):
    policy = model()
    trainer(tmp_path, policy=policy, steps=5, rollouts_every=1, learning_rate=0.03, **settings, **QUIET).train()
    script = ByHand(pool, steps=5, learning_rate=0.03, **settings)
    train_by_hand(script, 5)
    assert lines(tmp_path) == script.lines
    assert same(weights(policy), script.versions[-1])
    for line in lines(tmp_path):
        rows = runfiles.read_rollouts(runfiles.rollout_path(tmp_path, line["step"]))
        assert line["tokens/sampled"] == sum(len(row.tokens) for row in rows if row.age == 0)
    rows = [row for step in range(1, 6) for row in read_rollouts(rollout_path(tmp_path, step))]
    assert len({(row.step, row.group, row.row) for row in rows}) == len(rows)  # names are distinct within a step
    evicted = sum(line["groups/evicted"] for line in script.lines)
    assert (evicted > 0) == ("rollout_max_age" in settings or "rollout_capacity" in settings)


def source(pool: RewardPool, per_step: int, reuse: int, **bounds: int) -> ReuseSource:
    sampler, params = TransformersSampler(model(), tokenizer()), SamplingParams(group_size=2, max_tokens=3)
    live = LiveSource(ShuffledOrder(encoded(), per_step, seed=0), sampler, params, pool, seed=0)
    return ReuseSource(live, per_step, reuse, {item.problem.id: item for item in encoded()}, **bounds)


@pytest.mark.parametrize(("per_step", "reuse"), [(4, 2), (5, 3), (1, 3)])
def test_each_group_is_used_in_as_many_different_steps(pool: RewardPool, per_step: int, reuse: int):
    one, uses, steps = source(pool, per_step, reuse), Counter[tuple[int, ...]](), 9
    for step in range(1, steps + 1):
        groups = one.rollout(step).groups
        assert groups == one.rollout(step).groups  # nothing is consumed before the commit
        found = {(group.completions[0].version, *group.prompt) for group in groups}
        assert len(found) == len(groups) == per_step
        uses.update(found)
        one.commit(step)
    assert max(uses.values()) == reuse
    assert len(uses) == sum(fresh_groups(step, per_step, reuse) for step in range(1, steps + 1))
    assert all(count == reuse for (version, *_), count in uses.items() if version == 0)


def test_dead_groups_are_not_kept(pool: RewardPool):
    one = source(pool, 8, 2)
    one._dead = dead = DeadGroups("reward", None)
    rollout = one.rollout(1)
    one.commit(1)
    alive = [group.id for place, group in enumerate(rollout.groups) if place not in dead.of(rollout)]
    assert 0 < len(alive) < 8
    assert one.state_dict()["kept"]["groups"]["groups"] == alive


def test_a_group_is_as_old_as_its_oldest_row(pool: RewardPool):
    one = source(pool, 8, 4, max_age=2)
    one.rollout(1)
    one.commit(1)
    kept, *others = one._kept
    row = dataclasses.replace(kept.group.completions[0], source="history", version=-1)
    group = dataclasses.replace(kept.group, completions=[row, *kept.group.completions[1:]])
    one._kept = [dataclasses.replace(kept, group=group), *others]
    assert one.rollout(2).metrics["groups/evicted"] == 0
    assert one.rollout(3).metrics["groups/evicted"] == 1


def test_groups_without_rewards_are_kept():
    one = source(cast("RewardPool", NoRewards()), 4, 2)
    one.rollout(1)
    one.commit(1)
    other = source(cast("RewardPool", NoRewards()), 4, 2)
    other.load_state_dict(one.state_dict())
    assert other.rollout(2) == dataclasses.replace(one.rollout(2), seconds=ANY)
    assert not other.rollout(2).verdicts


def test_with_one_use_it_is_the_live_source(pool: RewardPool):
    one, live = source(pool, 3, 1), source(pool, 3, 1)._live
    for step in (1, 2):
        assert one.rollout(step).groups == live.rollout(step).groups
        one.commit(step)
        live.commit(step)
    assert len(one.state_dict()["kept"]["uses"]) == 0
    with pytest.raises(CheckpointError, match="no kept groups"):
        one.load_state_dict({"position": 6})
    state = {"kept": {"version": [0], "uses": [1], "groups": {"problems": ["9"]}}}
    with pytest.raises(CheckpointError, match="the prompt '9', which is not in the training data"):
        ReuseSource(live, 3, 2, {}).load_state_dict(state)


def test_a_stopped_run_keeps_its_groups_and_an_extended_one_is_a_longer_one(tmp_path: Path):
    settings: dict[str, Any] = {"rollout_reuse": 3, "learning_rate": 0.03, "schedule": "constant", **QUIET}
    expected, policy = model(), model()
    trainer(tmp_path / "whole", policy=expected, steps=6, **settings).train()
    with stopped_at(3):
        trainer(tmp_path / "cut", steps=4, checkpoint_every=1, **settings).train()
    state = torch.load(tmp_path / "cut/checkpoints/step-000002/trainer/source.pt", weights_only=True)
    assert state["kept"]["uses"] == [2, 2, 2, 1, 1]
    trainer(tmp_path / "cut", steps=4, checkpoint_every=1, **settings).train(resume=True)
    trainer(tmp_path / "cut", policy=policy, steps=6, checkpoint_every=1, **settings).train(resume=True)
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    assert same(weights(policy), weights(expected))


@pytest.mark.parametrize(("groups", "per_step", "reuse"), [(10, 4, 1), (10, 4, 2), (11, 5, 3), (3, 4, 4), (20, 3, 4)])
def test_an_epoch_ends_when_every_prompt_was_sampled(groups: int, per_step: int, reuse: int):
    steps = steps_for(groups, per_step, reuse)
    sampled = [sum(fresh_groups(step, per_step, reuse) for step in range(1, last + 1)) for last in (steps - 1, steps)]
    assert sampled[0] < groups <= sampled[1]


def test_eviction_samples_more_groups():
    assert most_groups(6, 3, 2, evicts=False) == 3 + 2 + 1 + 2 + 1 + 2
    assert most_groups(6, 3, 2, evicts=True) == 18


def test_a_run_by_epochs_samples_every_prompt(tmp_path: Path):
    trainer(tmp_path, epochs=1, prompts_per_step=5, rollout_reuse=2, **QUIET).train()
    assert [line["groups/fresh"] for line in lines(tmp_path)] == [5, 3, 2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rollout_reuse": 2, "sample_groups": 4}, "rollout.reuse is for groups that are sampled in each step"),
        ({"rollout_reuse": 2, "rollout_staleness": 1}, "both make groups older; set one of them"),
        ({"rollout_reuse": 2, "rollout_capacity": 3}, "rollout.capacity=3 completions cannot keep a group of 4"),
    ],
    ids=str,
)
def test_what_cannot_be_reused_is_refused(settings: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        trainer(None, **settings)
    assert config(None).rollout_reuse == 1
