"""The curves of a page: a card per chart, with its title, its legend, its drawing and the keys of its metrics."""

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import count
from typing import Any

from gvpo.report.catalogue import OTHER
from gvpo.report.svg import COLORS, DASHES, Chart, Series, inline, number


def curves(sections: Mapping[str, Sequence[Chart]]) -> str:
    """Return the HTML of all charts under their headings; each chart has its place in `curves_data`."""
    numbers = count()
    return "".join(_section(name, found, numbers) for name, found in sections.items())


def curves_data(sections: Mapping[str, Sequence[Chart]]) -> list[dict[str, Any]]:
    """Return what the page's script needs to show the values under the pointer."""
    return [_chart_data(chart) for found in sections.values() for chart in found]


def anchor(heading: str) -> str:
    """Return the id of the section below a heading."""
    return heading.lower().replace(" ", "-")


def _section(name: str, found: Sequence[Chart], numbers: Iterator[int]) -> str:
    """Return a heading and its charts."""
    cards = f'<div class="charts">{"".join(_card(chart, next(numbers)) for chart in found)}</div>'
    if name == OTHER:
        inside = f'<details class="more"><summary>{name}</summary>{cards}</details>'
    else:
        inside = f"<h2>{name}</h2>{cards}"
    return f'<section id="{anchor(name)}">{inside}</section>'


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
    """Return an entry of the legend: the name of a metric, if there are several, and the last value of each run."""
    label = "" if alone else f"{escape(name)} "
    values = [(_swatch(one), _value(one, index, chart)) for index, one in enumerate(chart.series) if one.name == name]
    if chart.series[0].run:
        return f"<li>{label}{''.join(swatch + value for swatch, value in values)}</li>"
    swatch, value = values[0]
    return f"<li>{'' if alone else swatch}{label}{value}</li>"


def _swatch(series: Series) -> str:
    """Return a sample of the colour and the dashes of a line."""
    title = f' title="{escape(series.run)}"' if series.run else ""
    return f'<i class="key c{series.color % COLORS} k{series.dash % DASHES}"{title}></i>'


def _value(series: Series, index: int, chart: Chart) -> str:
    """Return the last value of a line, with room for each of its values, so that the legend wraps the same with all."""
    texts = [number(y, percent=chart.percent) for _, y in series.points if math.isfinite(y)]
    room = max(map(len, texts), default=0) + 0.5
    return f'<b data-series="{index}" style="width:{room}ch">{texts[-1] if texts else ""}</b> '


def _chart_data(chart: Chart) -> dict[str, Any]:
    """Return the points of a chart, with values to five digits."""
    series = [
        {"x": [x for x, _ in one.points], "y": [float(f"{y:.5g}") for _, y in one.points]} for one in chart.series
    ]
    return {"percent": chart.percent, "series": series}
