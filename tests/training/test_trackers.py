"""Trackers: the contents of TensorBoard and Weights & Biases after an offline run, and after a resumed one."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gvpo import runfiles
from gvpo.errors import ConfigError
from gvpo.training import trackers as module
from gvpo.training.checkpoint.run_directory import RunDirectory
from gvpo.training.trackers import Trackers
from gvpo.training.warm_start import train_recipe
from tests.training.test_warm_start import recipe as warm
from tests.training.toy import config, lines, stopped_at, trainer

NO_EVAL: dict[str, Any] = {"held": [], "eval_problems": 0}


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Read a run's event files with TensorBoard's own reader."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(run / "tensorboard")).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def records(file: Path) -> Iterator[Any]:
    """Yield the records of a .wandb file: LevelDB's log format (header of 7 bytes, blocks of 32 kB) of protobuf
    messages."""
    from wandb.proto import wandb_internal_pb2

    data, position, parts = file.read_bytes(), 7, b""
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            yield wandb_internal_pb2.Record.FromString(parts)
            parts = b""


def history(run: Path) -> list[dict[str, str]]:
    """Return every history line in a run's offline directories, oldest first; values are JSON texts."""
    files = sorted((run / "wandb").glob("offline-run-*/run-*.wandb"), key=lambda file: file.stat().st_mtime_ns)
    found = [record.history for file in files for record in records(file) if record.HasField("history")]
    return [{item.key or ".".join(item.nested_key): item.value_json for item in one.item} for one in found]


def test_tensorboard_has_the_metrics_lines(tmp_path: Path):
    pytest.importorskip("tensorboard")
    trainer(tmp_path, trackers=["tensorboard"], steps=2).train()
    logged = scalars(tmp_path)
    written = lines(tmp_path)
    for tag in ("reward/mean", "train/loss", "gvpo/certificate", "eval/accuracy"):
        expected = [(line["step"], pytest.approx(line[tag], rel=1e-5, abs=1e-7)) for line in written if tag in line]
        assert logged[tag] == expected, tag
    assert "step" not in logged


def test_tensorboard_continues_after_a_resume_without_the_removed_steps(tmp_path: Path):
    pytest.importorskip("tensorboard")
    settings: dict[str, Any] = {"trackers": ["tensorboard"], "steps": 4, "checkpoint_every": 2, **NO_EVAL}
    with stopped_at(4):
        trainer(tmp_path, **settings).train()
    assert [step for step, _ in scalars(tmp_path)["reward/mean"]] == [1, 2, 3]
    trainer(tmp_path, **settings).train(resume=True)
    assert [step for step, _ in scalars(tmp_path)["reward/mean"]] == [1, 2, 3, 4]


def test_weights_and_biases_offline_has_the_lines_and_a_resumed_run_keeps_its_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    settings: dict[str, Any] = {"trackers": ["wandb"], "steps": 3, "checkpoint_every": 1, **NO_EVAL}
    with stopped_at(3):
        trainer(tmp_path, **settings).train()
    trainer(tmp_path, **settings).train(resume=True)
    kept = runfiles.read_json(tmp_path / module.TRACKERS_FILE)["wandb"]
    names = [path.name.rpartition("-")[2] for path in (tmp_path / "wandb").glob("offline-run-*")]
    assert set(names) == {kept}
    logged = history(tmp_path)
    assert [int(line["_step"]) for line in logged] == [1, 2, 3]
    for line, sent in zip(lines(tmp_path), logged, strict=True):
        assert float(sent["reward/mean"]) == pytest.approx(line["reward/mean"])


class Broken:
    """A tracker whose network fails."""

    name = "broken"

    def __init__(self) -> None:
        self.calls = 0

    def log(self, values: dict[str, float], step: int) -> None:
        self.calls += 1
        raise ConnectionError("no route\nto host")

    def finish(self) -> None:
        raise AssertionError("it was left out")


def test_a_tracker_that_fails_is_dropped_and_the_run_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    broken = Broken()
    monkeypatch.setitem(module._START, "tensorboard", lambda *_: broken)
    said: list[str] = []
    run = RunDirectory.create(tmp_path, config="{}")
    with Trackers(config(tmp_path, trackers=["tensorboard"]), run, 0, said.append) as trackers:
        trackers.log({"step": 1, "reward/mean": 0.5})
        trackers.log({"step": 2, "reward/mean": 0.5})
    assert broken.calls == 1
    assert said == ["tracker broken failed and is not used any more: no route to host"]


def test_only_numbers_are_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sent: list[tuple[dict[str, Any], int]] = []
    keeping = Broken()
    keeping.log = lambda values, step: sent.append((values, step))  # type: ignore[method-assign]
    keeping.finish = lambda: None  # type: ignore[method-assign]
    monkeypatch.setitem(module._START, "tensorboard", lambda *_: keeping)
    run = RunDirectory.create(tmp_path, config="{}")
    with Trackers(config(tmp_path, trackers=["tensorboard"]), run, 0, print) as trackers:
        trackers.log({"step": 3, "a": 1, "b": 0.5, "c": None, "d": {"e": 1}})
    assert sent == [({"a": 1, "b": 0.5}, 3)]


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_is_an_error_before_any_file_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=rf"{name}, which is not installed: pip install 'gvpo\[{name}\]'"):
        trainer(tmp_path / "run", trackers=[name])
    assert not (tmp_path / "run").exists()


def test_error_says_what_to_do_if_weights_and_biases_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def start(_: Any) -> None:
        raise RuntimeError("api_key not configured")

    monkeypatch.setattr(module, "_check_wandb_login", lambda: None)  # it passed, and the network has failed since
    monkeypatch.setattr(module.WandBTracker, "start", start)
    with pytest.raises(ConfigError, match="api_key not configured; run `wandb login`, or set WANDB_MODE=offline"):
        trainer(tmp_path, trackers=["wandb"], **NO_EVAL).train()


@pytest.fixture
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Simulate a machine without a login and without a network."""
    wandb = pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "settings"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    wandb.teardown()  # it reads its environment once
    yield
    wandb.teardown()


@pytest.mark.usefixtures("nobody")
def test_a_missing_login_is_found_before_a_warm_start(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"no login on this machine; run `wandb login`, or set WANDB_MODE=offline$"):
        train_recipe(warm(tmp_path / "run", trackers=["wandb"]))
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("nobody")
def test_an_invalid_key_is_found_before_a_warm_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_API_KEY", "short")
    with pytest.raises(ConfigError, match=r"does not start: .*API key must have 40.*; run `wandb login`"):
        train_recipe(warm(tmp_path / "run", trackers=["wandb"]))
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("nobody")
def test_no_login_is_needed_offline(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    module.check_trackers(config(trackers=["wandb"]))


def test_another_tracker_is_a_setting_error():
    with pytest.raises(ConfigError, match=r"run\.trackers.*tensorboard"):
        config(trackers=["mlflow"])
