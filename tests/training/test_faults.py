"""Failures at any moment: written files stay intact, the error is one line, and the run resumes exactly."""

import contextlib
import json
import shutil
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from gvpo import runfiles
from gvpo.errors import CheckpointError, GvpoError, GvpoWarning, RunError, TrainingError
from gvpo.rollout.sources.live import LiveSource
from gvpo.runfiles import RolloutRow
from gvpo.system_errors import explained, is_out_of_memory
from gvpo.training.checkpoint.files import Checkpoints, TrainerState, load, verify
from gvpo.training.checkpoint.run_directory import RunDirectory
from gvpo.training.learner import Learner
from tests.training.faults import InlinePool, Killed, faulty_disk, forbidden, full_disk, killed
from tests.training.toy import lines, model, noticed, same, tokenizer, trainer, weights

SETTINGS: dict[str, Any] = {
    "steps": 3,
    "checkpoint_every": 1,
    "checkpoint_keep": 1,  # each save removes the checkpoint before
    "rollouts_every": 1,
    "eval_every": 2,
    "eval_problems": 2,
    "prompts_per_step": 2,
    "prefix_sharing": "off",
}
FAILURES = (killed, full_disk, forbidden)
STRIDE = 13
POOL = "gvpo.rollout.rewards.RewardPool"


@pytest.fixture(autouse=True)
def rewards_in_this_process(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(POOL, InlinePool)


def run(path: Path, **changes: Any) -> dict[str, torch.Tensor]:
    """Train, or resume the run if there is one."""
    policy = model()
    trainer(path, policy=policy, **{**SETTINGS, **changes}).train(resume=runfiles.is_run(path))
    return weights(policy)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor], list[str]]:
    """Return the unbroken run: its directory, its weights, and its disk operations by kind."""
    path = tmp_path_factory.mktemp("unbroken") / "run"
    with pytest.MonkeyPatch.context() as patch, faulty_disk(None) as disk:
        patch.setattr(POOL, InlinePool)
        end = run(path)
    return path, end, [what.split(" ")[0] for what in disk.asked]


def assert_same_run(path: Path, end: dict[str, torch.Tensor], expected: Path, expected_end: dict[str, Any]) -> None:
    assert lines(path) == lines(expected)
    assert same(end, expected_end)
    assert contents(path) == contents(expected)
    for step in runfiles.rollout_steps(expected):
        one, two = (runfiles.read_rollouts(runfiles.rollout_path(p, step)) for p in (path, expected))
        assert one == two


def contents(path: Path) -> list[str]:
    """Return all files and directories; check that no unfinished ones are among them."""
    return sorted(str(file.relative_to(path)) for file in path.rglob("*"))


def broken(path: Path, at: int, failure: Callable[[], BaseException]) -> str:
    """Run a session that fails at the given operation; return that operation."""
    message = ""
    with faulty_disk(at, failure) as disk, contextlib.suppress(Killed):
        try:
            run(path)
        except GvpoError as error:
            message = str(error)
    file = next(what for what in reversed(disk.asked[: at + 1]) if " " in what)
    silent = failure is killed or runfiles.REPORT in file  # a report that is not written is a warning
    assert (message == "") == silent
    assert "\n" not in message
    assert silent or any(advice in message for advice in ("--resume", "choose another run.dir"))
    return disk.failed


def go_through(tmp_path: Path, expected: Any, moments: Iterable[int], failure: Any) -> None:
    complete, end, kinds = expected
    failed = set()
    for at in moments:
        path = tmp_path / str(at)
        failed.add(broken(path, at, failure).split(" ")[0])
        assert_same_run(path, run(path), complete, end)
        shutil.rmtree(path)
    assert failed == set(kinds) >= {"open", "write", "fsync", "mkdir"}
    assert len(kinds) > 100


@pytest.mark.parametrize("failure", FAILURES[:2])
def test_a_run_that_failed_somewhere_resumes_exactly(tmp_path: Path, unbroken: Any, failure: Any):
    kinds = unbroken[2]
    first_of_each_kind = {kinds.index(kind) for kind in kinds}
    strides = range(FAILURES.index(failure), len(kinds), STRIDE)
    go_through(tmp_path, unbroken, sorted(first_of_each_kind.union(strides)), failure)


@pytest.mark.slow
@pytest.mark.parametrize("failure", FAILURES)
def test_a_run_that_failed_anywhere_resumes_exactly(tmp_path: Path, unbroken: Any, failure: Any):
    go_through(tmp_path, unbroken, range(len(unbroken[2])), failure)


