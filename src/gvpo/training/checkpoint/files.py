"""Checkpoints: written to a temporary directory and renamed, verified by checksum when read.

checkpoints/step-000100/
  config.json model.safetensors tokenizer.json ...   files that transformers, vLLM and PEFT load; for a LoRA run
                                                     adapter_config.json and adapter_model.safetensors instead
  README.md                                          the model card
  trainer/state.json                                 step, updates, seconds, best so far, ...
  trainer/optimizer.pt
  trainer/reference.safetensors                      if the reference is stored; empty: the adapter switched off
  trainer/source.pt                                  if the source of groups has a state
  trainer/manifest.json                              sha256 of every other file
"""

import errno
import hashlib
import io
import json
import os
import pickle
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
import torch

from gvpo import notices
from gvpo.errors import CheckpointError, ModelError, RunError
from gvpo.model import lora
from gvpo.model.model import save_model
from gvpo.system_errors import is_out_of_memory, system_error

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MANIFEST = "trainer/manifest.json"
REQUIRED = {"trainer/state.json", "trainer/optimizer.pt"}
SOURCE = "source.pt"
MODEL = {"config.json", lora.CONFIG_FILE}
"""Files that mark a directory as a whole model or an adapter; one of them is present."""
_DAMAGE = (errno.EIO, errno.EISDIR, errno.ENOENT, errno.ENOTDIR)
"""Errors by which the system reports that a file itself is bad, rather than temporarily unreadable or not permitted."""
_BUFFER = 2**20
"""Minimum number of bytes per write to optimizer.pt; torch writes many small parts."""
PARTIAL, REMOVED = ".partial", ".removed"
"""Suffixes of the hidden names of a checkpoint that is being written, and of one that is being removed."""


