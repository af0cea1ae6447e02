"""Tests that several ranks compute the results of one process, and that no rank waits for a failed one."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from gvpo import runfiles
from gvpo.types import Completion, Group
from gvpo.update.distributed import ranks
from tests.training import rank_jobs as jobs
from tests.training.test_kill import DEMO
from tests.training.toy import lines, model, trainer, without_times
from tests.training.world import run_world, world

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="forks"),
    pytest.mark.filterwarnings("ignore:logged groups are finite"),
]

TWO = (0, 0, 1)
ONE_HAS_NONE = (1, 1, 1)
UPDATES = (
    (TWO, "gvpo", 12),
    (ONE_HAS_NONE, "gvpo", 12),
    (ONE_HAS_NONE, "gvpo", 10_000),
    (TWO, "sft", 12),
)
"""Owners, objective and budget: with a score pass, in one micro-batch, and with coefficients known in advance."""

STEPS = 20
SHARDINGS = ("none", "full")
MOSTLY_FULL = (pytest.param("none", marks=pytest.mark.slow), "full")
MOSTLY_NONE = ("none", pytest.param("full", marks=pytest.mark.slow))


def movement_gap(path: Path, expected: Path, step: int = STEPS) -> float:
    """Return |difference of the weights| / |movement of the weights since the start| (L2)."""
    file = f"checkpoints/{runfiles.step_name(step)}/model.safetensors"
    found, true = (safetensors.torch.load_file(p / file) for p in (path, expected))
    start = model().state_dict()
    assert found.keys() == true.keys()
    gap, moved = (
        sum(float((a[name] - b[name]).double().square().sum()) for name in true)
        for a, b in ((found, true), (true, start))
    )
    return float((gap / moved) ** 0.5)


def assert_close_lines(path: Path, expected: Path) -> None:
    """Compare metrics up to the rounding of another order of sums, except for means of rounding errors."""
    found, true = lines(path), lines(expected)
    assert [line.keys() for line in found] == [line.keys() for line in true]
    for one, other in zip(found, true, strict=True):
        for name in one.keys() - {"sampler/mismatch"}:
            assert one[name] == pytest.approx(other[name], rel=1e-3, abs=1e-5), name


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run training in one process on stored groups."""
    path = tmp_path_factory.mktemp("one")
    jobs.logged_run(path, steps=STEPS, checkpoint_every=8)
    return path


def test_a_single_process_needs_no_other():
    assert (ranks.count(), ranks.rank(), ranks.is_first()) == (1, 0, True)
    assert ranks.gather(3) == [3]
    assert ranks.on_first(lambda: 4) == 4
    assert (ranks.every(False), ranks.some(True), ranks.largest(5), ranks.union_([True, False])) == (
        False,
        True,
        5,
        [True, False],
    )
    assert ranks.deal(jobs.GROUPS).own == list(jobs.GROUPS)


def test_groups_are_distributed_by_tokens(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ranks, "count", lambda: 3)
    groups = [Group([1], [Completion([2] * length)]) for length in (9, 1, 8, 2, 7, 3, 29)]
    assert list(ranks.deal(groups).owners) == [1, 1, 2, 1, 2, 1, 0]


def test_collectives_exchange_values(tmp_path: Path):
    first, second = world(2, tmp_path, jobs.messages)
    for told in (first, second):
        assert told["gathered"] == ["rank 0", "rank 1"]
        assert (told["first"], told["largest"]) == (10, 1)
        assert (told["every"], told["some"], told["union"]) == ((True, False), (False, True), [True, True, False])
        assert told["dealt"][0] == [1, 1, 0]
    assert (first["dealt"][1], second["dealt"][1]) == ([5, 6, 7, 8], [0, 1, 2, 3, 4])
    assert first["failures"] == [
        ("ZeroDivisionError", "integer division or modulo by zero"),
        ("DataError", "rank 1: a bad row"),
    ]
    assert second["failures"] == [
        ("TrainingError", "rank 0: ZeroDivisionError: integer division or modulo by zero"),
        ("DataError", "a bad row"),
    ]


