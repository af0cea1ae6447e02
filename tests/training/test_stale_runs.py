"""Runs on groups of older policies, compared with a script that keeps every policy; killed, extended, and on ranks."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from gvpo.errors import CheckpointError, ConfigError
from gvpo.rewards import RewardPool
from gvpo.rollout.order import ShuffledOrder
from gvpo.rollout.sources.live import LiveSource
from gvpo.rollout.sources.stale import StaleSource
from gvpo.runfiles import read_rollouts, rollout_path
from gvpo.sampling.base import SamplingParams
from gvpo.sampling.transformers import TransformersSampler
from tests.training.by_hand import QUIET, ByHand
from tests.training.forks import Forks, forks
from tests.training.rank_jobs import online_run
from tests.training.toy import encoded, lines, model, same, share, stopped_at, tokenizer, trainer, weights
from tests.training.world import world


@pytest.fixture(scope="module")
def pool() -> Iterator[RewardPool]:
    with RewardPool({"digits": share()}, workers=1) as started:
        yield started


CASES: list[dict[str, Any]] = [
    {"objective": "gvpo", "learning_rate": 0.03},
    {"objective": "gvpo", "learning_rate": 0.03, "reference": "sampler", "passes": 2},
    {"objective": "grpo", "learning_rate": 0.03, "groups_per_update": 2},
]


@pytest.mark.parametrize("settings", CASES, ids=str)
def test_a_stale_run_trains_on_the_groups_of_the_policy_some_steps_before(
    tmp_path: Path, pool: RewardPool, settings: dict[str, Any]
):
    staleness, steps = 2, 5
    policy = model()
    trainer(tmp_path, policy=policy, steps=steps, rollout_staleness=staleness, **settings, **QUIET).train()
    script = ByHand(pool, steps=steps, rollout_staleness=staleness, **settings)
    for step in range(1, steps + 1):
        version = max(0, step - 1 - staleness)
        script.train(script.sample(4 * (step - 1), 4, step=step, version=version), step)
    assert lines(tmp_path) == script.lines
    assert same(weights(policy), script.versions[-1])
    assert [line["age/max"] for line in script.lines] == [0, 1, 2, 2, 2]
    assert {row.version for row in read_rollouts(rollout_path(tmp_path, 5))} == {2}


def test_without_staleness_it_is_the_live_source(pool: RewardPool):
    def live() -> LiveSource:
        sampler = TransformersSampler(model(), tokenizer())
        params = SamplingParams(group_size=2, max_tokens=3)
        return LiveSource(ShuffledOrder(encoded(), per_step=3, seed=0), sampler, params, pool, seed=0)

    stale, plain = StaleSource(live(), 0, {}), live()
    for step in (1, 2):
        assert stale.rollout(step).groups == stale.rollout(step).groups == plain.rollout(step).groups
        stale.commit(step)
        plain.commit(step)
    assert stale.state_dict() == {"position": 6, "ahead": {}}
    with pytest.raises(CheckpointError, match="no groups that were sampled ahead"):
        stale.load_state_dict({"position": 6})


STEADY: dict[str, Any] = {"rollout_staleness": 2, "learning_rate": 0.03, "schedule": "constant", "checkpoint_every": 2}


def test_a_stale_run_that_is_extended_is_an_unbroken_longer_one(tmp_path: Path):
    policies = {name: model() for name in ("long", "short", "extended")}
    trainer(tmp_path / "long", policy=policies["long"], steps=6, **STEADY, **QUIET).train()
    trainer(tmp_path / "short", policy=policies["short"], steps=4, **STEADY, **QUIET).train()
    trainer(tmp_path / "short", policy=policies["extended"], steps=6, **STEADY, **QUIET).train(resume=True)
    assert lines(tmp_path / "short") == lines(tmp_path / "long")
    assert same(weights(policies["extended"]), weights(policies["long"]))


def test_a_stopped_stale_run_keeps_what_it_sampled_ahead_as_plain_tensors(tmp_path: Path):
    with stopped_at(5):  # the groups of step 5 are sampled in step 3
        trainer(tmp_path / "cut", steps=5, **{**STEADY, "checkpoint_every": 1}, **QUIET).train()
    (file,) = (tmp_path / "cut/checkpoints").glob("step-000002/trainer/source.pt")
    state = torch.load(file, weights_only=True)
    assert (state["position"], list(state["ahead"])) == (16, ["3", "4"])
    assert state["ahead"]["4"]["rows"]["tokens"].dtype == torch.int32
    policy, expected = model(), model()
    trainer(tmp_path / "cut", policy=policy, steps=5, **{**STEADY, "checkpoint_every": 1}, **QUIET).train(resume=True)
    trainer(tmp_path / "whole", policy=expected, steps=5, **STEADY, **QUIET).train()
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    assert same(weights(policy), weights(expected))


COMBINED: list[dict[str, Any]] = [
    {"rollout_staleness": 1, "rollout_history": 2, "data": QUIET["data"][:5]},
    {"rollout_staleness": 2, "rollout_dead_groups": "replace", "rollout_curriculum": "accuracy"},
    {"rollout_reuse": 2, "rollout_history": 1, "rollout_max_age": 2, "data": QUIET["data"][:5]},
    {"rollout_reuse": 2, "rollout_dead_groups": "replace", "rollout_curriculum": "accuracy"},
]


@pytest.mark.parametrize("settings", COMBINED, ids=lambda one: ", ".join(key for key in one if key != "data"))
def test_older_groups_combine_with_other_sources_and_resume_exactly(tmp_path: Path, settings: dict[str, Any]):
    given = {**QUIET, "learning_rate": 0.03, "checkpoint_every": 2, "steps": 5, **settings}
    expected, policy = model(), model()
    trainer(tmp_path / "whole", policy=expected, **given).train()
    with stopped_at(4):
        trainer(tmp_path / "cut", **given).train()
    trainer(tmp_path / "cut", policy=policy, **given).train(resume=True)
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    assert same(weights(policy), weights(expected))
    assert max(line["age/max"] for line in lines(tmp_path / "whole")) > 0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    with forks(tmp_path_factory.mktemp("forks")) as started:
        yield started


@pytest.mark.parametrize("kind", [pytest.param("stale", marks=pytest.mark.slow), "reused"])
def test_a_killed_run_resumes_exactly(server: Forks, tmp_path: Path, kind: str):
    for name in ("unbroken", "killed"):
        child = server.start(kind, str(tmp_path / name))
        if name == "killed":
            child.wait_for(tmp_path / name / "checkpoints/step-000002/README.md")
            child.send(signal.SIGKILL)
            assert child.wait() == -signal.SIGKILL
            child = server.start(kind, str(tmp_path / name))
        assert child.wait() == 0, child.output()
    unbroken, killed = (tmp_path / name for name in ("unbroken", "killed"))
    assert lines(killed) == lines(unbroken)
    last = f"checkpoints/step-{lines(unbroken)[-1]['step']:06d}/model.safetensors"
    assert (killed / last).read_bytes() == (unbroken / last).read_bytes()
    assert read_rollouts(rollout_path(killed, 4)) == read_rollouts(rollout_path(unbroken, 4))


@pytest.mark.parametrize(
    "settings", [pytest.param({"rollout_staleness": 1}, marks=pytest.mark.slow), {"rollout_reuse": 2}], ids=str
)
def test_two_ranks_train_on_the_same_groups_as_one_process(tmp_path: Path, settings: dict[str, Any]):
    given = {"steps": 3, "eval_problems": 0, "held": [], "learning_rate": 0.01, **settings}
    online_run(tmp_path / "one", **given)
    world(2, tmp_path, online_run, tmp_path / "two", **given)
    for step in (1, 3):
        one, two = (read_rollouts(rollout_path(tmp_path / name, step)) for name in ("one", "two"))
        known = ("group", "row", "tokens", "reward", "version", "age")
        assert [[getattr(row, name) for name in known] for row in two] == [
            [getattr(row, name) for name in known] for row in one
        ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rollout_staleness": 1, "sample_groups": 4}, "rollout.staleness is for groups that are sampled in each step"),
        ({"rollout_staleness": 1, "objective": "sft"}, "rollout.staleness is for groups that are sampled in each step"),
        (
            {"rollout_staleness": 1, "objective": "constrained_grpo", "costs": {"a": 0.1}},
            "rollout.staleness trains on older ones; remove one",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_stale_is_refused(settings: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        trainer(None, **settings)
