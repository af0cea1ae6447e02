"""Run directories as the report reads them, also of a run that has just begun, has crashed, or has no rewards."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from gvpo import runfiles
from gvpo.errors import RunError

_HUGE = 1e300
"""Size from which values are drawn as gaps, because their differences would overflow."""


@dataclass(frozen=True)
class Run:
    """The files of a run.

    Args:
        name: the directory's name.
        path: the directory.
        config: config.json, in sections.
        environment: environment.json.
        summary: summary.json; {} while the run has not finished.
        metrics: the lines of metrics.jsonl.
        rollout_steps: the steps with a rollout file, rising.
    """

    name: str
    path: Path
    config: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    metrics: Sequence[Mapping[str, Any]] = ()
    rollout_steps: Sequence[int] = ()

    @property
    def keys(self) -> list[str]:
        """Return the metrics that have at least one number, in order of appearance."""
        return list(dict.fromkeys(key for line in self.metrics for key, value in line.items() if is_number(value)))

    @property
    def last_step(self) -> int:
        """Return the last step in the metrics; 0 without any."""
        return int(max((line["step"] for line in self.metrics if is_number(line.get("step"))), default=0))

    def points(self, key: str) -> list[tuple[float, float]]:
        """Return (step, value) of the lines that have `key`, with NaN where the value was not finite."""
        return [
            (float(line["step"]), float(line[key]) if is_number(line[key]) else math.nan)
            for line in self.metrics
            if key in line and is_number(line.get("step"))
        ]

    def setting(self, section: str, key: str) -> Any:
        """Return a value of the configuration; None if it is not set."""
        table = self.config.get(section)
        return table.get(key) if isinstance(table, Mapping) else None


def is_number(value: Any) -> TypeGuard[float]:
    """Return whether a metric's value can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _HUGE


def load_run(path: str | Path) -> Run:
    """Read a run directory.

    Raises:
        RunError: `path` is not a run directory, or one of its files is damaged.
    """
    path = Path(path)
    if not runfiles.is_run(path):
        raise RunError(f"{path} is not a run directory; give the run.dir of a training run")
    return Run(
        name=path.resolve().name,
        path=path,
        config=runfiles.read_json(path / runfiles.CONFIG),
        environment=runfiles.read_json(path / runfiles.ENVIRONMENT),
        summary=runfiles.read_json(path / runfiles.SUMMARY),
        metrics=runfiles.read_metrics(path / runfiles.METRICS),
        rollout_steps=runfiles.rollout_steps(path),
    )


def load_runs(paths: Sequence[str | Path]) -> list[Run]:
    """Read several runs. If directories share a name, the parent's name is put in front.

    Raises:
        RunError: no path is given, or one cannot be read.
    """
    if not paths:
        raise RunError("no run to report on; give at least one run directory")
    runs = [load_run(path) for path in paths]
    names = [run.name for run in runs]
    return [_with_parent(run) if names.count(run.name) > 1 else run for run in runs]


def _with_parent(run: Run) -> Run:
    path = run.path.resolve()
    return Run(**{**vars(run), "name": f"{path.parent.name}/{path.name}"})
