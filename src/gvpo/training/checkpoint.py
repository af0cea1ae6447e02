"""Checkpoints: written beside and renamed, verified by checksum when read.

checkpoints/step-000100/
  config.json model.safetensors tokenizer.json ...   what transformers, vLLM and PEFT load
  trainer/state.json                                 step, updates, seconds, best so far, ...
  trainer/optimizer.pt
  trainer/reference.safetensors                      where the reference is a stored copy
  trainer/manifest.json                              sha256 of every other file
"""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch

from gvpo.errors import CheckpointError, GvpoWarning
from gvpo.policy.model import save_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MANIFEST = "trainer/manifest.json"


@dataclass
class TrainerState:
    """What a run is besides its weights.

    Args:
        step: the last finished step.
        seconds: of training so far, over all its sittings.
        non_finite: updates skipped in a row because loss or gradient was not finite.
        empty_steps: steps in a row in which no group could be trained on.
        best_accuracy: best sampled held-out accuracy so far, and its step.
        evaluations_since_best: for early stopping.
        before: the evaluation before training, by metric; {} without held-out problems.
        latest: the newest evaluation.
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


@dataclass(frozen=True)
class Loaded:
    """A checkpoint that passed its checksums; the model is at `path`."""

    path: Path
    state: TrainerState
    optimizer: dict[str, Any]
    reference: dict[str, torch.Tensor] | None


class Checkpoints:
    """The checkpoints of a run.

    Args:
        directory: `<run>/checkpoints`.
        keep: how many of the newest stay; the best by evaluation stays too.
    """

    def __init__(self, directory: Path, keep: int) -> None:
        self._directory, self._keep = directory, keep

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step lies."""
        return self._directory / f"step-{step:06d}"

    def save(
        self,
        state: TrainerState,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        optimizer: Mapping[str, Any],
        reference: Mapping[str, torch.Tensor] | None,
    ) -> Path:
        """Write a checkpoint; it appears under its name only when it is whole."""
        target = self.path(state.step)
        beside = target.with_name(f".{target.name}.partial")
        shutil.rmtree(beside, ignore_errors=True)
        (beside / "trainer").mkdir(parents=True)
        save_model(model, tokenizer, beside)
        torch.save(dict(optimizer), beside / "trainer/optimizer.pt")
        if reference is not None:
            safetensors.torch.save_file(dict(reference), beside / "trainer/reference.safetensors")
        (beside / "trainer/state.json").write_text(json.dumps(asdict(state), indent=2))
        (beside / MANIFEST).write_text(json.dumps(_checksums(beside), indent=2))
        _sync(beside)
        shutil.rmtree(target, ignore_errors=True)
        beside.rename(target)
        _fsync(self._directory)
        self._prune(state)
        return target

    def newest(self) -> Loaded | None:
        """The newest checkpoint that is whole; damaged ones are named in a warning and passed over."""
        for path in sorted(self._directory.glob("step-*"), reverse=True):
            try:
                return load(path)
            except CheckpointError as error:
                warnings.warn(f"{error}; trying the one before", GvpoWarning, stacklevel=2)
        return None

    def _prune(self, state: TrainerState) -> None:
        existing = sorted(self._directory.glob("step-*"))
        past = [path for path in existing if path <= self.path(state.step)]  # later ones were damaged, or not resumed
        spared = {*past[-self._keep :], self.path(state.best_step)}
        for path in existing:
            if path not in spared:
                shutil.rmtree(path)


def load(path: Path) -> Loaded:
    """Read a checkpoint.

    Raises:
        CheckpointError: a file is missing, truncated or changed; the message names it.
    """
    _verify(path)
    reference = path / "trainer/reference.safetensors"
    return Loaded(
        path=path,
        state=TrainerState(**json.loads((path / "trainer/state.json").read_text())),
        optimizer=torch.load(path / "trainer/optimizer.pt", weights_only=True),
        reference=safetensors.torch.load_file(reference) if reference.exists() else None,
    )


def _verify(path: Path) -> None:
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError):
        raise CheckpointError(f"checkpoint {path} has no readable {MANIFEST}: it is incomplete") from None
    for name, checksum in manifest.items():
        file = path / name
        if not file.exists():
            raise CheckpointError(f"checkpoint {path} is damaged: {name} is missing")
        if _sha256(file) != checksum:
            raise CheckpointError(f"checkpoint {path} is damaged: {name} is not what was written")


def _checksums(directory: Path) -> dict[str, str]:
    files = sorted(file for file in directory.rglob("*") if file.is_file())
    return {str(file.relative_to(directory)): _sha256(file) for file in files}


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(directory: Path) -> None:
    """Files first, then the folders that name them."""
    for path in sorted(directory.rglob("*"), reverse=True):
        _fsync(path)
    _fsync(directory)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
