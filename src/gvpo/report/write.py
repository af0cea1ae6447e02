"""Write reports and figures of run directories to files."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from gvpo import notices
from gvpo.errors import RunError, one_line
from gvpo.report.catalogue import spec_for
from gvpo.report.charts import build
from gvpo.report.data import load_runs
from gvpo.report.figure import figure
from gvpo.report.page import render
from gvpo.runfiles import REPORT, write_text


def write_report(runs: Sequence[str | Path], out: str | Path, *, price_per_hour: float | None = None) -> Path:
    """Write one self-contained HTML page about some runs: curves (overlaid), and groups with rewards and weights.

    Rollout files that are damaged are left out, with a warning each.

    Args:
        runs: run directories; finished, running or crashed ones.
        out: the file to write; replaced if it exists.
        price_per_hour: price of one process, such as one GPU, for one hour; the page then shows what the runs cost.

    Returns:
        `out`.

    Raises:
        RunError: a path is not a run directory, a file of it is damaged, or `out` cannot be written.
    """
    path = Path(out)
    write_text(path, render(load_runs(runs), price_per_hour=price_per_hour))
    return path


def report_finished(run: Path) -> None:
    """Write the report of a finished run into its directory; if that fails, only warn, because the run is safe."""
    try:
        write_report([run], run / REPORT)
    except Exception as error:  # a damaged file can raise anything
        command = shlex.join(["gvpo", "report", str(run)])
        notices.warn(f"the report is not written ({one_line(error)}); the run is safe, write it with: {command}")


def write_figure(
    runs: Sequence[str | Path], out: str | Path, metrics: Sequence[str] = ("reward/mean", "accuracy")
) -> Path:
    """Write curves as a standalone SVG file on a light background.

    Args:
        runs: run directories.
        out: the file to write; replaced if it exists.
        metrics: keys of metrics.jsonl, with one panel per key. A panel shows the report's chart of that metric: for
            `accuracy` it includes held-out accuracy.

    Returns:
        `out`.

    Raises:
        RunError: a path is not a run directory, or no run has any of the metrics.
    """
    loaded = load_runs(runs)
    panels = [chart for metric in metrics if (chart := build(spec_for(metric), loaded))]
    if not panels:
        raise RunError(f"the runs have none of the metrics {', '.join(metrics)}; choose others, or wait for a step")
    path = Path(out)
    write_text(path, figure(panels))
    return path
