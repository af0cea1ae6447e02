"""A run's directory as the trainer sees it: made once, appended to, cut on resume.

Knows what is written when and that a crash leaves whole files; formats are in `gvpo.runfiles`, checkpoints' contents
in `gvpo.training.checkpoint.files`.
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
"""The file that `locked` holds; it tells the process that has, or last had, the run."""

PACKAGES = ("gvpo", "torch", "transformers", "accelerate", "datasets", "numpy", "peft", "pyarrow")


def environment() -> dict[str, Any]:
    """What the run ran on: versions, platform, number of CPUs, the command, the time it started (UTC)."""
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

    All writes but the appended metrics line are written beside and renamed; that line is flushed to the disk, and a
    torn one is cut by `truncate_after`.
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
        """Make a new run directory with its config.json, inputs.json and environment.json.

        Args:
            path: where; made with its parents. It may exist as long as it holds no run.
            config: the resolved configuration, JSON text.
            facts: what to add to environment.json, such as devices.
            inputs: what the run is given besides settings, by name, each with its fingerprint.

        Raises:
            RunError: there is a run already, or the place cannot be written.
        """
        run = cls(Path(path))
        cls.require_free(run.path)
        _make(run.path)
        runfiles.write_json(run.path / runfiles.ENVIRONMENT, {**environment(), **(facts or {})})
        runfiles.write_json(run.path / runfiles.INPUTS, dict(inputs or {}))
        runfiles.write_text(run.config_path, config)  # from here on it is a run, and can be resumed
        runfiles.append(run.metrics_path, b"")
        return run

    @staticmethod
    def require_free(path: str | Path) -> None:
        """Nothing, if a run can be started at `path`.

        Raises:
            RunError: there is a run already.
        """
        if runfiles.is_run(Path(path)):
            raise _taken(Path(path))

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """An existing run's directory.

        Raises:
            RunError: there is no run at `path`, or it stopped before its settings were written.
        """
        run = cls(Path(path))
        if runfiles.is_run(run.path) and not run.config_path.is_file():
            raise RunError(f"the run in {run.path} has no {runfiles.CONFIG}; remove the directory and start anew")
        if not run.config_path.is_file():
            raise RunError(f"there is no run in {run.path}; start one without --resume, or correct run.dir")
        return run

    @property
    def config_path(self) -> Path:
        """The resolved configuration, JSON."""
        return self.path / runfiles.CONFIG

    @property
    def metrics_path(self) -> Path:
        """One JSON line a step."""
        return self.path / runfiles.METRICS

    @property
    def report_path(self) -> Path:
        """Where the run's report goes."""
        return self.path / runfiles.REPORT

    @property
    def checkpoints(self) -> Path:
        """The directory of checkpoints, `step-%06d` each."""
        return self.path / runfiles.CHECKPOINTS

    def checkpoint_path(self, step: int) -> Path:
        """The checkpoint directory of a step."""
        return self.checkpoints / runfiles.step_name(step)

    def read_metrics(self) -> list[dict[str, Any]]:
        """The metrics lines so far."""
        return runfiles.read_metrics(self.metrics_path)

    def read_summary(self) -> dict[str, Any]:
        """summary.json; {} if the run has not finished."""
        return runfiles.read_json(self.path / runfiles.SUMMARY)

    def read_inputs(self) -> dict[str, str]:
        """Return inputs.json: the fingerprints of the data and the rewards that the run started with."""
        return {name: str(value) for name, value in runfiles.read_json(self.path / runfiles.INPUTS).items()}

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Adds a step's line and waits until it is on the disk.

        Args:
            line: "step" and the metrics. NaN and infinities become null and are named under "nonfinite".

        Raises:
            RunError: the line cannot be written.
        """
        runfiles.append(self.metrics_path, runfiles.metrics_line(line).encode())

    def write_rollouts(self, step: int, rows: Sequence[RolloutRow]) -> None:
        """Writes a step's completions to rollouts/step-%06d.parquet.

        Raises:
            RunError: the file cannot be written.
        """
        self._require_present()
        runfiles.write_rollouts(runfiles.rollout_path(self.path, step), rows)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes summary.json: `accuracy_before`, `accuracy_after`, `steps`, `seconds`, `report`, and free keys.

        Raises:
            RunError: the file cannot be written.
        """
        self._require_present()
        runfiles.write_json(self.path / runfiles.SUMMARY, summary)

    def truncate_after(self, step: int) -> None:
        """Cuts what was written past `step`, so that a resumed run writes it again.

        Cut are metrics lines (a torn one too), rollout files, leftovers of unfinished writes, and the summary and the
        report if they tell of later steps. Checkpoints are left alone.

        Raises:
            RunError: the files cannot be read or changed.
        """
        runfiles.truncate_metrics(self.metrics_path, step)
        late = [runfiles.rollout_path(self.path, s) for s in runfiles.rollout_steps(self.path) if s > step]
        leftovers = [*self.path.glob(".*.tmp"), *(self.path / runfiles.ROLLOUTS).glob(".*.tmp")]
        outdated = [self.path / runfiles.SUMMARY, self.report_path] if self._finished_after(step) else []
        for path in [*late, *leftovers, *outdated]:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise runfiles.cannot_write(path, error) from error

    def _require_present(self) -> None:
        """A run directory that was removed under the run is not made anew with half of its files."""
        if not self.config_path.exists():
            raise RunError(f"run directory {self.path} is gone; bring it back, then go on with --resume")

    def _finished_after(self, step: int) -> bool:
        steps = self.read_summary().get("steps")
        return isinstance(steps, int) and steps > step


def free_directory(parent: str | Path, name: str) -> Path:
    """Return `parent/name`, or `parent/name-2`, `-3`, ... where that is taken."""
    number = 1
    while (path := Path(parent) / (name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    return path


@contextlib.contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Keep a run directory, made if need be, to this process.

    The system drops the lock when the process ends, however it ends: none is ever stale. File systems without locks
    (and Windows) do without.

    Raises:
        RunError: another process has it, or it cannot be written.
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


def _taken(path: Path) -> RunError:
    return RunError(f"{path} already holds a run; choose another run.dir, or go on with --resume")
