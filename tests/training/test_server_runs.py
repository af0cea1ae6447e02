"""Runs that sample from servers: each step's weights reach them, and their failures do not change the run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gvpo import notices, retries
from gvpo.errors import EngineError
from gvpo.runfiles import read_rollouts, rollout_path
from gvpo.sampling.transformers import TransformersSampler
from gvpo.training.trainer import Trainer
from tests.sampling.server.fake_vllm import GENERATE, FakeVllm, Sampled, serving
from tests.training.toy import lines, model, same, tokenizer, trainer, weights

STEPS = 3


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_WAIT", 0.01)


def server(seed: int = 1) -> FakeVllm:
    """Return a server with other starting weights than the policy's."""
    fake = FakeVllm(Sampled(TransformersSampler(model(seed), tokenizer())))
    fake.context, fake.tokenizer = 64, tokenizer()
    return fake


def run(path: Path, *fakes: FakeVllm, policy: Any = None, **settings: Any) -> Trainer:
    """Return the trainer of a run that samples from servers."""
    given = {
        "steps": STEPS,
        "sampling_engine": "server",
        "sampling_server_urls": [fake.url for fake in fakes],
        "held": [],
    }
    return trainer(path, policy=policy, sampling_transfer_dir=path.parent, eval_problems=0, **{**given, **settings})


def rows(path: Path) -> list[list[tuple[Any, ...]]]:
    """Return the rows of each step."""
    names = ("group", "row", "tokens", "reward", "version", "age", "finish_reason")
    steps = (read_rollouts(rollout_path(path, step)) for step in range(1, STEPS + 1))
    return [[tuple(getattr(row, name) for name in names) for row in step] for step in steps]


def at_generation(count: int, action: Callable[[FakeVllm], None]) -> Callable[[FakeVllm, str, dict[str, Any]], None]:
    """Return a hook that does something once, before a server's n-th row."""
    seen = []

    def hook(fake: FakeVllm, path: str, body: dict[str, Any]) -> None:
        if path == GENERATE and "request_id" in body:
            seen.append(body)
            if len(seen) == count:
                action(fake)

    return hook


def restart(fake: FakeVllm) -> None:
    fake.kill()
    fake.start()


def test_a_server_that_is_killed_in_a_run_changes_nothing(tmp_path: Path):
    calm, dies, helps = server(), server(), server(seed=2)
    plain, own = model(), model()
    dies.hook = at_generation(25, restart)
    with serving(calm, dies, helps), notices.handled(lambda *_: None):
        run(tmp_path / "plain", calm, policy=plain).train()
        run(tmp_path / "own", dies, helps, policy=own).train()
    assert rows(tmp_path / "own") == rows(tmp_path / "plain")
    assert lines(tmp_path / "own") == lines(tmp_path / "plain")
    assert same(weights(own), weights(plain))
    for step, found in enumerate(rows(tmp_path / "own"), start=1):
        assert {(version, age) for *_, version, age, _ in found} == {(step - 1, 0)}
    assert not list(tmp_path.glob("gvpo-weights-*"))


def test_a_run_without_servers_ends_with_their_urls_and_continues_with_resume(tmp_path: Path):
    calm, dies = server(), server()
    dies.hook = at_generation(40, FakeVllm.kill)
    settings = {"sampling_server_deadline": 2.0, "sampling_server_concurrency": 2, "checkpoint_every": 1}
    plain, own = model(), model()
    with serving(calm, dies), notices.handled(lambda *_: None):
        run(tmp_path / "plain", calm, policy=plain, **settings).train()
        with pytest.raises(EngineError, match=rf"{dies.url}.*--resume"):
            run(tmp_path / "own", dies, policy=own, **settings).train()
        dies.start()
        dies.hook = None
        run(tmp_path / "own", dies, policy=own, **settings).train(resume=True)
    assert rows(tmp_path / "own") == rows(tmp_path / "plain")
    assert same(weights(own), weights(plain))


def test_a_server_of_another_model_is_found_before_the_first_step(tmp_path: Path):
    fake = server()
    fake.model.load = lambda path: None  # it ignores new weights  # type: ignore[method-assign]
    with serving(fake), pytest.raises(EngineError, match="trainer's model"):
        run(tmp_path / "run", fake).train()
    assert lines(tmp_path / "run") == []


@pytest.mark.parametrize("in_flight", [False, True])
def test_asynchronous_steps_overlap_on_servers_within_the_bound(tmp_path: Path, in_flight: bool):
    one, two = server(), server(seed=2)
    one.hook = at_generation(25, restart)
    with serving(one, two), notices.handled(lambda *_: None):
        run(
            tmp_path / "run",
            one,
            two,
            rollout_asynchronous=True,
            rollout_max_staleness=1,
            sampling_in_flight_updates=in_flight,
            steps=4,
        ).train()
    found = [row for step in range(1, 5) for row in read_rollouts(rollout_path(tmp_path / "run", step))]
    assert len(found) == 4 * 16
    assert {row.age for row in found} <= {0, 1}
    assert all(row.version == min(row.token_versions) for row in found if row.token_versions is not None)
    assert len({(row.step, row.group, row.row) for row in found}) == len(found)
    assert len(one.generated()) > 20
    assert len(two.generated()) > 20
