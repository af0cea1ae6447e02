"""Tests of system faults in a run's files: each is a one-line error, and written data is never lost."""

import errno
import hashlib
import json
import os
import resource
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from gvpo import runfiles
from gvpo.errors import CheckpointError, GvpoWarning, RunError, TrainingError
from gvpo.report import write_report
from gvpo.system_errors import explained, is_out_of_memory
from gvpo.training.checkpoint.files import Checkpoints, TrainerState, load
from tests.training.toy import lines, model, tokenizer, trainer

SETTINGS: dict[str, Any] = {
    "steps": 3,
    "checkpoint_every": 1,
    "checkpoint_keep": 3,
    "rollouts_every": 1,
    "eval_problems": 0,
    "prompts_per_step": 2,
}


def save(directory: Path, step: int, optimizer: dict[str, Any] | None = None) -> Path:
    moments = {"state": {0: {"exp_avg": torch.zeros(50_000)}}, "param_groups": [{"params": [0]}]}
    return Checkpoints(directory, 3).save(TrainerState(step=step), model(), tokenizer(), optimizer or moments, None)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Make the system reject writes beyond `size` per file, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_at_the_start_is_a_one_line_error(tmp_path: Path):
    with files_of_at_most(0), pytest.raises(RunError, match=r"cannot write \S*\.lock: .*make room"):
        trainer(tmp_path / "run", **SETTINGS).train()


def test_a_disk_that_fills_during_a_checkpoint_is_a_one_line_error_and_leaves_no_part_of_it(tmp_path: Path):
    files = {file.name: file.stat().st_size for file in save(tmp_path, 1).rglob("*") if file.is_file()}
    largest = files["optimizer.pt"]
    assert largest > 1.5 * max(size for name, size in files.items() if name != "optimizer.pt")
    for size in range(0, largest, largest // 24):  # the last of them are of optimizer.pt
        with files_of_at_most(size), pytest.raises(CheckpointError) as refused:
            save(tmp_path, 2)
        assert "File too large" in str(refused.value)
        assert "make room or fix the directory, then use --resume" in str(refused.value)
        assert "\n" not in str(refused.value)
        assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]
    assert save(tmp_path, 2).is_dir()


class Foreign:
    """An object that no checkpoint contains, since loading it could run any code."""


def rewrite(checkpoint: Path, name: str, data: bytes) -> None:
    """Write other contents with a matching checksum, as another program or another version would."""
    (checkpoint / name).write_bytes(data)
    manifest = json.loads((checkpoint / "trainer/manifest.json").read_text())
    manifest[name] = hashlib.sha256(data).hexdigest()
    (checkpoint / "trainer/manifest.json").write_text(json.dumps(manifest))


def foreign(tmp_path: Path) -> bytes:
    torch.save({"state": Foreign(), "param_groups": []}, tmp_path / "foreign.pt")
    return (tmp_path / "foreign.pt").read_bytes()


@pytest.mark.parametrize(
    ("name", "data", "named"),
    [
        ("trainer/optimizer.pt", None, "cannot be .*: a .pt file in trainer/ contains objects that"),
        ("trainer/optimizer.pt", b"", "cannot be read by this version"),
        ("trainer/optimizer.pt", b"PK\x03\x04 no archive", "cannot be read by this version"),
        ("trainer/state.json", b"{", "cannot be read by this version"),
        ("trainer/state.json", b'{"steps": 2}', "cannot be read by this version"),
        ("trainer/state.json", b"[]", "cannot be read by this version"),
        ("trainer/state.json", b"[" * 100_000, "cannot be read by this version"),
    ],
)
def test_a_checkpoint_of_another_program_is_skipped(tmp_path: Path, name: str, data: bytes | None, named: str):
    save(tmp_path / "run", 1)
    rewrite(save(tmp_path / "run", 2), name, foreign(tmp_path) if data is None else data)
    with pytest.warns(GvpoWarning, match=f"step-000002 {named}.*; trying the previous one") as warned:
        loaded = Checkpoints(tmp_path / "run", 3).newest()
    assert loaded is not None
    assert loaded.state.step == 1
    assert "\n" not in str(warned[0].message)


def test_the_error_about_an_optimizer_of_another_model_names_the_checkpoint(tmp_path: Path):
    trainer(tmp_path / "run", **SETTINGS).train()
    checkpoint = tmp_path / "run/checkpoints/step-000003"
    torch.save({"state": {}, "param_groups": [{"params": [0, 1]}]}, tmp_path / "other.pt")
    rewrite(checkpoint, "trainer/optimizer.pt", (tmp_path / "other.pt").read_bytes())
    with pytest.raises(CheckpointError, match=r"step-000003 does not fit the model .*; remove it to resume from the"):
        trainer(tmp_path / "run", **SETTINGS).train(resume=True)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EMFILE, errno.ESTALE])