@dataclass
class TrainerState:
    """State of a run besides its weights.

    Args:
        step: Last finished step.
        seconds: Training time so far, over all sessions (the run and its resumes).
        non_finite: Number of updates skipped in a row because loss or gradient was not finite.
        empty_steps: Number of steps in a row in which no group could be trained on.
        best_accuracy: Best sampled held-out accuracy so far, and its step.
        evaluations_since_best: Number of evaluations since the best one, for early stopping.
        before: Evaluation before training, by metric; {} without held-out problems.
        latest: Latest evaluation.
        budget: Token budget, as set and as resolved (`gvpo.training.budget`).
        multipliers: Multipliers of constrained GRPO's costs, by name.
        callbacks: States of the callbacks that export theirs, by the name of their class.
    """

    step: int = 0
    seconds: float = 0.0
    non_finite: int = 0
    empty_steps: int = 0
    best_accuracy: float | None = None
    best_step: int = 0
    evaluations_since_best: int = 0
    before: dict[str, float] = field(default_factory=dict)
    latest: dict[str, float] = field(default_factory=dict)
    budget: dict[str, Any] = field(default_factory=dict)
    multipliers: dict[str, float] = field(default_factory=dict)
    callbacks: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A checkpoint that passed its checksums, with the model at `path`. `source` is {} if no state was stored."""

    path: Path
    state: TrainerState
    optimizer: dict[str, Any]
    reference: dict[str, torch.Tensor] | None
    source: dict[str, Any]


class Checkpoints:
    """The checkpoints of a run.

    Args:
        directory: Directory `<run>/checkpoints`.
        keep: Number of latest checkpoints to keep; the best by evaluation is kept too.
    """

    def __init__(self, directory: Path, keep: int) -> None:
        self._directory, self._keep = directory, keep

    def path(self, step: int) -> Path:
        """Return the path of a step's checkpoint."""
        return self._directory / f"step-{step:06d}"

    def save(
        self,
        state: TrainerState,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        optimizer: Mapping[str, Any],
        reference: Mapping[str, torch.Tensor] | None,
        card: str | None = None,
        weights: Mapping[str, torch.Tensor] | None = None,
        source: Mapping[str, Any] | None = None,
    ) -> Path:
        """Write a checkpoint, with its model card if there is one; it appears under its name only when it is complete.

        If the model is split over ranks, `weights`, `optimizer` and `reference` must be gathered first.

        Raises:
            CheckpointError: If it cannot be written. Earlier checkpoints stay intact, and the partial one is removed.
        """
        target = self.path(state.step)
        beside = target.with_name(f".{target.name}{PARTIAL}")
        try:
            self.clean()
            self._directory.mkdir(exist_ok=True)  # without parents, so a missing run directory is not recreated
            (beside / "trainer").mkdir(parents=True)
            save_model(model, tokenizer, beside, weights=weights)
            if card is not None:
                (beside / "README.md").write_text(card, encoding="utf-8")
            _write_trainer(beside / "trainer", state, optimizer, reference, source)
            (beside / MANIFEST).write_text(json.dumps(_checksums(beside), indent=2))
            _sync(beside)
            self._put(beside, target)
            self._prune(state)
        except Exception as error:
            shutil.rmtree(beside, ignore_errors=True)  # it takes the room that is missing
            if not _is_refused_write(error):
                raise
            raise CheckpointError(
                f"cannot write checkpoint {target}: {_reason(error)}; make room or fix the directory, then use --resume"
            ) from error
        return target

    def newest(self) -> LoadedCheckpoint | None:
        """Return the latest intact checkpoint. Skip corrupt ones with a warning.

        Returns:
            The checkpoint; None if there is none, not even a corrupt one.

        Raises:
            CheckpointError: If there are checkpoints and all are corrupt.
        """
        damaged = None
        for path in sorted(self._directory.glob("step-*"), reverse=True):
            try:
                return load(path)
            except CheckpointError as error:
                damaged = error
                notices.warn(f"{error}; trying the previous one")
        if damaged is not None:
            raise CheckpointError(
                f"no checkpoint in {self._directory} is intact; restore one, or remove that directory to train from "
                "the start"
            ) from damaged
        return None

    def clean(self) -> None:
        """Remove the remains of checkpoints that were being written or removed during a crash."""
        for path in [*self._directory.glob(f".*{PARTIAL}"), *self._directory.glob(f".*{REMOVED}")]:
            shutil.rmtree(path)

    def _put(self, beside: Path, target: Path) -> None:
        """Move a complete checkpoint to its name; a corrupt one of that name, which resuming skipped, is removed."""
        if target.exists():
            self._set_aside(target)
        beside.rename(target)
        _fsync(self._directory)
        _fsync(self._directory.parent)

    def _prune(self, state: TrainerState) -> None:
        existing = sorted(self._directory.glob("step-*"))
        past = [path for path in existing if path <= self.path(state.step)]  # later ones were corrupt, or not resumed
        spared = {*past[-self._keep :], self.path(state.best_step)}
        for path in existing:
            if path not in spared:
                self._set_aside(path)
        self.clean()

    def _set_aside(self, path: Path) -> None:
        """Rename a checkpoint, then remove its files, so that an interrupted removal leaves no half under its name."""
        path.rename(path.with_name(f".{path.name}{REMOVED}"))


def _write_trainer(
    directory: Path,
    state: TrainerState,
    optimizer: Mapping[str, Any],
    reference: Mapping[str, torch.Tensor] | None,
    source: Mapping[str, Any] | None,
) -> None:
    _write_pickle(directory / "optimizer.pt", optimizer)
    if source:
        _write_pickle(directory / SOURCE, source)
    if reference is not None:
        safetensors.torch.save_file(dict(reference), directory / "reference.safetensors")
    (directory / "state.json").write_text(json.dumps(asdict(state), indent=2))


def _write_pickle(path: Path, values: Mapping[str, Any]) -> None:
    with path.open("wb", buffering=0) as raw, io.BufferedWriter(raw, _BUFFER) as file:
        torch.save(dict(values), file)  # given a path instead, torch's zip writer hides the system's error


