"""A source of groups with a state: it is committed per step, stored in the checkpoint, restored and closed."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from gvpo.errors import CheckpointError
from gvpo.rollout.collect import Rollout
from gvpo.rollout.sources.live import LiveSource
from tests.training.toy import lines, model, same, trainer, weights


class WanderingSource(LiveSource):
    """A live source whose position depends on the rewards so far, so the step number does not determine it."""

    stop_at: ClassVar[int | None] = None
    calls: ClassVar[list[tuple[str, int]]] = []

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._place, self._next = 1, 1

    def rollout(self, step: int) -> Rollout:
        if step == self.stop_at:
            raise KeyboardInterrupt
        self.calls.append(("rollout", self._place))
        found = super().rollout(self._place)
        self._next = self._place + 2 + sum((verdict.reward or 0) > 0 for row in found.verdicts for verdict in row) % 3
        return found

    def commit(self, step: int) -> None:
        self.calls.append(("commit", step))
        self._place = self._next

    def state_dict(self) -> dict[str, Any]:
        return {"place": self._place}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._place = state["place"]

    def close(self) -> None:
        self.calls.append(("close", 0))


@pytest.fixture(autouse=True)
def wandering(monkeypatch: pytest.MonkeyPatch) -> type[WanderingSource]:
    monkeypatch.setattr("gvpo.training.sources.LiveSource", WanderingSource)
    monkeypatch.setattr(WanderingSource, "stop_at", None)
    monkeypatch.setattr(WanderingSource, "calls", [])
    return WanderingSource


def run(path: Path, *, resume: bool = False) -> dict[str, torch.Tensor]:
    policy = model()
    trainer(path, policy=policy, steps=5, checkpoint_every=2).train(resume=resume)
    return weights(policy)


def test_a_resumed_run_uses_the_same_groups_as_an_unbroken_one(
    tmp_path: Path, wandering: type[WanderingSource], monkeypatch: pytest.MonkeyPatch
):
    end = run(tmp_path / "unbroken")
    places = [place for call, place in wandering.calls if call == "rollout"]
    assert len({after - before for before, after in pairwise(places)}) > 1  # the step does not determine the position
    with monkeypatch.context() as patch:
        patch.setattr(wandering, "stop_at", 4)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "broken")
    wandering.calls.clear()
    resumed = run(tmp_path / "broken", resume=True)
    assert [place for call, place in wandering.calls if call == "rollout"] == places[2:]
    assert lines(tmp_path / "broken") == lines(tmp_path / "unbroken")
    assert same(resumed, end)


def test_each_step_is_committed_before_the_next_and_the_source_is_closed_at_the_end_of_the_run(
    tmp_path: Path, wandering: type[WanderingSource]
):
    run(tmp_path)
    calls = [call for call in wandering.calls if call[0] != "rollout"]
    assert calls == [*(("commit", step) for step in range(1, 6)), ("close", 0)]
    assert [call for call, _ in wandering.calls] == ["rollout", "commit"] * 5 + ["close"]


def test_a_source_is_closed_after_an_error(
    tmp_path: Path, wandering: type[WanderingSource], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(wandering, "stop_at", 2)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    assert [call for call, _ in wandering.calls] == ["rollout", "commit", "close"]


def test_a_live_run_stores_its_position_and_rejects_another_sources_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    stored = "checkpoints/step-000005/trainer/source.pt"
    run(tmp_path / "other")
    assert torch.load(tmp_path / "other" / stored, weights_only=True)["place"] > 9
    monkeypatch.setattr("gvpo.training.sources.LiveSource", LiveSource)
    with pytest.raises(CheckpointError, match="the state of another source of groups than LiveSource"):
        run(tmp_path / "other", resume=True)
    run(tmp_path / "live")
    assert torch.load(tmp_path / "live" / stored, weights_only=True) == {"position": 5 * 4}


def test_a_source_without_a_state_stores_none(tmp_path: Path):
    rows = [{"prompt": digit, "completion": digit} for digit in "0123"]
    trainer(tmp_path, data=rows, objective="sft", held=[], eval_problems=0, checkpoint_every=1).train()
    assert [*tmp_path.rglob("optimizer.pt")] != []
    assert [*tmp_path.rglob("source.pt")] == []