def test_an_update_equals_that_of_one_process(tmp_path: Path):
    """Test plain, DDP, FSDP2; tied and untied heads; ranks with more groups, or none; with and without scoring."""
    cases: list[jobs.Case] = [
        (wrapped, kind, torch.float64, owners, objective, budget)
        for wrapped, kind in (("plain", "qwen2"), ("ddp", "qwen2"), ("fsdp2", "qwen2"), ("fsdp2", "llama"))
        for owners, objective, budget in UPDATES
    ]
    for told in world(2, tmp_path, jobs.updates, cases):
        for case, found in zip(cases, told, strict=True):
            assert max(found.values()) < 1e-12, (case, found)


@pytest.mark.slow
def test_replayed_experts_and_the_router_loss_equal_those_of_one_process(tmp_path: Path):
    """Counts cover all ranks, and each rank keeps the experts of its own rows."""
    cases = [
        (wrapped, owners, budget)
        for wrapped in ("plain", "ddp", "fsdp2")
        for owners, budget in ((TWO, 12), (ONE_HAS_NONE, 12), (TWO, 10_000))
    ]
    for told in world(2, tmp_path, jobs.routed_updates, cases):
        for case, found in zip(cases, told, strict=True):
            assert max(found.values()) < 1e-12, (case, found)


@pytest.mark.slow
def test_an_update_on_four_ranks_equals_that_of_one_process(tmp_path: Path):
    """Two ranks have no group at all. Experts that a rank's rows do not use get the other ranks' gradients."""
    cases: list[jobs.Case] = [
        (wrapped, kind, torch.float64, (2, 2, 0), objective, budget)
        for wrapped, kind in itertools.product(("plain", "ddp", "fsdp2"), ("llama", "qwen2", "qwen3_moe"))
        for _, objective, budget in UPDATES
    ]
    for told in world(4, tmp_path, jobs.updates, cases):
        for case, found in zip(cases, told, strict=True):
            assert max(found.values()) < 1e-12, (case, found)


@pytest.mark.slow
def test_float32_differs_by_rounding(tmp_path: Path):
    """Test full attention, sliding windows and recurrent layers."""
    cases: list[jobs.Case] = [
        (wrapped, kind, torch.float32, owners, "gvpo", 12)
        for wrapped, kind, owners in itertools.product(
            ("plain", "fsdp2"), ("llama", "gemma3", "qwen3_next"), (TWO, ONE_HAS_NONE)
        )
    ]
    for told in world(2, tmp_path, jobs.updates, cases):
        for found in told:
            assert found["gradient"] < 1e-6
            assert found["logprobs"] == found["scored"] == 0.0


def test_gradients_of_several_calls_add_up(tmp_path: Path):
    for told in world(2, tmp_path, jobs.gradients_of_two_calls):
        assert max(told) < 1e-15


@pytest.mark.parametrize("sharding", MOSTLY_FULL)
def test_twenty_steps_equal_those_of_one_process(tmp_path: Path, one_process: Path, sharding: str):
    """Three groups per step are distributed over two ranks: one has two, the other one."""
    path = tmp_path / "run"
    told = world(2, tmp_path, jobs.logged_run, path, steps=STEPS, checkpoint_every=8, sharding=sharding)
    assert told[0] == told[1]
    assert movement_gap(path, one_process) < 1e-5
    assert_close_lines(path, one_process)


@pytest.mark.slow
@pytest.mark.parametrize("sharding", SHARDINGS)
def test_twenty_steps_on_four_ranks_with_one_that_has_no_group(tmp_path: Path, one_process: Path, sharding: str):
    path = tmp_path / "run"
    world(4, tmp_path, jobs.logged_run, path, steps=STEPS, checkpoint_every=8, sharding=sharding)
    assert movement_gap(path, one_process) < 1e-5
    assert_close_lines(path, one_process)