def _is_refused_write(error: BaseException) -> bool:
    """Return whether the system rejected a write, in the words of Python, safetensors, torch.save or `save_model`.

    After a system error, torch.save's zip writer raises a second error about its position; the first is its context.
    """
    if isinstance(error, ModelError) and error.__cause__ is not None:
        return _is_refused_write(error.__cause__)
    if is_out_of_memory(error):
        return False
    return isinstance(error, safetensors.SafetensorError) or system_error(error) is not None


def _reason(error: Exception) -> str:
    """Return the reason for an error in one line."""
    refused = system_error(error)
    words = refused.strerror if refused is not None and refused.strerror else str(error)
    return " ".join(words.split())


def load(path: Path, *, verified: bool = False) -> LoadedCheckpoint:
    """Read a checkpoint.

    Args:
        path: Directory of the checkpoint.
        verified: Whether another process has just compared the checksums.

    Raises:
        CheckpointError: If a file is missing, truncated or changed, or has contents that this version cannot read; the
            message names it.
        RunError: If the system does not let it be read; the files may be intact.
    """
    if not verified:
        verify(path)
    reference, source = path / "trainer/reference.safetensors", path / "trainer" / SOURCE
    try:
        return LoadedCheckpoint(
            path=path,
            state=TrainerState(**json.loads((path / "trainer/state.json").read_text())),
            optimizer=torch.load(path / "trainer/optimizer.pt", weights_only=True),
            reference=safetensors.torch.load_file(reference) if reference.exists() else None,
            source=torch.load(source, weights_only=True) if source.exists() else {},
        )
    except pickle.UnpicklingError as error:
        reason = "a .pt file in trainer/ contains objects that are neither tensors nor plain values"
        raise CheckpointError(f"checkpoint {path} cannot be read by this version: {reason}") from error
    except OSError as error:
        raise _unreadable(path, "", error) from error
    except Exception as error:  # a state with other fields, or any error of torch and safetensors
        if is_out_of_memory(error):
            raise
        raise CheckpointError(f"checkpoint {path} cannot be read by this version: {_reason(error)}") from error


def verify(path: Path) -> None:
    """Compare every file of a checkpoint, including the weights, with the checksums that were written with it.

    Raises:
        CheckpointError: If a file is missing, truncated or changed; the message names it.
        RunError: If the system does not let it be read; the files may be intact.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        raise CheckpointError(f"checkpoint {path} has no readable {MANIFEST}: it is incomplete") from None
    except OSError as error:
        raise _unreadable(path, f"{MANIFEST}: ", error) from error
    if not isinstance(manifest, dict) or not manifest.keys() >= REQUIRED or not manifest.keys() & MODEL:
        raise CheckpointError(f"checkpoint {path} is corrupt: {MANIFEST} is not what was written")
    for name, checksum in manifest.items():
        _verify_file(path, name, checksum)


def _verify_file(checkpoint: Path, name: str, checksum: str) -> None:
    try:
        found = _sha256(checkpoint / name)
    except FileNotFoundError:
        raise CheckpointError(f"checkpoint {checkpoint} is corrupt: {name} is missing") from None
    except OSError as error:
        raise _unreadable(checkpoint, f"{name}: ", error) from error
    if found != checksum:
        raise CheckpointError(f"checkpoint {checkpoint} is corrupt: {name} is not what was written")


def _unreadable(checkpoint: Path, name: str, error: OSError) -> RunError:
    """Return the error for a file that the system does not read; only a bad disk is a reason to skip the checkpoint."""
    if error.errno in _DAMAGE:
        return CheckpointError(f"checkpoint {checkpoint} is corrupt: {name}{_reason(error)}")
    return RunError(
        f"checkpoint {checkpoint} cannot be read: {name}{_reason(error)}; make it readable, then use --resume"
    )


def _checksums(directory: Path) -> dict[str, str]:
    files = sorted(file for file in directory.rglob("*") if file.is_file())
    return {str(file.relative_to(directory)): _sha256(file) for file in files}


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(directory: Path) -> None:
    """Flush the files of a directory to disk, then the folders that name them."""
    for path in sorted(directory.rglob("*"), reverse=True):
        _fsync(path)
    _fsync(directory)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
