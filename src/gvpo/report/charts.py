"""The charts of a report: metrics of runs become series. What is missing is left out."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from gvpo.report.catalogue import QUIET, SECTIONS, Spec, metrics_of, specs_of
from gvpo.report.data import Run
from gvpo.report.svg import Chart, Point, Series
from gvpo.report.thinning import MAX_POINTS, smooth, thin

_TREND_FROM = 40
"""Curves with this many points get a smoothed line over the faint raw one."""


def sections(runs: Sequence[Run]) -> dict[str, list[Chart]]:
    """Return all charts of some runs by their heading; headings without a chart are absent."""
    found: dict[str, list[Chart]] = {name: [] for name in SECTIONS}
    for spec in specs_of(_keys(runs)):
        if chart := build(spec, runs):
            found[spec.section].append(chart)
    return {name: charts for name, charts in found.items() if charts}


def _keys(runs: Sequence[Run]) -> list[str]:
    keys = dict.fromkeys(key for run in runs for key in run.keys)
    return [key for key in keys if key not in QUIET or any(y for run in runs for _, y in run.points(key))]


def build(spec: Spec, runs: Sequence[Run]) -> Chart | None:
    """Return the chart of a spec; None if no run has anything to draw.

    With one run, colours tell metrics apart; with several, colours tell runs apart and dashes tell metrics apart.
    Stacked areas of several runs cannot be told apart: those charts draw the total of each run.
    """
    metrics = metrics_of(spec, _keys(runs))
    if spec.stacked and len(runs) > 1:
        series = [one for index, run in enumerate(runs) for one in _total(metrics, run, index)]
    elif spec.stacked:
        series = list(_areas(metrics, runs[0]))
    else:
        series = [one for index, run in enumerate(runs) for one in _lines(metrics, run, index, many=len(runs) > 1)]
    if not series:
        return None
    stacked = spec.stacked and len(runs) == 1
    return Chart(
        spec.title, spec.unit, series, spec.low, spec.high, stacked, spec.percent, spec.hint, metrics=tuple(metrics)
    )


def _lines(metrics: Mapping[str, str], run: Run, index: int, *, many: bool) -> Iterator[Series]:
    for position, (key, name) in enumerate(metrics.items()):
        points = run.points(key)
        if not _has_value(points):
            continue
        measured = key.startswith("eval/")
        trend = smooth(points) if len(points) >= _TREND_FROM and not measured else ()
        yield Series(
            name=name,
            points=thin(points),
            color=index if many else position,
            dash=position if many else 0,
            dots=measured,
            trend=thin(trend),
            run=run.name if many else "",
        )


def _areas(metrics: Mapping[str, str], run: Run) -> Iterator[Series]:
    """Yield the series of a stacked chart, whose points keep common steps when they are thinned."""
    for position, (key, name) in enumerate(metrics.items()):
        points = run.points(key)
        if _has_value(points):
            yield Series(name, points[:: math.ceil(len(points) / MAX_POINTS)], position)


def _total(metrics: Iterable[str], run: Run, index: int) -> Iterator[Series]:
    """Yield the sum of a run over the metrics of a stacked chart."""
    total: dict[float, float] = {}
    for key in metrics:
        for x, y in run.points(key):
            total[x] = total.get(x, 0.0) + (y if math.isfinite(y) else 0.0)
    if total:
        yield Series("all", thin(sorted(total.items())), index, run=run.name)


def _has_value(points: Sequence[Point]) -> bool:
    return any(math.isfinite(y) for _, y in points)