@pytest.mark.slow
def test_a_run_resumes_on_other_numbers_of_ranks(tmp_path: Path, one_process: Path):
    """Runs on 1 -> 2 -> 4 -> 1 ranks, sharded and not, each stopped in the middle, have the same end."""
    path = tmp_path / "run"
    settings: dict[str, Any] = {"steps": STEPS, "checkpoint_every": 2}
    for count, stop, sharding in ((1, 5, "none"), (2, 9, "full"), (4, 13, "full"), (2, 17, "none")):
        began = runfiles.is_run(path)
        ends = run_world(count, tmp_path, jobs.stopped_run, path, stop, 0, resume=began, sharding=sharding, **settings)
        assert all(end.error is not None and end.error[0] == "RunStopped" for end in ends)
    world(1, tmp_path, jobs.logged_run, path, resume=True, **settings)
    assert movement_gap(path, one_process) < 1e-5
    assert_close_lines(path, one_process)


@pytest.mark.slow
def test_shards_compute_in_bfloat16(tmp_path: Path, one_process: Path):
    """The result is as close to float32 as bfloat16 is in one process: 4% of the movement."""
    path = tmp_path / "run"
    settings: dict[str, Any] = {"steps": STEPS, "checkpoint_every": 8, "compute_dtype": "bfloat16"}
    world(2, tmp_path, jobs.logged_run, path, sharding="full", checkpoint_verify=True, **settings)
    assert 1e-3 < movement_gap(path, one_process) < 0.1
    stored = safetensors.torch.load_file(path / f"checkpoints/{runfiles.step_name(STEPS)}/model.safetensors")
    assert all(tensor.dtype == torch.float32 for tensor in stored.values())


@pytest.mark.parametrize("sharding", MOSTLY_FULL)
def test_live_sampling_and_evaluation_are_distributed(tmp_path: Path, sharding: str):
    """Noise does not depend on the rank, so the samples equal those of one process."""
    settings: dict[str, Any] = {
        "steps": 2,
        "eval_every": 1,
        "checkpoint_verify": True,
        "prompts_per_step": 3,
        "passes": 2,
    }
    trainer(tmp_path / "one", **settings).train()
    told = world(2, tmp_path, jobs.online_run, tmp_path / "two", sharding=sharding, **settings)
    assert told[0] == told[1]
    assert_close_lines(tmp_path / "two", tmp_path / "one")
    assert 0 < lines(tmp_path / "two")[-1]["offpolicy/ess/last"] < 1  # of the rows of both ranks, as the lines are
    one, two = (runfiles.read_rollouts(runfiles.rollout_path(tmp_path / name, 2)) for name in ("one", "two"))
    assert [(row.group, row.row, row.tokens, row.reward) for row in one] == [
        (row.group, row.row, row.tokens, row.reward) for row in two
    ]


@pytest.mark.parametrize("sharding", MOSTLY_NONE)
def test_a_killed_rank_ends_the_run_which_can_be_resumed(tmp_path: Path, one_process: Path, sharding: str):
    path = tmp_path / "run"
    settings: dict[str, Any] = {"steps": STEPS, "checkpoint_every": 2, "sharding": sharding}
    left, killed = run_world(2, tmp_path, jobs.killed_run, path, 4, 1, **settings)
    assert killed.code == -signal.SIGKILL
    assert left.error is not None
    assert left.error[0] == "TrainingError"
    assert left.error[1].startswith("rank 0 of 2 has lost the others: one was killed, ")
    assert "resume with --resume" in left.error[1]
    assert [line["step"] for line in lines(path)][-1] == 3
    world(2, tmp_path, jobs.logged_run, path, resume=True, **settings)
    assert movement_gap(path, one_process) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("sharding", SHARDINGS)
def test_the_same_number_of_ranks_resumes_exactly(tmp_path: Path, sharding: str):
    settings: dict[str, Any] = {"steps": 5, "checkpoint_every": 2, "sharding": sharding}
    world(2, tmp_path, jobs.logged_run, tmp_path / "unbroken", **settings)
    run_world(2, tmp_path, jobs.killed_run, tmp_path / "run", 4, 0, **settings)
    world(2, tmp_path, jobs.logged_run, tmp_path / "run", resume=True, **settings)
    assert lines(tmp_path / "run") == lines(tmp_path / "unbroken")
    assert movement_gap(tmp_path / "run", tmp_path / "unbroken", step=5) == 0.0