def test_a_checkpoint_that_may_be_intact_is_not_skipped(tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch):
    """Otherwise a missing permission would repeat steps and replace a checkpoint."""
    save(tmp_path, 1)
    save(tmp_path, 2)

    def refused(path: Path) -> str:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr("gvpo.training.checkpoint.files._sha256", refused)
    with pytest.raises(RunError, match=f"step-000002 cannot be read: .*{os.strerror(number)}; make it readable"):
        Checkpoints(tmp_path, 3).newest()


def test_a_bad_sector_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save(tmp_path, 1)

    def refused(path: Path) -> str:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr("gvpo.training.checkpoint.files._sha256", refused)
    with pytest.raises(CheckpointError, match="Input/output error"):
        load(tmp_path / "step-000001")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("finished") / "run"
    trainer(path, **SETTINGS).train()
    return path


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.mark.parametrize("data", [b"", b"{", b'{"run": 1}', b"[]", b'{"run": {"dirs": 1}}', b"\xff", b"[" * 100_000])
def test_unreadable_settings_are_a_one_line_error(run: Path, data: bytes):
    (run / "config.json").write_bytes(data)
    with pytest.raises(
        RunError, match=r"run/config\.json cannot be read \(.*\); replace it with the file of another"
    ) as refused:
        trainer(run, **SETTINGS).train(resume=True)
    assert "\n" not in str(refused.value)
    assert len(list(run.glob("checkpoints/step-*"))) == 3


def test_the_error_names_a_corrupt_line_of_metrics_before_the_checkpoint_and_nothing_is_truncated(run: Path):
    before = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(b"".join([before[0], b"\0" * 40 + b"\n", *before[2:]]))
    with pytest.raises(RunError, match=r"metrics\.jsonl line 2 is damaged; remove that line"):
        trainer(run, **SETTINGS).train(resume=True)
    assert (run / "metrics.jsonl").read_bytes().endswith(before[2])
    (run / "metrics.jsonl").write_bytes(b"".join([before[0], *before[2:]]))
    trainer(run, **SETTINGS).train(resume=True)
    assert [line["step"] for line in lines(run)] == [1, 3]


def _inside(file: Path, column: str) -> int:
    """Return the position of a byte in the data of a column of a Parquet file."""
    from pyarrow import parquet

    group = parquet.ParquetFile(file).metadata.row_group(0)
    chunks = [group.column(index) for index in range(group.num_columns)]
    chunk = next(each for each in chunks if each.path_in_schema == column)
    begin = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
    return int(begin + chunk.total_compressed_size - 8)


@pytest.mark.parametrize("damage", ["empty", "half", "flipped", "text", "directory", "other columns"])
def test_the_report_skips_a_corrupt_rollout_file(run: Path, damage: str):
    file = runfiles.rollout_path(run, 2)
    whole = file.read_bytes()
    middle = _inside(file, "text")
    if damage == "directory":
        file.unlink()
        file.mkdir()
    elif damage == "other columns":
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.table({"step": [2]}), file)
    else:
        flipped = whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :]
        file.write_bytes({"empty": b"", "half": whole[:middle], "flipped": flipped, "text": b"no parquet"}[damage])
    with pytest.warns(
        GvpoWarning,
        match=r"(cannot read rollouts .*)?step-000002.parquet(:| is not a rollout file:) .*; the report leaves it out",
    ):
        page = write_report([run], run / "report.html").read_text()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        file.rmdir() if damage == "directory" else file.unlink()
        without = write_report([run], run / "report.html").read_text()
    assert damage == "flipped" or page == without  # the flipped bit is in a text: numbers of the step are still shown


OUT_OF_MEMORY = [
    MemoryError(),
    MemoryError("std::bad_alloc"),
    RuntimeError("std::bad_alloc"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to"),
    RuntimeError("unable to mmap 4096 bytes from file <model.safetensors>: Cannot allocate memory (12)"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
    torch.OutOfMemoryError("HIP out of memory. Tried to allocate 2.00 GiB"),
    torch.OutOfMemoryError(),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: str(error)[:30] or type(error).__name__)
def test_every_message_about_exhausted_memory_is_known(error: Exception):
    assert is_out_of_memory(error)
    with pytest.raises(TrainingError, match="step 1: out of memory; lower"), explained(lambda: "step 1"):
        raise error
