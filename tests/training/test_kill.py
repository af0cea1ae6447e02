"""Real processes that are killed and interrupted: the run resumes exactly, or prints how to resume."""

import contextlib
import json
import random
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gvpo import runfiles
from gvpo.training.checkpoint.run_directory import locked
from tests.training.forks import Child, Forks, forks
from tests.training.toy import lines, trained_on, without_times

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks")

DEMO = [
    "train.prompts_per_step=2",
    "sampling.group_size=2",
    "sampling.max_tokens=8",
    "warm_start.batch=4",
    "warm_start.demonstrations=20",
    "data.train_problems=20",
    "data.eval_problems=2",
    "rewards.workers=1",
    "checkpoint.every=0",
    "train.rollouts_every=0",
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    with forks(tmp_path_factory.mktemp("forks")) as started:
        yield started


@pytest.fixture(scope="module")
def unbroken(server: Forks, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """Return the unbroken run, and its duration in seconds."""
    path = tmp_path_factory.mktemp("unbroken") / "run"
    began = time.monotonic()
    finish(server, "toy", str(path))
    return path, time.monotonic() - began


def finish(server: Forks, *words: str) -> None:
    child = server.start(*words)
    code = child.wait()
    assert code == 0, child.output()


def killed_after(child: Child, seconds: float) -> bool:
    """Return whether SIGKILL came before the end."""
    time.sleep(seconds)
    with contextlib.suppress(ProcessLookupError):  # it had ended and been waited for
        child.send(signal.SIGKILL)
    code = child.wait()
    assert code in (0, -signal.SIGKILL), child.output()
    return code != 0


def assert_same_run(path: Path, expected: Path) -> None:
    assert lines(path) == lines(expected)
    last = f"checkpoints/{runfiles.step_name(lines(expected)[-1]['step'])}/model.safetensors"
    assert (path / last).read_bytes() == (expected / last).read_bytes()
    assert runfiles.rollout_steps(path) == runfiles.rollout_steps(expected)
    for step in runfiles.rollout_steps(expected):
        one, two = (runfiles.read_rollouts(runfiles.rollout_path(p, step)) for p in (path, expected))
        assert without_times(one) == without_times(two)
    summary, other = (json.loads((p / "summary.json").read_text()) for p in (path, expected))
    assert summary["accuracy_after"] == other["accuracy_after"]
    assert not [file for file in path.rglob(".*") if file.name != ".lock"]


def kill_often(
    server: Forks, directory: Path, unbroken: tuple[Path, float], kills: int, seed: int, kind: str = "toy"
) -> None:
    """Kill runs at random moments, `kills` times in all; each is resumed until it ends, and then a new one begins."""
    expected, seconds = unbroken
    moments = random.Random(seed)
    done = run = 0
    while done < kills:
        path, fresh = directory / str(run), True
        while killed_after(server.start(kind, str(path)), moment := moments.uniform(0, seconds)):
            done, fresh = done + 1, False
            if done % 4 == 0:  # so that runs also end, and are compared, on a slow machine
                break
        else:
            if fresh:  # a whole run: the machine is quicker than when `seconds` was measured
                seconds = moment
        finish(server, kind, str(path))
        assert_same_run(path, expected)
        run += 1


def test_a_killed_run_resumes_exactly(server: Forks, unbroken: tuple[Path, float], tmp_path: Path):
    kill_often(server, tmp_path, unbroken, kills=3, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_run_killed_at_a_hundred_moments_resumes_exactly(server: Forks, unbroken: tuple[Path, float], tmp_path: Path):
    kill_often(server, tmp_path, unbroken, kills=100, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_run_killed_within_a_turn_of_its_episodes_resumes_exactly(server: Forks, tmp_path: Path):
    began = time.monotonic()
    finish(server, "episodes", str(tmp_path / "unbroken"))
    unbroken = tmp_path / "unbroken", time.monotonic() - began
    kill_often(server, tmp_path, unbroken, kills=20, seed=2, kind="episodes")


def kill_asynchronous(server: Forks, directory: Path, kind: str, kills: int) -> None:
    """Kill runs at random moments, `kills` times in all; each is resumed until it ends, and then a new one begins."""
    assert server.start(kind, str(directory / "unbroken")).wait() == 0
    seconds = json.loads((directory / "unbroken/summary.json").read_text())["seconds"]
    moments, done, run = random.Random(kills), 0, 0
    steps = len(lines(directory / "unbroken")) - 1
    expected = trained_on(directory / "unbroken", steps)
    while done < kills:
        path = directory / str(run)
        while killed_after(server.start(kind, str(path)), moments.uniform(0, seconds)):
            done += 1
        assert trained_on(path, steps) == expected
        assert all(line.get("age/max", 0) <= 2 for line in lines(path))
        run += 1


@pytest.mark.parametrize("kind", ["late", pytest.param("overlapping", marks=pytest.mark.slow)])
def test_a_killed_run_trains_on_each_prompt_as_often_as_an_unbroken_one(server: Forks, tmp_path: Path, kind: str):
    kill_asynchronous(server, tmp_path, kind, kills=2)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", ["overlapping", "late"])
def test_a_run_killed_at_twenty_moments_trains_on_each_prompt_as_often(server: Forks, tmp_path: Path, kind: str):
    kill_asynchronous(server, tmp_path, kind, kills=20)


def demo(server: Forks, run_dir: Path, *more: str) -> Child:
    return server.start("train", "demo", f"run.dir={run_dir}", *DEMO, *more)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=["Ctrl-C", "SIGTERM", "hangup"])
def test_a_signal_finishes_the_step_and_prints_how_to_resume(server: Forks, tmp_path: Path, number: signal.Signals):
    run_dir = tmp_path / "a run"
    child = demo(server, run_dir, "train.steps=100000", "warm_start.steps=2")
    child.wait_for(run_dir / "metrics.jsonl")
    time.sleep(0.5)
    child.send(number)
    assert child.wait() == 130
    shown = child.output()
    step = lines(run_dir)[-1]["step"]
    assert "stopping when this step is done and saved; once more stops now" in shown
    assert f"gvpo: stopped after step {step} of 100000, which is saved; resume with: gvpo train demo " in shown
    assert (run_dir / "checkpoints" / runfiles.step_name(step)).is_dir()
    assert "Traceback" not in shown
    command = shlex.split(shown.rpartition("resume with: gvpo ")[2])
    assert command[-2:] == [f"run.dir={run_dir}", "--resume"]
    again = server.start(*command)
    again.wait_for(run_dir / "checkpoints" / runfiles.step_name(step) / "config.json")
    while runfiles.read_metrics(run_dir / "metrics.jsonl")[-1]["step"] <= step:
        time.sleep(0.01)
    again.send(number)
    assert again.wait() == 130
    assert [line["step"] for line in lines(run_dir)] == list(range(lines(run_dir)[-1]["step"] + 1))


def test_a_second_ctrl_c_stops_now(server: Forks, tmp_path: Path):
    child = demo(server, tmp_path / "run", "train.steps=100000", "warm_start.steps=2", "sampling.group_size=2048")
    child.wait_for(tmp_path / "run/metrics.jsonl")
    time.sleep(0.5)  # wait until the first step is running; before it, one request is enough
    child.send(signal.SIGINT)
    while "once more stops now" not in child.output():  # two signals within one call of torch count as one
        time.sleep(0.005)
    child.send(signal.SIGINT)
    assert child.wait() == 130
    assert "stopping now, without this step: closing the workers; once more ends the process" in child.output()
    assert f"resume with: gvpo train demo {' '.join(DEMO)}" in child.output()
    assert "Traceback" not in child.output()


def test_a_killed_warm_start_resumes_exactly(server: Forks, tmp_path: Path):
    settings = ("train.steps=2", "warm_start.steps=6")
    assert demo(server, tmp_path / "unbroken", *settings).wait() == 0
    child = demo(server, tmp_path / "killed", *settings)
    child.wait_for(tmp_path / "killed/warm-start/metrics.jsonl")
    child.send(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert demo(server, tmp_path / "killed", *settings, "--resume").wait() == 0
    for part in (".", "warm-start"):
        assert lines(tmp_path / "killed" / part) == lines(tmp_path / "unbroken" / part)
    model = "checkpoints/step-000002/model.safetensors"
    assert (tmp_path / "killed" / model).read_bytes() == (tmp_path / "unbroken" / model).read_bytes()


def test_a_second_process_on_a_run_is_rejected(server: Forks, tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    with locked(tmp_path):
        child = demo(server, tmp_path, "train.steps=1", "warm_start.steps=0", "--resume")
        assert child.wait() == 2
    assert "gvpo: error: another process (pid" in child.output()
    assert "Traceback" not in child.output()
