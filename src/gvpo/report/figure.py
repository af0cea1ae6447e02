"""Curves as one standalone SVG file, for a README or a paper: its own background, fonts and colours."""

import re
from collections.abc import Sequence
from html import escape

from gvpo.report.page import asset
from gvpo.report.svg import LEFT, TOP, Chart, plot

PANEL_WIDTH, PANEL_HEIGHT = 440, 250
_HEAD = 62
_GAP = 24
_KEY_GAP = 22
_LETTER = 6.3
"""Mean width of a letter at the legend's font size; SVG has no layout, so legends are placed by estimate."""

_FIGURE_CSS = """
.title { fill: var(--ink); font: 600 15px var(--sans); }
.unit, .name { fill: var(--soft); font: 12px var(--sans); }
"""


def figure(panels: Sequence[Chart]) -> str:
    """The charts side by side."""
    width = len(panels) * (PANEL_WIDTH + _GAP) + _GAP
    height = _HEAD + PANEL_HEIGHT + 10
    body = "".join(_panel(chart, _GAP + index * (PANEL_WIDTH + _GAP)) for index, chart in enumerate(panels))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img"><style>{_style()}</style><rect width="100%" height="100%" fill="#fff"/>{body}</svg>\n'
    )


def _panel(chart: Chart, left: int) -> str:
    unit = f'<tspan class="unit" dx="8">{escape(chart.unit)}</tspan>' if chart.unit else ""
    return (
        f'<g transform="translate({left},0)"><text class="title" x="{LEFT}" y="28">{escape(chart.title)}{unit}</text>'
        f'{_legend(chart)}<g transform="translate(0,{_HEAD - TOP})">{plot(chart, PANEL_WIDTH, PANEL_HEIGHT)}</g></g>'
    )


def _legend(chart: Chart) -> str:
    x, parts = float(LEFT), []
    for one in chart.series:
        dashes = " dashed" if one.dashed else ""
        parts.append(f'<path class="line c{one.color % 8}{dashes}" d="M{x:.0f},45h18"/>')
        parts.append(f'<text class="name" x="{x + 24:.0f}" y="49">{escape(one.name)}</text>')
        x += 24 + _LETTER * len(one.name) + _KEY_GAP
    return "".join(parts)


def _style() -> str:
    """The chart's style sheet with its variables filled in: not every SVG viewer knows them."""
    css = asset("chart.css") + _FIGURE_CSS
    values = dict(re.findall(r"(--[\w-]+): ([^;]+);", css))
    rules = css[css.index("}") + 1 :]
    return re.sub(r"var\((--[\w-]+)\)", lambda match: values[match[1]], rules)
