"""One self-contained HTML page about one or more runs: the numbers, the curves, the groups.

The markup is made here, the looks and the behaviour are in assets/. All text from runs is untrusted: it is
escaped here, and what scripts show travels as JSON, plain or packed, and only ever becomes text nodes and titles.
"""

import json
import math
from collections.abc import Iterator, Sequence
from html import escape
from importlib import resources
from itertools import count
from string import Template
from typing import Any

from gvpo.report import charts
from gvpo.report.catalogue import OTHER
from gvpo.report.data import Run
from gvpo.report.header import header
from gvpo.report.svg import COLORS, DASHES, Chart, Series, inline, number
from gvpo.report.viewer import viewer_data
from gvpo.runfiles import to_json

STYLES = ("chart.css", "report.css", "groups.css")
SCRIPTS = (
    "dom.js",
    "curves.js",
    "store.js",
    "query.js",
    "tokens.js",
    "list.js",
    "completions.js",
    "viewer.js",
    "start.js",
)
"""Joined in this order into one script: all share a scope, which no other script sees."""


def asset(name: str) -> str:
    """The text of a file in report/assets."""
    return resources.files("gvpo.report").joinpath("assets", name).read_text(encoding="utf-8")


def render(runs: Sequence[Run]) -> str:
    """Return the page's HTML."""
    sections = charts.sections(runs)
    drawn = [chart for section in sections.values() for chart in section]
    numbers = count()
    data = {"runs": [run.name for run in runs], "charts": [_chart_data(chart) for chart in drawn]}
    return Template(asset("report.html")).substitute(
        title=escape(" / ".join(run.name for run in runs)),
        style="".join(asset(name) for name in STYLES),
        header=header(runs),
        curves="".join(_section(name, found, numbers) for name, found in sections.items()) or _empty("No metrics yet."),
        settings="".join(_settings(run) for run in runs),
        data=embed(data),
        packed="\n".join(_packed(name, text) for name, text in viewer_data(runs).items()),
        script="\n".join(asset(name) for name in SCRIPTS),
    )


def embed(data: Any) -> str:
    """JSON that is safe inside a <script> element, whatever texts it holds."""
    text = to_json(data)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


# The curves


def _section(name: str, found: Sequence[Chart], numbers: Iterator[int]) -> str:
    """A heading and its charts, each with its place in the page's data."""
    cards = "".join(_card(chart, next(numbers)) for chart in found)
    if name == OTHER:
        return f'<details class="more"><summary>{name}</summary><div class="charts">{cards}</div></details>'
    return f'<section><h2>{name}</h2><div class="charts">{cards}</div></section>'


def _card(chart: Chart, index: int) -> str:
    names = dict.fromkeys(one.name for one in chart.series)
    keys = "".join(_key(chart, name, alone=len(names) == 1) for name in names)
    unit = f"<small>{escape(chart.unit)}</small>" if chart.unit else ""
    metrics = escape(", ".join(chart.metrics))
    return (
        f'<figure class="chart" data-chart="{index}"><figcaption title="{escape(chart.hint)}">{escape(chart.title)} '
        f'{unit}</figcaption><ul class="keys">{keys}</ul>{inline(chart)}'
        f'<code class="metrics" title="{metrics}">{metrics}</code></figure>'
    )


def _key(chart: Chart, name: str, *, alone: bool) -> str:
    """A line of the legend: a metric's name, where there are several, and the last value of each run."""
    label = "" if alone else f"{escape(name)} "
    values = [(_swatch(one), _value(one, index, chart)) for index, one in enumerate(chart.series) if one.name == name]
    if chart.series[0].run:
        return f"<li>{label}{''.join(swatch + value for swatch, value in values)}</li>"
    swatch, value = values[0]
    return f"<li>{'' if alone else swatch}{label}{value}</li>"


def _swatch(series: Series) -> str:
    """The colour and the dashes of a line."""
    title = f' title="{escape(series.run)}"' if series.run else ""
    return f'<i class="key c{series.color % COLORS} k{series.dash % DASHES}"{title}></i>'


def _value(series: Series, index: int, chart: Chart) -> str:
    """Return the last value of a line, with room for any value of it: the legend must not wrap anew under a pointer."""
    texts = [number(y, percent=chart.percent) for _, y in series.points if math.isfinite(y)]
    room = max(map(len, texts), default=0) + 0.5
    return f'<b data-series="{index}" style="width:{room}ch">{texts[-1] if texts else ""}</b> '


def _chart_data(chart: Chart) -> dict[str, Any]:
    """What the script needs to say the values under the pointer; values to five digits."""
    series = [
        {"x": [x for x, _ in one.points], "y": [float(f"{y:.5g}") for _, y in one.points]} for one in chart.series
    ]
    return {"percent": chart.percent, "series": series}


# The rest


def _settings(run: Run) -> str:
    texts = {"config.json": run.config, "environment.json": run.environment, "summary.json": run.summary}
    blocks = "".join(
        f"<h3>{escape(run.name)}/{name}</h3><pre>{escape(json.dumps(value, indent=2, ensure_ascii=False))}</pre>"
        for name, value in texts.items()
        if value
    )
    return blocks or _empty("No settings were recorded.")


def _packed(name: str, text: str) -> str:
    """A block of the viewer's data: base64, which needs no escaping."""
    return f'<script type="text/plain" id="{name}">{text}</script>'


def _empty(text: str) -> str:
    return f'<p class="empty">{text}</p>'
