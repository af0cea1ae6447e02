"""A run's directory as the trainer uses it: created once, appended to, truncated on resume.

This module decides what is written when, and ensures that a crash leaves intact files. Formats are in `gvpo.runfiles`,
checkpoints' contents in `gvpo.training.checkpoint.files`.
"""

import contextlib
import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Self

from gvpo import runfiles
from gvpo.errors import RunError
from gvpo.runfiles import RolloutRow

LOCK = ".lock"
"""File that `locked` locks; it names the process that has, or last had, the run."""

PACKAGES = ("gvpo", "torch", "transformers", "accelerate", "datasets", "numpy", "peft", "pyarrow")


def environment() -> dict[str, Any]:
    """Return the environment of the run: versions, platform, number of CPUs, the command, the time it started (UTC)."""
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "command": sys.argv,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


class RunDirectory:
    """The directory of one run. Use `RunDirectory.create` for a new run and `RunDirectory.open` to resume one.

    Files are written to a temporary file and renamed. Only metrics lines are appended: each is flushed to disk, and
    `truncate_after` removes a torn one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        config: str,
        facts: Mapping[str, Any] | None = None,
        inputs: Mapping[str, str] | None = None,
    ) -> Self:
        """Create a new run directory with its config.json, inputs.json and environment.json.

        Args:
            path: Path of the directory, created with its parents. It may exist if it contains no run.
            config: Resolved configuration as JSON text.
            facts: Entries to add to environment.json, such as devices.
            inputs: Fingerprints of the run's inputs besides settings, by name.

        Raises:
            RunError: If the directory already contains a run or cannot be written.
        """
        run = cls(Path(path))
        cls.require_free(run.path)
        _make(run.path)
        runfiles.write_json(run.path / runfiles.ENVIRONMENT, {**environment(), **(facts or {})})
        runfiles.write_json(run.path / runfiles.INPUTS, dict(inputs or {}))
        runfiles.write_text(run.config_path, config)  # from now on it is a run, and can be resumed
        runfiles.append(run.metrics_path, b"")
        return run

    @staticmethod
    def require_free(path: str | Path) -> None:
        """Raise RunError if `path` already contains a run.

        Raises:
            RunError: If there is already a run.
        """
        if runfiles.is_run(Path(path)):
            raise RunError(f"{Path(path)} already contains a run; choose another run.dir, or use --resume")

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open the directory of an existing run.

        Raises:
            RunError: If there is no run at `path`, or it stopped before its settings were written.
        """
        run = cls(Path(path))
        if runfiles.is_run(run.path) and not run.config_path.is_file():
            raise RunError(f"the run in {run.path} has no {runfiles.CONFIG}; remove the directory and start again")
        if not run.config_path.is_file():
            raise RunError(f"there is no run in {run.path}; start one without --resume, or correct run.dir")
        return run

    @property
    def config_path(self) -> Path:
        """Path of the resolved configuration, JSON."""
        return self.path / runfiles.CONFIG

    @property
    def metrics_path(self) -> Path:
        """Path of the metrics, one JSON line per step."""
        return self.path / runfiles.METRICS

    @property
    def report_path(self) -> Path:
        """Path of the run's report."""
        return self.path / runfiles.REPORT

    @property
    def checkpoints(self) -> Path:
        """Directory of checkpoints, `step-%06d` each."""
        return self.path / runfiles.CHECKPOINTS

    def checkpoint_path(self, step: int) -> Path:
        """Return the checkpoint directory of a step."""
        return self.checkpoints / runfiles.step_name(step)

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the metrics lines so far."""
        return runfiles.read_metrics(self.metrics_path)

    def read_summary(self) -> dict[str, Any]:
        """Return summary.json; {} if the run has not finished."""
        return runfiles.read_json(self.path / runfiles.SUMMARY)

    def read_inputs(self) -> dict[str, str]:
        """Return inputs.json: the fingerprints of the data and the rewards that the run started with."""
        return {name: str(value) for name, value in runfiles.read_json(self.path / runfiles.INPUTS).items()}

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Append a step's line and wait until it is on disk.

        Args:
            line: The key "step" and the metrics. NaN and infinities become null and are listed under "nonfinite".

        Raises:
            RunError: If the line cannot be written.
        """
        runfiles.append(self.metrics_path, runfiles.metrics_line(line).encode())

    def replace_last(self, line: Mapping[str, Any]) -> None:
        """Replace the last line of the metrics. It is never missing from the file, even after a crash.

        Raises:
            RunError: If the file cannot be written.
        """
        before = self.metrics_path.read_bytes().splitlines(keepends=True)[:-1]
        runfiles.write_bytes(self.metrics_path, b"".join([*before, runfiles.metrics_line(line).encode()]))

    def write_rollouts(self, step: int, rows: Sequence[RolloutRow], folder: str = runfiles.ROLLOUTS) -> None:
        """Write completions to FOLDER/step-%06d.parquet: those of a step, or those of an evaluation after the step.

        Raises:
            RunError: If the file cannot be written.
        """
        self._require_present()
        runfiles.write_rollouts(runfiles.rollout_path(self.path, step, folder), rows)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json: `accuracy_before`, `accuracy_after`, `steps`, `seconds`, `report`, and free keys.

        Raises:
            RunError: If the file cannot be written.
        """
        self._require_present()
        runfiles.write_json(self.path / runfiles.SUMMARY, summary)

    def reopen(self) -> None:
        """Remove the summary and the report of a finished run that continues with more steps."""
        for path in (self.path / runfiles.SUMMARY, self.report_path):
            path.unlink(missing_ok=True)

    def truncate_after(self, step: int) -> None:
        """Remove what was written after `step`, so that a resumed run writes it again.

        Metrics lines (a torn one too) are truncated. Files of rollouts and evaluations and leftovers of unfinished
        writes are removed, and so are the summary and the report if they cover later steps. Checkpoints are left
        unchanged.

        Raises:
            RunError: If the files cannot be read or changed.
        """
        runfiles.truncate_metrics(self.metrics_path, step)
        late, leftovers = [], [*self.path.glob(".*.tmp")]
        for folder in (runfiles.ROLLOUTS, runfiles.HELD_OUT):
            steps = runfiles.rollout_steps(self.path, folder)
            late += [runfiles.rollout_path(self.path, each, folder) for each in steps if each > step]
            leftovers += (self.path / folder).glob(".*.tmp")
        finished = self.read_summary().get("steps")
        is_outdated = isinstance(finished, int) and finished > step
        outdated = [self.path / runfiles.SUMMARY, self.report_path] if is_outdated else []
        for path in [*late, *leftovers, *outdated]:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise runfiles.cannot_write(path, error) from error

    def _require_present(self) -> None:
        """Raise RunError if the run directory was removed during the run, so that it is not recreated in part."""
        if not self.config_path.exists():
            raise RunError(f"run directory {self.path} is gone; bring it back, then use --resume")


def free_directory(parent: str | Path, name: str) -> Path:
    """Return `parent/name`, or `parent/name-2`, `-3`, ... if that exists."""
    number = 1
    while (path := Path(parent) / (name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    return path


@contextlib.contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Lock a run directory, created if needed, for this process.

    The system releases the lock when the process ends in any way, so no lock is ever stale. File systems without locks
    (and Windows) are used without one.

    Raises:
        RunError: If another process has the lock, or the directory cannot be written.
    """
    directory = Path(path)
    _make(directory)
    try:
        descriptor = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise runfiles.cannot_write(directory / LOCK, error) from error
    try:
        _lock(descriptor, directory)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, directory: Path) -> None:
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(descriptor, 32).decode(errors="replace").strip()
        raise RunError(
            f"another process (pid {owner or 'unknown'}) is working in {directory}; wait for it to end or stop it, or "
            "choose another run.dir"
        ) from None
    except OSError:  # this file system has no locks
        return
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
    except OSError as error:
        raise runfiles.cannot_write(directory / LOCK, error) from error


def _make(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make run directory {directory}: {error.strerror}; choose another run.dir") from error
