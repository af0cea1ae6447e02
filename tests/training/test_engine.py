"""A run whose sampler has its own weights: it gets them before each rollout, and is compared with the policy first."""

import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from transformers import PreTrainedModel

from gvpo.config import TrainConfig, resolve
from gvpo.config.plan import Given
from gvpo.errors import ConfigError, EngineError
from gvpo.model import lora
from gvpo.runfiles import read_rollouts, rollout_path
from gvpo.sampling.base import is_concurrent, shares_model
from gvpo.sampling.engines import EngineOptions
from gvpo.sampling.transformers import TransformersSampler
from gvpo.training.engine.publish import Publisher
from tests.training.engines import Broken, Engine, Failing, Half, engines_of
from tests.training.rank_jobs import engine_run, online_run
from tests.training.toy import ROWS, config, lines, model, same, tokenizer, trainer, weights
from tests.training.world import world

STEPS = 4


@pytest.fixture
def opened() -> Iterator[Callable[[type[Engine]], list[Engine]]]:
    """Yield a function that makes runs open such an engine, and returns the list of those opened."""
    with ExitStack() as stack:
        yield lambda kind: stack.enter_context(engines_of(kind))


def test_a_run_with_an_engine_has_the_metrics_and_weights_of_a_run_without(
    tmp_path: Path, opened: Callable[[type[Engine]], list[Engine]]
):
    plain, own = model(), model()
    trainer(tmp_path / "plain", policy=plain, steps=STEPS, eval_every=2).train()
    engines = opened(Engine)
    trainer(tmp_path / "engine", policy=own, steps=STEPS, eval_every=2, sampling_engine="vllm").train()
    publishing = {line["step"]: line.get("seconds/publishing") for line in lines(tmp_path / "engine", times=True)}
    assert lines(tmp_path / "engine") == lines(tmp_path / "plain")
    assert same(weights(own), weights(plain))
    assert engines[0].versions == [0, 1, 2, 3, 4]
    assert engines[0].closed
    assert all(publishing[step] > 0 for step in range(1, STEPS + 1))
    assert {row.version for row in read_rollouts(rollout_path(tmp_path / "engine", STEPS))} == {STEPS - 1}


@pytest.mark.parametrize("sharding", ["none", pytest.param("full", marks=pytest.mark.slow)])
def test_the_first_of_two_ranks_samples_for_both(tmp_path: Path, sharding: str):
    given = {"steps": 3, "held": [], "eval_problems": 0, "sharding": sharding, "tokens_per_microbatch": 64}
    world(2, tmp_path, online_run, tmp_path / "plain", **given)
    versions = world(2, tmp_path, engine_run, tmp_path / "engine", **given)
    for step in (1, 3):
        plain, engine = (read_rollouts(rollout_path(tmp_path / name, step)) for name in ("plain", "engine"))
        known = ("group", "row", "tokens", "reward", "version", "age")
        assert [[getattr(row, name) for name in known] for row in engine] == [
            [getattr(row, name) for name in known] for row in plain
        ]
    assert versions == [[0, 1, 2, 3], []]


def test_a_resumed_run_gives_the_engine_the_weights_of_its_checkpoint(
    tmp_path: Path, opened: Callable[[type[Engine]], list[Engine]]
):
    engines = opened(Engine)
    settings = {"sampling_engine": "vllm", "checkpoint_every": 2}
    trainer(tmp_path, steps=2, **settings).train()
    trainer(tmp_path, steps=4, policy=model(seed=3), **settings).train(resume=True)
    assert [engine.versions for engine in engines] == [[0, 1, 2], [2, 3, 4]]


def test_an_engine_with_other_weights_is_found_before_the_first_step(
    tmp_path: Path, opened: Callable[[type[Engine]], list[Engine]]
):
    engines = opened(Broken)
    with pytest.raises(EngineError, match="trainer's model"):
        trainer(tmp_path, sampling_engine="vllm").train()
    assert engines[0].closed
    assert lines(tmp_path) == []
    trainer(tmp_path / "off", sampling_engine="vllm", sampling_check=False, steps=1).train()