def test_sessions_may_fail_one_after_another(tmp_path: Path, unbroken: Any):
    complete, end, _ = unbroken
    failed = [broken(tmp_path, at, FAILURES[at % 3]) for at in (2, 20, 51, 9, 6, 4, 3)]
    assert all(failed)
    assert_same_run(tmp_path, run(tmp_path), complete, end)


# Each file by itself, at every operation


def saved(directory: Path, step: int) -> None:
    optimizer = {"state": {}, "param_groups": [{"lr": float(step), "params": [0]}]}
    reference = {"weight": torch.full((3,), float(step))}
    Checkpoints(directory, 1).save(TrainerState(step=step), model(seed=step), tokenizer(), optimizer, reference, "card")


def operations(call: Callable[[], object]) -> int:
    with faulty_disk(None) as disk:
        call()
    return disk.count


@pytest.mark.parametrize("failure", [killed, full_disk])
@pytest.mark.parametrize("damaged", [False, True], ids=["before", "of the same step"])
def test_a_save_that_fails_anywhere_leaves_a_whole_checkpoint(tmp_path: Path, failure: Any, damaged: bool):
    begin = tmp_path / "begin"
    saved(begin, 1)
    if damaged:  # it is skipped on resume, so that the same step is saved again
        (begin / "step-000002/trainer").mkdir(parents=True)
    complete, seen = _copy(begin, tmp_path / "complete"), set()
    for at in range(FAILURES.index(failure), operations(lambda: saved(complete, 2)), 2):
        place = _copy(begin, tmp_path / str(at))
        with faulty_disk(at, failure), pytest.raises((Killed, CheckpointError)):
            saved(place, 2)
        step = newest_step(place)
        seen.add(step)
        saved(place, 2)
        assert contents(place) == contents(complete)
        shutil.rmtree(place)
    assert seen == {1, 2}


def newest_step(directory: Path) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GvpoWarning)  # about the checkpoint that was damaged from the start
        loaded = Checkpoints(directory, 1).newest()
    assert loaded is not None
    return loaded.state.step


def written(step: int) -> RolloutRow:
    return RolloutRow(step=step, group="g", row=0, prompt="p", prompt_tokens=[1], text="t", tokens=[2], reward=1.0)


def write_a_step(path: Path) -> None:
    directory = RunDirectory.open(path)
    directory.append_metrics({"step": 2, "train/loss": 0.5})
    directory.write_rollouts(2, [written(2)])
    directory.write_summary({"steps": 2})


@pytest.mark.parametrize("failure", [killed, full_disk])
def test_files_of_a_step_that_fail_anywhere_are_removed_and_written_again(tmp_path: Path, failure: Any):
    begin = tmp_path / "begin"
    directory = RunDirectory.create(begin, config="{}")
    directory.append_metrics({"step": 1})
    directory.write_rollouts(1, [written(1)])
    before = (begin / "metrics.jsonl").read_bytes()
    complete = _copy(begin, tmp_path / "complete")
    for at in range(operations(lambda: write_a_step(complete))):
        place = _copy(begin, tmp_path / str(at))
        with faulty_disk(at, failure), pytest.raises((Killed, RunError)):
            write_a_step(place)
        runfiles.read_metrics(place / "metrics.jsonl")
        RunDirectory.open(place).truncate_after(1)
        assert (place / "metrics.jsonl").read_bytes() == before
        write_a_step(place)
        assert contents(place) == contents(complete)


@pytest.mark.parametrize("failure", [killed, full_disk])
def test_truncation_may_fail_anywhere_and_is_repeated(tmp_path: Path, failure: Any):
    begin = tmp_path / "begin"
    directory = RunDirectory.create(begin, config="{}")
    directory.append_metrics({"step": 1})
    write_a_step(begin)
    (begin / "rollouts/.step-000003.parquet.tmp").write_bytes(b"half")

    def cut(path: Path) -> None:
        RunDirectory.open(path).truncate_after(1)

    complete = _copy(begin, tmp_path / "complete")
    for at in range(operations(lambda: cut(complete))):
        place = _copy(begin, tmp_path / str(at))
        with faulty_disk(at, failure), pytest.raises((Killed, RunError)):
            cut(place)
        cut(place)
        assert contents(place) == contents(complete)
        assert [line["step"] for line in lines(place)] == [1]


