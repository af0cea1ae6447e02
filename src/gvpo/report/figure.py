"""Curves as one standalone SVG file for a README or a paper, with its own background, fonts and colours."""

import re
from collections.abc import Sequence
from html import escape

from gvpo.report.asset_files import asset
from gvpo.report.svg import COLORS, DASHES, LEFT, TOP, Chart, Series, plot

PANEL_WIDTH, PANEL_HEIGHT = 440, 250
_TITLE = 46
_ROW = 19
_GAP = 24
_KEY_GAP = 16
_SWATCH = 18
_LETTER = 6.3
"""Mean width of a letter at the legend's font size; SVG has no layout, so legends are placed by estimate."""

_FIGURE_CSS = """
.title { fill: var(--ink); font: 600 15px var(--sans); }
.unit, .name { fill: var(--soft); font: 12px var(--sans); }
"""


def figure(panels: Sequence[Chart]) -> str:
    """Return the charts side by side, as SVG text."""
    legends = [legend_rows(chart) for chart in panels]
    head = _TITLE + _ROW * max(len(rows) for rows in legends)
    width = len(panels) * (PANEL_WIDTH + _GAP) + _GAP
    height = head + PANEL_HEIGHT + 10
    body = "".join(
        _panel(chart, rows, _GAP + index * (PANEL_WIDTH + _GAP), head)
        for index, (chart, rows) in enumerate(zip(panels, legends, strict=True))
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img"><style>{_style()}</style><rect width="100%" height="100%" fill="#fff"/>{body}</svg>\n'
    )


def legend_rows(chart: Chart) -> list[list[Series]]:
    """Return the series of a chart in rows that fit its width."""
    rows: list[list[Series]] = []
    room = 0.0
    for series in chart.series:
        if not rows or room < _width(series):
            rows.append([])
            room = PANEL_WIDTH - LEFT
        rows[-1].append(series)
        room -= _width(series) + _KEY_GAP
    return rows


def _panel(chart: Chart, rows: Sequence[Sequence[Series]], left: int, head: int) -> str:
    unit = f'<tspan class="unit" dx="8">{escape(chart.unit)}</tspan>' if chart.unit else ""
    legend = "".join(_legend_row(row, _TITLE + index * _ROW) for index, row in enumerate(rows))
    return (
        f'<g transform="translate({left},0)"><text class="title" x="{LEFT}" y="28">{escape(chart.title)}{unit}</text>'
        f'{legend}<g transform="translate(0,{head - TOP})">{plot(chart, PANEL_WIDTH, PANEL_HEIGHT)}</g></g>'
    )


def _legend_row(row: Sequence[Series], y: int) -> str:
    x, parts = float(LEFT), []
    for one in row:
        line = f"line c{one.color % COLORS} d{one.dash % DASHES}"
        parts.append(f'<path class="{line}" d="M{x:.0f},{y}h{_SWATCH}"/>')
        parts.append(f'<text class="name" x="{x + _SWATCH + 6:.0f}" y="{y + 4}">{escape(_name(one))}</text>')
        x += _width(one) + _KEY_GAP
    return "".join(parts)


def _name(series: Series) -> str:
    return f"{series.run}, {series.name}" if series.run else series.name


def _width(series: Series) -> float:
    return _SWATCH + 6 + _LETTER * len(_name(series))


def _style() -> str:
    """Return the chart's style sheet with its variables filled in, since not every SVG viewer knows variables."""
    css = asset("chart.css") + _FIGURE_CSS
    values = dict(re.findall(r"(--[\w-]+): ([^;]+);", css))
    rules = css[css.index("}") + 1 :]
    return re.sub(r"var\((--[\w-]+)\)", lambda match: values[match[1]], rules)