def test_the_steps_before_a_failure_of_the_engine_are_saved(
    tmp_path: Path, opened: Callable[[type[Engine]], list[Engine]]
):
    opened(Engine)
    trainer(tmp_path / "whole", steps=4, sampling_engine="vllm").train()
    engines = opened(Failing)
    with pytest.raises(EngineError, match="out of order"):
        trainer(tmp_path / "broken", steps=4, sampling_engine="vllm").train()
    assert [path.name for path in (tmp_path / "broken" / "checkpoints").iterdir()] == ["step-000002"]
    engines = opened(Engine)
    trainer(tmp_path / "broken", steps=4, sampling_engine="vllm").train(resume=True)
    assert engines[0].versions == [2, 3, 4]
    assert lines(tmp_path / "broken") == lines(tmp_path / "whole")


class Deaf(Engine):
    """An engine that fails when it gets the weights of step 2."""

    def update(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        if version == 2:
            raise EngineError("the engine is out of order")
        super().update(weights, version)


class Unexamined(Engine):
    """An engine that fails in the evaluation after step 2."""

    def sample(self, requests: Any, params: Any, *, seed: int, step: int) -> Any:
        if self.versions[-1] == 2 and len(requests) == len(ROWS):
            raise EngineError("the engine is out of order")
        return super().sample(requests, params, seed=seed, step=step)


@pytest.mark.parametrize(
    ("kind", "steps"),
    [
        (Unexamined, 2),
        (Deaf, 3),
        pytest.param(Deaf, 2, marks=pytest.mark.slow),
        pytest.param(Unexamined, 4, marks=pytest.mark.slow),
    ],
)
def test_a_step_after_which_the_engine_fails_is_saved_and_evaluated_when_the_run_is_resumed(
    tmp_path: Path, opened: Callable[[type[Engine]], list[Engine]], kind: type[Engine], steps: int
):
    given: dict[str, Any] = {"steps": steps, "sampling_engine": "vllm", "eval_every": 2}
    opened(Engine)
    trainer(tmp_path / "whole", **given).train()
    opened(kind)
    with pytest.raises(EngineError, match="out of order"):
        trainer(tmp_path / "broken", **given).train()
    assert [path.name for path in (tmp_path / "broken" / "checkpoints").iterdir()] == ["step-000002"]
    engines = opened(Engine)
    trainer(tmp_path / "broken", **given).train(resume=True)
    assert engines[0].versions == list(range(2, steps + 1))
    assert lines(tmp_path / "broken") == lines(tmp_path / "whole")


class Stuck(Engine):
    """An engine that keeps the starting weights."""

    def update(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        if version == 0:
            super().update(weights, version)


def test_a_run_warns_of_an_engine_whose_weights_stay_and_not_of_one_in_bfloat16(
    tmp_path: Path, opened: Callable[[type[Engine]], list[Engine]]
):
    given: dict[str, Any] = {"sampling_engine": "vllm", "steps": 12, "learning_rate": 2e-2, "held": []}
    said = []
    for name, kind, dtype in (("stuck", Stuck, "auto"), ("half", Half, "bfloat16")):
        opened(kind)
        summary = trainer(tmp_path / name, **given, sampling_dtype=dtype, eval_problems=0).train()
        said.append([text for text in summary["warnings"] if "engine" in text])
    assert [len(texts) for texts in said] == [1, 0]
    assert "the engine samples from another policy than the trainer's" in said[0][0]
    assert lines(tmp_path / "stuck")[0]["sampler/kl"] < 1e-6
    assert 1e-9 < lines(tmp_path / "half")[-1]["sampler/kl"] < 1e-2


def test_the_options_of_an_engine_are_the_settings(tmp_path: Path, opened: Callable[[type[Engine]], list[Engine]]):
    engines = opened(Engine)
    settings = {"sampling_server_urls": ["http://localhost:1"], "sampling_server_deadline": 3.0}
    trainer(tmp_path, sampling_engine="server", steps=1, sampling_transfer_dir=tmp_path / "t", **settings).train()
    expected = EngineOptions(
        "float32", server_urls=["http://localhost:1"], server_deadline=3.0, transfer_dir=tmp_path / "t"
    )
    assert engines[0].options == expected


def test_the_sampler_of_the_policy_needs_no_weights():
    policy = model()
    sampler = TransformersSampler(policy, tokenizer())
    assert shares_model(sampler)
    assert not is_concurrent(sampler)
    publisher = Publisher(policy, sampler, None, pytest.fail)
    publisher.begin(0)
    assert publisher.seconds == 0.0


class Served:
    """An engine that serves adapters, and notes which files it gets."""

    shares_model = False

    def __init__(self) -> None:
        self.found: list[tuple[int, list[Path]]] = []

    def sample(self, requests: Any, params: Any, *, seed: int, step: int) -> Any:
        raise NotImplementedError

    def update_adapter(self, directory: Path, version: int) -> None:
        self.found.append((version, sorted(directory.parent.glob("*/adapter_model.safetensors"))))
        assert all(stat.S_IMODE(path.stat().st_mode) == 0o644 for path in directory.iterdir())


def adapted() -> PreTrainedModel:
    policy = model()
    lora.add_adapter(policy, lora.settings(config(lora_rank=2)))
    return policy


def test_an_engine_gets_adapters_in_files_that_it_may_read_and_none_is_left(tmp_path: Path):
    engine = Served()
    publisher = Publisher(adapted(), engine, tmp_path, lambda: None)
    publisher.begin(0)
    for version in (1, 2):
        publisher.publish(version)
    assert [(version, [path.parent.name for path in paths]) for version, paths in engine.found] == [
        (0, ["adapter-0"]),
        (1, ["adapter-0", "adapter-1"]),
        (2, ["adapter-1", "adapter-2"]),
    ]
    publisher.close()
    assert not list(tmp_path.iterdir())


def test_an_adapter_that_cannot_be_written_is_an_error_that_names_the_setting(tmp_path: Path):
    (tmp_path / "file").touch()
    publisher = Publisher(adapted(), Served(), tmp_path / "file", lambda: None)
    with pytest.raises(EngineError, match=r"sampling.transfer_dir"):
        publisher.begin(0)


NAMED = {"model_path": "m", "reward_funcs": ["exact"], "train_data": "d.jsonl"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampling_engine": "server"}, "needs sampling.server_urls"),
        ({"sampling_engine": "server", "sampling_server_urls": ["localhost:8000"]}, "is not an address"),
        (
            {"sampling_engine": "server", "sampling_server_urls": ["http://me:secret@host:1"]},
            "set sampling.server_api_key_env",
        ),
        ({"sampling_dtype": "bfloat16", "sharding": "full", "tokens_per_microbatch": 64}, "makes a copy of the policy"),
        ({"sampling_engine": "vllm", "sampling_ban": ["a"]}, "sampling.allow and sampling.ban work with"),
        (
            {
                "sampling_engine": "server",
                "sampling_server_urls": ["http://host:1"],
                "sampling_in_flight_updates": True,
                "objective": "grpo",
            },
            "ratios of grpo",
        ),
        (
            {
                "sampling_engine": "server",
                "sampling_server_urls": ["http://host:1"],
                "sampling_in_flight_updates": True,
                "reference": "sampler",
                "passes": 2,
            },
            "set objective.reference",
        ),
    ],
)
def test_settings_of_engines_that_cannot_work_are_refused(settings: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message) as raised:
        resolve(TrainConfig(**NAMED, **settings), Given())
    assert "secret" not in str(raised.value)


def test_settings_of_another_engine_have_no_effect():
    config = TrainConfig(
        **NAMED,
        sampling_server_urls=["http://host:1"],
        sampling_engine_sleep=True,
        rollout_max_staleness=3,
        sampling_transfer_dir="t",
    )
    notices = " ".join(resolve(config, Given()).notices)
    for key in ("sampling.server_urls", "sampling.engine_sleep", "rollout.max_staleness", "sampling.transfer_dir"):
        assert key in notices


@pytest.mark.parametrize(("dtype", "least"), [("float32", 0.0), ("bfloat16", 1e-4)])
def test_a_copy_of_the_policy_in_another_dtype_samples(tmp_path: Path, dtype: str, least: float):
    trainer(tmp_path / "plain", steps=2).train()
    trainer(tmp_path / "copy", steps=2, sampling_dtype=dtype).train()
    plain, copied = (lines(tmp_path / name) for name in ("plain", "copy"))
    mismatch = [line["sampler/mismatch"] for line in copied if line["step"] > 0]
    assert all(least <= found < 0.05 for found in mismatch)
    assert (plain == copied) == (dtype == "float32")
