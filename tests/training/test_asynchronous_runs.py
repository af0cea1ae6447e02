"""Runs whose groups are sampled while the policy is trained: like synchronous ones, killed, stopped, and on ranks."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from gvpo.errors import ConfigError, EngineError, RewardError
from gvpo.rewards import RewardPool
from gvpo.rollout import pipeline
from gvpo.rollout.collect import Rollout
from gvpo.rollout.sources.asynchronous import AsynchronousSource
from gvpo.runfiles import read_rollouts, rollout_path
from gvpo.sampling.copied import CopiedSampler
from gvpo.sampling.transformers import TransformersSampler
from gvpo.training.checks import check_ranks
from gvpo.training.learner import Learner
from tests.sampling.server.fake_vllm import FakeVllm, Sampled, serving
from tests.training.rank_jobs import concurrent_run
from tests.training.stateful import Novelty, rarity
from tests.training.toy import config, lines, model, same, tokenizer, trained_on, trainer, weights
from tests.training.world import world

STALE: dict[str, Any] = {"rollout_asynchronous": True, "rollout_max_staleness": 1}
CURRENT: dict[str, Any] = {"rollout_asynchronous": True, "rollout_max_staleness": 0}


EQUAL: dict[str, dict[str, Any]] = {
    "two passes, evaluation": {"passes": 2, "eval_every": 2},
    "LoRA": {"lora_rank": 2},
    "rewards of whole batches": {"rewards": [rarity]},
}
ALSO_EQUAL: dict[str, dict[str, Any]] = {
    "one update": {},
    "GRPO with two updates": {"objective": "grpo", "groups_per_update": 2},
    "the sampler is the reference": {"reference": "sampler", "passes": 2},
    "bfloat16": {"compute_dtype": "bfloat16", "eval_every": 2},
    "a stateful reward": {"rewards": [Novelty()]},
}


def cases(fast: Any, slow: Any) -> list[Any]:
    return [*fast, *(pytest.param(each, marks=pytest.mark.slow) for each in slow)]


@pytest.mark.parametrize("settings", cases(EQUAL.values(), ALSO_EQUAL.values()), ids=[*EQUAL, *ALSO_EQUAL])
def test_without_staleness_a_run_equals_the_synchronous_one_bit_for_bit(tmp_path: Path, settings: dict[str, Any]):
    found = {}
    for name, more in (("plain", {}), ("background", CURRENT)):
        policy = model()
        trainer(tmp_path / name, policy=policy, steps=4, learning_rate=0.03, **settings, **more).train()
        found[name] = weights(policy)
    assert lines(tmp_path / "background") == lines(tmp_path / "plain")
    assert same(found["background"], found["plain"])
    for step in (1, 4):
        one, other = (read_rollouts(rollout_path(tmp_path / name, step)) for name in found)
        assert one == other


OTHERS: list[dict[str, Any]] = [{"lora_rank": 2}, {"reference": "sampler", "sampling_dtype": "bfloat16"}]


@pytest.mark.parametrize("settings", cases([{"passes": 2}], OTHERS))
def test_groups_are_sampled_by_a_policy_of_at_most_the_allowed_age(tmp_path: Path, settings: dict[str, Any]):
    given = {"steps": 6, "learning_rate": 0.03, "rollouts_every": 1, "eval_every": 3, **settings}
    trainer(tmp_path, **given, **STALE).train()
    assert [line["age/max"] <= 1 for line in lines(tmp_path)[1:]] == [True] * 6
    assert lines(tmp_path)[-1]["age/max"] == 1
    trainer(tmp_path / "plain", **given).train()
    assert trained_on(tmp_path, 6) == trained_on(tmp_path / "plain", 6)


LONG: dict[str, Any] = {"steps": 6, "rollouts_every": 1, "checkpoint_every": 1, "held": [], "eval_problems": 0, **STALE}


def fails_at(step: int, error: BaseException) -> Any:
    stream = CopiedSampler.stream

    def broken(self: CopiedSampler, *words: Any, **named: Any) -> Any:
        if named["step"] == step:
            raise error
        yield from stream(self, *words, **named)

    return patch.object(CopiedSampler, "stream", broken)


def fails_after(calls: int, error: BaseException) -> Any:
    score, done = RewardPool.score, []

    def broken(self: RewardPool, batches: Any) -> Any:
        done.append(len(batches))
        if len(done) > calls:
            raise error
        return score(self, batches)

    return patch.object(RewardPool, "score", broken)


@pytest.mark.parametrize(
    ("broken", "error"),
    [
        (lambda: fails_at(4, EngineError("the engine broke")), EngineError),
        pytest.param(lambda: fails_after(3, RewardError("the pool broke")), RewardError, marks=pytest.mark.slow),
    ],
    ids=["sampler", "rewards"],
)
def test_an_error_in_the_background_ends_the_run_which_can_be_resumed(tmp_path: Path, broken: Any, error: type):
    with broken(), pytest.raises(error, match="broke"):
        trainer(tmp_path / "cut", **LONG).train()
    assert 0 < len(lines(tmp_path / "cut")) < 6
    trainer(tmp_path / "cut", **LONG).train(resume=True)
    trainer(tmp_path / "whole", **LONG).train()
    assert trained_on(tmp_path / "cut", 6) == trained_on(tmp_path / "whole", 6)


def test_a_stopped_run_is_saved_and_resumed(tmp_path: Path):
    learn = Learner.learn

    def asked(learner: Learner, groups: Any, step: int) -> Any:
        if step == 3:
            signal.raise_signal(signal.SIGINT)
        return learn(learner, groups, step)

    with patch.object(Learner, "learn", asked), pytest.raises(KeyboardInterrupt, match="stopped after step 3 of 6"):
        trainer(tmp_path / "cut", **LONG).train()
    trainer(tmp_path / "cut", **LONG).train(resume=True)
    trainer(tmp_path / "whole", **LONG).train()
    assert trained_on(tmp_path / "cut", 6) == trained_on(tmp_path / "whole", 6)


@pytest.mark.parametrize("number", cases([signal.SIGINT], [signal.SIGTERM]))
def test_a_second_signal_ends_a_run_whose_sampler_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
):
    monkeypatch.setattr(pipeline, "PATIENCE", 0.1)
    hangs, waiting = threading.Event(), threading.Event()
    stream, rollout = CopiedSampler.stream, AsynchronousSource.rollout

    def waits(self: AsynchronousSource, step: int) -> Rollout:
        if step == 3:
            waiting.set()
        return rollout(self, step)

    def hanging(self: CopiedSampler, *words: Any, **named: Any) -> Any:
        if named["step"] == 3:
            waiting.wait(30)
            for _ in range(2):
                time.sleep(0.3)
                os.kill(os.getpid(), number)
            hangs.wait(30)
        yield from stream(self, *words, **named)

    monkeypatch.setattr(AsynchronousSource, "rollout", waits)
    monkeypatch.setattr(CopiedSampler, "stream", hanging)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, **LONG).train()
    hangs.set()
    assert time.monotonic() - began < 20


@pytest.mark.slow
@pytest.mark.parametrize("staleness", [0, 1])
def test_the_first_of_two_ranks_samples_in_the_background(tmp_path: Path, staleness: int):
    given = {"steps": 4, "held": [], "eval_problems": 0, "tokens_per_microbatch": 64, "rollouts_every": 1}
    versions = world(
        2,
        tmp_path,
        concurrent_run,
        tmp_path / "two",
        **given,
        rollout_asynchronous=True,
        rollout_max_staleness=staleness,
    )
    assert versions == [[0, 1, 2, 3, 4], []]
    concurrent_run(tmp_path / "one", **given)
    assert trained_on(tmp_path / "two", 4) == trained_on(tmp_path / "one", 4)
    ages = [line["age/max"] for line in lines(tmp_path / "two")]
    assert max(ages) == staleness
    if staleness == 0:
        one, two = (read_rollouts(rollout_path(tmp_path / name, 1)) for name in ("one", "two"))
        assert [(row.group, row.row, row.tokens, row.reward) for row in two] == [
            (row.group, row.row, row.tokens, row.reward) for row in one
        ]


def test_a_run_overlaps_with_a_server_over_http(tmp_path: Path):
    fake = FakeVllm(Sampled(TransformersSampler(model(), tokenizer())))
    fake.context, fake.tokenizer = 64, tokenizer()
    with serving(fake) as urls:
        engine = {"sampling_engine": "server", "sampling_server_urls": urls, "sampling_transfer_dir": tmp_path}
        trainer(tmp_path / "run", **{**LONG, "steps": 4}, **engine).train()
    found = lines(tmp_path / "run")
    assert [line["age/max"] for line in found] == [0, 1, 1, 1]
    assert all(line["sampler/mismatch"] < 1e-4 for line in found[:1])
    assert len(trained_on(tmp_path / "run", 4)) == 10


def test_several_processes_need_an_engine_of_their_own():
    with patch("gvpo.training.checks.ranks.count", lambda: 2):
        check_ranks(config(**STALE, sampling_engine="server"))
        with pytest.raises(ConfigError, match="start one process"):
            check_ranks(config(**STALE))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "sft"}, "rollout.asynchronous is for groups that are sampled in each step"),
        ({"sample_groups": 4}, "rollout.asynchronous is for groups that are sampled in each step"),
        ({"rollout_staleness": 1}, "rollout.staleness does not work with rollout.asynchronous"),
        ({"rollout_reuse": 2}, "rollout.reuse does not work with"),
        ({"rollout_history": 1}, "rollout.history does not work with"),
        ({"rollout_curriculum": "accuracy"}, "rollout.curriculum does not work with"),
        ({"rollout_dead_groups": "replace"}, "rollout.dead_groups='replace' does not work with"),
        ({"objective": "constrained_grpo", "costs": {"a": 0.1}}, "rollout.asynchronous trains on older ones"),
        ({"reference": "previous"}, "log-ratios to it say nothing"),
        ({"reference": "sampler", "top_k": 3}, "which sampling.top_k changes"),
        ({"rollout_late_groups": 4}, "set it below train.prompts_per_step"),
        ({"rollout_late_groups": 1, "rollout_max_staleness": 0}, "rollout.max_staleness=0 does not allow"),
        ({"rewards": [Novelty()]}, "keeps a state, whose order would depend on time"),
    ],
    ids=lambda value: value if isinstance(value, str) else ", ".join(value),
)
def test_what_cannot_be_asynchronous_is_refused(settings: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        trainer(None, **{**STALE, **settings})