def test_a_signal_to_one_rank_stops_all_after_the_step(tmp_path: Path):
    ends = run_world(2, tmp_path, jobs.stopped_run, tmp_path / "run", 2, 1, steps=5)
    assert [end.error and end.error[:2] for end in ends] == [
        ("RunStopped", "stopped after step 2 of 5, which is saved")
    ] * 2
    assert (tmp_path / "run/checkpoints/step-000002/model.safetensors").exists()


@pytest.mark.parametrize("sharding", MOSTLY_FULL)
def test_a_callback_of_one_rank_ends_the_run_of_all(tmp_path: Path, sharding: str):
    ends = world(2, tmp_path, jobs.watched_run, tmp_path / "run", jobs.StopsOn, steps=5, sharding=sharding)
    for summary, accuracy in ends:
        assert summary["steps"] == 2
        assert summary["accuracy_after"] == accuracy


def test_a_callback_that_raises_on_one_rank_ends_all(tmp_path: Path):
    first, second = run_world(2, tmp_path, jobs.watched_run, tmp_path / "run", jobs.FailsOn, steps=5)
    for end, where in ((first, "rank 1: "), (second, "")):
        assert end.error is not None
        assert end.error[:2] == (
            "TrainingError",
            f"{where}the callback FailsOn.on_step_end failed after step 2 (ValueError: broken); fix it, then resume "
            "the run",
        )


def test_an_error_on_one_rank_is_an_error_on_all(tmp_path: Path):
    first, second = run_world(2, tmp_path, jobs.short_of_memory, 1, 0, tmp_path / "memory")
    for end in (first, second):
        assert end.error is not None
        assert end.error[0] == "TrainingError"
        assert "out of memory with one completion per forward" in end.error[1]
    first, second = run_world(2, tmp_path, jobs.broken_disk, tmp_path / "disk")
    assert first.error is not None
    assert first.error[0] == "RunError"
    assert second.error is not None
    assert "No space left on device" in second.error[1]


def test_all_halve_their_budget_when_one_runs_out_of_memory(tmp_path: Path):
    settings: dict[str, Any] = {"steps": 3, "checkpoint_every": 3}
    jobs.logged_run(tmp_path / "one", **settings)
    world(2, tmp_path, jobs.short_of_memory, 1, 6, tmp_path / "two", **settings)
    assert lines(tmp_path / "two")[-1]["train/tokens_per_microbatch"] < 8192
    assert movement_gap(tmp_path / "two", tmp_path / "one", step=3) < 1e-5


@pytest.mark.slow
def test_a_budget_is_found_on_every_rank_and_checkpointing_works_on_shards(tmp_path: Path, one_process: Path):
    settings: dict[str, Any] = {"steps": STEPS, "checkpoint_every": 8}
    world(2, tmp_path, jobs.logged_run, tmp_path / "auto", tokens_per_microbatch="auto", **settings)
    world(2, tmp_path, jobs.logged_run, tmp_path / "full", sharding="full", gradient_checkpointing=True, **settings)
    assert movement_gap(tmp_path / "auto", one_process) < 1e-5
    assert movement_gap(tmp_path / "full", one_process) < 1e-5


@pytest.mark.slow
def test_adapters_are_trained_on_several_ranks(tmp_path: Path):
    settings: dict[str, Any] = {"steps": 8, "checkpoint_every": 8, "lora_rank": 2}
    jobs.logged_run(tmp_path / "one", **settings)
    world(2, tmp_path, jobs.logged_run, tmp_path / "two", **settings)
    assert_close_lines(tmp_path / "two", tmp_path / "one")
    one, two = (
        safetensors.torch.load_file(tmp_path / name / "checkpoints/step-000008/adapter_model.safetensors")
        for name in ("one", "two")
    )
    for name, tensor in one.items():
        assert float((two[name] - tensor).norm() / tensor.norm()) < 1e-5, name