def _copy(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


# Damage


def damages(data: bytes) -> dict[str, bytes | None]:
    """Return possible contents of a damaged file; None means that it is gone."""
    middle = len(data) // 2
    flipped = data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]
    return {"missing": None, "empty": b"", "truncated": data[:-1], "half": data[:middle], "flipped": flipped}


def test_error_names_any_damaged_file(tmp_path: Path):
    saved(tmp_path, 1)
    checkpoint = tmp_path / "step-000001"
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"model.safetensors", "optimizer.pt", "state.json", "manifest.json"}
    for file in files:
        intact = file.read_bytes()
        for data in damages(intact).values():
            file.unlink() if data is None else file.write_bytes(data)
            named = "step-000001" if file.name == "manifest.json" else f"step-000001.*{file.name}"
            with pytest.raises(CheckpointError, match=named):
                load(checkpoint)
            file.write_bytes(intact)
    assert load(checkpoint).state.step == 1


def test_a_manifest_with_any_bit_flipped_is_noticed(tmp_path: Path):
    saved(tmp_path, 1)
    manifest = tmp_path / "step-000001/trainer/manifest.json"
    intact = manifest.read_bytes()
    for place in range(0, len(intact), 3):
        manifest.write_bytes(intact[:place] + bytes([intact[place] ^ 1 << place % 8]) + intact[place + 1 :])
        with pytest.raises(CheckpointError):
            verify(tmp_path / "step-000001")


def test_an_error_is_raised_and_no_file_changed_if_no_checkpoint_is_intact(tmp_path: Path):
    run(tmp_path)
    for file in tmp_path.glob("checkpoints/step-*/model.safetensors"):
        file.write_bytes(b"")
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with (
        noticed(r"model\.safetensors is not what was written"),
        pytest.raises(CheckpointError, match=r"no checkpoint in .* is intact; restore one, or remove that directory"),
    ):
        run(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_a_damaged_last_checkpoint_is_rewritten_when_the_run_ends_again(tmp_path: Path, unbroken: Any):
    run(tmp_path, checkpoint_keep=3)
    weights_file = tmp_path / "checkpoints/step-000003/model.safetensors"
    weights_file.write_bytes(b"")
    with noticed("step-000003 is corrupt"):
        run(tmp_path, checkpoint_keep=3, checkpoint_every=0)
    assert load(tmp_path / "checkpoints/step-000003").state.step == 3
    assert lines(tmp_path) == lines(unbroken[0])


# Errors of the machine


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["python", "gpu", "cpu"],
)
@pytest.mark.parametrize("where", ["sampling", "updating"])
def test_out_of_memory_reports_what_to_lower_and_loses_no_step(
    tmp_path: Path, unbroken: Any, error: Exception, where: str
):
    owner, name = (LiveSource, "rollout") if where == "sampling" else (Learner, "learn")
    original = getattr(owner, name)

    def greedy(*arguments: Any) -> Any:
        if arguments[-1] == 2:
            raise error
        return original(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, greedy)
        with pytest.raises(TrainingError, match=r"after step 1: out of memory; lower train\.tokens_per_microbatch"):
            run(tmp_path)
    assert_same_run(tmp_path, run(tmp_path), *unbroken[:2])


def test_other_runtime_errors_are_not_hidden():
    assert not is_out_of_memory(RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"), explained(lambda: "step 1"):
        raise RuntimeError("shapes differ")


def test_error_names_a_vanished_directory_and_it_is_not_recreated(tmp_path: Path):
    original = Learner.learn

    def vanishing(learner: Learner, groups: Any, step: int) -> Any:
        if step == 2:
            (tmp_path / "run").rename(tmp_path / "elsewhere")
        return original(learner, groups, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "learn", vanishing)
        with pytest.raises(RunError, match=r"run directory .* is gone; bring it back, then use --resume"):
            run(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    end = run(tmp_path / "elsewhere")
    assert [line["step"] for line in lines(tmp_path / "elsewhere")] == [0, 1, 2, 3]
    assert json.loads((tmp_path / "elsewhere/summary.json").read_text())["steps"] == 3
    assert end


def test_error_explains_why_a_checkpoint_cannot_be_written(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"cannot write checkpoint .*step-000001: No such file .*; make room or"):
        saved(tmp_path / "gone/checkpoints", 1)
    assert not (tmp_path / "gone").exists()
