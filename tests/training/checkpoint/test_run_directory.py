import errno
import json
import os
import platform
import shutil

import pytest

from gvpo import runfiles
from gvpo.errors import RunError
from gvpo.runfiles import RolloutRow
from gvpo.training.checkpoint.run_directory import RunDirectory, locked


def row(step: int) -> RolloutRow:
    return RolloutRow(step=step, group="g", row=0, prompt="p", prompt_tokens=[1], text="t", tokens=[2], reward=1.0)


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "runs" / "a", config='{"run": {}}\n', facts={"device": "cpu"})


def test_a_new_run_has_its_settings_and_environment(run):
    assert run.config_path.read_text() == '{"run": {}}\n'
    environment = runfiles.read_json(run.path / "environment.json")
    assert environment["python"] == platform.python_version()
    assert environment["packages"]["torch"].startswith("2.")
    assert environment["device"] == "cpu"
    assert run.read_metrics() == []
    assert run.read_summary() == {}


@pytest.mark.parametrize("left", ["config.json", "metrics.jsonl", "rollouts", "checkpoints", "summary.json"])
def test_an_existing_run_is_rejected_and_left_unchanged(tmp_path, left):
    (tmp_path / left).mkdir() if "." not in left else (tmp_path / left).write_text("mine")
    with pytest.raises(RunError, match=r"choose another run\.dir, or use --resume"):
        RunDirectory.create(tmp_path, config="{}")
    assert [entry.name for entry in tmp_path.iterdir()] == [left]


def test_a_directory_without_a_run_is_used(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    RunDirectory.create(tmp_path, config="{}")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_second_process_is_rejected_and_the_error_names_the_first(tmp_path):
    second = pytest.raises(RunError, match=rf"another process \(pid {os.getpid()}\) is working in .*run; wait for it")
    with locked(tmp_path / "run"), second, locked(tmp_path / "run"):
        pytest.fail("there are two")
    with locked(tmp_path / "run"):  # the file stays, the lock does not
        assert (tmp_path / "run/.lock").exists()


def test_a_lock_is_not_a_run(tmp_path):
    with locked(tmp_path):
        assert RunDirectory.create(tmp_path, config="{}").read_metrics() == []


def test_a_directory_that_cannot_be_locked_is_used_without_a_lock(tmp_path, monkeypatch):
    def refuse(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with locked(tmp_path), locked(tmp_path):
        assert tmp_path.is_dir()


def test_an_interrupted_start_is_not_a_run_yet(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(runfiles, "write_text", lambda path, text: _cut())  # config.json
        patch.setattr(runfiles, "write_json", lambda path, value: path.write_text("{}"))
        with pytest.raises(KeyboardInterrupt):
            RunDirectory.create(tmp_path, config="{}")
    assert (tmp_path / "environment.json").exists()
    RunDirectory.create(tmp_path, config='{"run": 2}')
    assert json.loads((tmp_path / "config.json").read_text()) == {"run": 2}


def _cut():
    raise KeyboardInterrupt


def test_a_removed_directory_is_not_recreated(run):
    shutil.rmtree(run.path)
    for write in (
        lambda: run.append_metrics({"step": 1}),
        lambda: run.write_rollouts(1, [row(1)]),
        lambda: run.write_summary({"steps": 1}),
    ):
        with pytest.raises(RunError, match=r"No such file|is gone; bring it back"):
            write()
    assert not run.path.exists()


def test_error_names_a_directory_that_cannot_be_created(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"choose another run\.dir"):
        RunDirectory.create(tmp_path / "file" / "run", config="{}")


def test_open_needs_a_run(tmp_path, run):
    assert RunDirectory.open(run.path).path == run.path
    with pytest.raises(RunError, match="there is no run in"):
        RunDirectory.open(tmp_path / "nowhere")
    run.config_path.unlink()
    with pytest.raises(RunError, match=r"has no config\.json; remove the directory"):
        RunDirectory.open(run.path)


def test_metrics_are_appended(run):
    run.append_metrics({"step": 1, "train/loss": 0.5})
    run.append_metrics({"step": 2, "train/loss": float("nan")})
    assert run.read_metrics() == [
        {"step": 1, "train/loss": 0.5},
        {"step": 2, "train/loss": None, "nonfinite": {"train/loss": "nan"}},
    ]


def test_a_metrics_line_is_on_disk_when_append_returns(run, monkeypatch):
    sizes = []
    monkeypatch.setattr("os.fsync", lambda handle: sizes.append(run.metrics_path.stat().st_size))
    run.append_metrics({"step": 1})
    assert sizes == [len('{"step": 1}\n')]


def test_a_full_disk_is_a_run_error(run, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RunError, match=r"metrics\.jsonl: No space left"):
        run.append_metrics({"step": 1})


@pytest.mark.parametrize("folder", ["rollouts", "held-out"])
def test_resume_removes_everything_after_the_checkpoint(run, folder):
    for step in range(4):
        run.append_metrics({"step": step})
        run.write_rollouts(step, [row(step)], folder)
    with run.metrics_path.open("a") as file:
        file.write('{"step": 4, "tor')
    (run.path / folder / ".step-000004.parquet.tmp").write_bytes(b"half")
    run.truncate_after(2)
    run.append_metrics({"step": 3, "again": True})
    assert [line["step"] for line in run.read_metrics()] == [0, 1, 2, 3]
    assert run.read_metrics()[-1]["again"]
    assert sorted(path.name for path in (run.path / folder).iterdir()) == [
        f"step-00000{step}.parquet" for step in range(3)
    ]


@pytest.mark.parametrize(("steps", "kept"), [(200, True), (201, False)])
def test_a_summary_of_removed_steps_is_removed(run, steps, kept):
    run.write_summary({"steps": steps})
    run.report_path.write_text("report")
    run.truncate_after(200)
    assert bool(run.read_summary()) is kept
    assert run.report_path.exists() is kept


def test_checkpoints_are_left_unchanged(run):
    run.checkpoint_path(300).mkdir(parents=True)
    run.truncate_after(1)
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-000300"]