def test_a_check_passes_on_every_rank(tmp_path: Path):
    """Only the first rank writes transformers' files, so other ranks cannot read their own save."""
    assert [end.error for end in run_world(2, tmp_path, jobs.checked_run, tmp_path / "run")] == [None, None]


def test_unsupported_models_are_rejected(tmp_path: Path):
    for end in run_world(2, tmp_path, jobs.unlike_models):
        assert end.error is not None
        assert end.error[:2] == (
            "ConfigError",
            "the ranks have different models; load the same one on each, or create it from one seed",
        )
    for end in run_world(2, tmp_path, jobs.split_model):
        assert end.error is not None
        assert end.error[:2] == (
            "ConfigError",
            "this model is already split; pass the whole model and set train.sharding='full'",
        )


def test_an_error_leaves_gradients_unchanged(tmp_path: Path):
    assert world(2, tmp_path, jobs.gradient_after_an_error) == [True, True]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_torchrun_ends_clearly_when_a_worker_is_killed_and_resumes(tmp_path: Path):
    """Test the command line: the run, the kill, the one-line error, the resumed run."""
    words = [*DEMO, "checkpoint.every=1", "warm_start.steps=2", "train.sharding=full", f"run.dir={tmp_path / 'run'}"]
    with launched(tmp_path, *words, "train.steps=100000") as process:
        wait_for(tmp_path / "run/checkpoints/step-000002/config.json", process)
        os.kill(worker(process.pid, rank=1), signal.SIGKILL)
        assert process.wait(120) != 0
    shown = (tmp_path / "output.txt").read_text()
    assert "gvpo: error: rank 0 of 2 has lost the others" in shown
    done = lines(tmp_path / "run")[-1]["step"]
    with launched(tmp_path, *words, "train.steps=100000", "--resume") as process:
        while lines(tmp_path / "run")[-1]["step"] <= done:
            assert process.poll() is None, (tmp_path / "output.txt").read_text()
            time.sleep(0.1)
        process.terminate()
        process.wait(120)
    assert "which is saved; resume with: gvpo train demo" in (tmp_path / "output.txt").read_text()


@contextlib.contextmanager
def launched(directory: Path, *words: str) -> "Iterator[subprocess.Popen[bytes]]":
    """Run `gvpo train demo` on two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    with (directory / "output.txt").open("wb") as output:
        process = subprocess.Popen(
            [*command, "-m", "gvpo.cli.main", "train", "demo", *words], stdout=output, stderr=subprocess.STDOUT
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def wait_for(file: Path, process: "subprocess.Popen[bytes]") -> None:
    while not file.exists():
        assert process.poll() is None, (file.parents[3] / "output.txt").read_text()
        time.sleep(0.1)


def worker(launcher: int, rank: int) -> int:
    """Run the process of a rank, according to its environment."""
    for place in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == launcher and f"RANK={rank}".encode() in (place / "environ").read_bytes().split(b"\0"):
                return int(place.name)
    raise AssertionError(f"no rank {rank}")


def test_two_ranks_sample_the_episodes_of_one(tmp_path: Path):
    given = {"steps": 1, "checkpoint_every": 0, "eval_problems": 4}
    jobs.episode_run(tmp_path / "one", **given)
    world(2, tmp_path, jobs.episode_run, tmp_path / "two", **given)
    for folder, step in ((runfiles.ROLLOUTS, 1), (runfiles.HELD_OUT, 0)):
        one, two = (
            without_times(runfiles.read_rollouts(runfiles.rollout_path(tmp_path / name, step, folder)))
            for name in ("one", "two")
        )
        assert [(row.group, row.tokens, row.mask, row.reward) for row in one] == [
            (row.group, row.tokens, row.mask, row.reward) for row in two
        ]
        assert [row.opening for row in one] == [row.opening for row in two]
        assert len({row.opening for row in one}) > 1


def test_two_ranks_have_the_gradient_of_one_on_episodes(tmp_path: Path):
    for told in world(2, tmp_path, jobs.episode_updates, ["gvpo", "grpo", "gspo_token", "gsspo"], (0, 1, 0), 40):
        assert max(told) < 1e-10
