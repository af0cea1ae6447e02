"""Line charts as SVG text: scales, ticks, axes and series. It knows no data formats and no colours.

Colours and fonts come from CSS classes (assets/chart.css), so that the same drawing follows a page's light or dark
theme, and works alone in a figure.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

COLORS = 8
"""Number of series colours in the style sheet; further series start again."""

DASHES = 3
"""Number of dash patterns in the style sheet."""

WIDTH, HEIGHT = 420, 210
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 24
_TICKS = 4

Point = tuple[float, float]
"""(x, y); a y of NaN is a gap."""


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Args:
        name: name in the legend.
        points: (x, y), x rising; a y of NaN breaks the line.
        color: number of its colour.
        dash: number of its dash pattern; 0 is a full line.
        dots: mark every point, for a few measured values.
        trend: a smoothed version, drawn bold over points that are then faint; () for none.
        run: name of its run, if several runs are drawn.
        band: (low, high) at each point, drawn as a shade behind the line; () for none.
    """

    name: str
    points: Sequence[Point]
    color: int = 0
    dash: int = 0
    dots: bool = False
    trend: Sequence[Point] = ()
    run: str = ""
    band: Sequence[Point] = ()


@dataclass(frozen=True)
class Chart:
    """Series on common axes.

    Args:
        title: what is drawn.
        unit: unit of the y axis.
        series: lines with at least one point among them.
        low: start of the y axis, if the data do not go lower; None for the start of the data.
        high: end of the y axis, in the same way.
        stacked: draw areas on top of each other; the series then share their x values.
        percent: label 0.5 as 50%.
        hint: one sentence for the reader.
        across: what the x axis counts.
        metrics: keys of the metrics that are drawn.
    """

    title: str
    unit: str
    series: Sequence[Series]
    low: float | None = None
    high: float | None = None
    stacked: bool = False
    percent: bool = False
    hint: str = ""
    across: str = "step"
    metrics: Sequence[str] = ()


@dataclass(frozen=True)
class Scale:
    """Maps [low, high] of the data to [start, end] of the drawing, linearly."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the place of a value in the drawing."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def nice_ticks(low: float, high: float, count: int = _TICKS) -> list[float]:
    """Return multiples of 1, 2 or 5 times a power of ten that cover [low, high] in about `count` intervals.

    >>> nice_ticks(0.0, 0.83)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.7)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def number(value: float, *, percent: bool = False) -> str:
    """Return a value as a text of about six characters: 0.0312, 12.5k, 84%."""
    if percent:
        return f"{100 * value:.3g}%"
    if value != 0 and abs(value) < 1e-3:
        return f"{value:.1e}".replace("e-0", "e-")
    sizes = ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k"), (0.0, 1.0, ""))
    divisor, suffix = next((divisor, suffix) for least, divisor, suffix in sizes if abs(value) >= least)
    return f"{value / divisor:.4g}{suffix}"


def x_scale(chart: Chart, width: float = WIDTH) -> Scale:
    """Return the horizontal scale, which is exactly the range of the data."""
    values = [x for series in chart.series for x, _ in series.points]
    low, high = min(values), max(values)
    if low == high:
        low, high = low - 1, high + 1
    return Scale(low, high, LEFT, width - RIGHT)


def y_scale(chart: Chart, height: float = HEIGHT) -> Scale:
    """Return the vertical scale: from the first tick to the last."""
    ticks = y_ticks(chart)
    return Scale(ticks[0], ticks[-1], height - BOTTOM, TOP)


def y_ticks(chart: Chart) -> list[float]:
    """Return the ticks of the vertical axis; the first and the last are its ends."""
    series = stack(chart.series) if chart.stacked else chart.series
    values = [y for one in series for _, y in one.points if math.isfinite(y)]
    values += [bound for one in series for ends in one.band for bound in ends]
    values += [0.0] if chart.stacked else []
    values += [bound for bound in (chart.low, chart.high) if bound is not None]
    low, high = min(values, default=0.0), max(values, default=1.0)
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # equal up to rounding
        margin = abs(low) * 0.1 or 1.0
        low, high = low if low == chart.low else low - margin, high if high == chart.high else high + margin
    return nice_ticks(low, high)


def stack(series: Sequence[Series]) -> list[Series]:
    """Return each series on top of those before it; a gap counts as 0."""
    total: dict[float, float] = {}
    stacked = []
    for one in series:
        for x, y in one.points:
            total[x] = total.get(x, 0.0) + (y if math.isfinite(y) else 0.0)
        stacked.append(Series(one.name, sorted(total.items()), one.color))
    return stacked


def segments(points: Sequence[Point]) -> Iterator[list[Point]]:
    """Yield the unbroken stretches of a line."""
    stretch: list[Point] = []
    for point in points:
        if math.isfinite(point[1]):
            stretch.append(point)
        elif stretch:
            yield stretch
            stretch = []
    if stretch:
        yield stretch


def plot(chart: Chart, width: float = WIDTH, height: float = HEIGHT) -> str:
    """Return the axes and the series of a chart as SVG elements, without its title."""
    ticks = y_ticks(chart)
    across, up = x_scale(chart, width), y_scale(chart, height)
    parts = [*_y_axis(ticks, up, width, percent=chart.percent), *_x_axis(chart.across, across, height)]
    if chart.stacked:
        parts += _areas(chart.series, across, up)
    else:
        parts += [part for series in chart.series for part in _line(series, across, up)]
    return "".join(parts)


def inline(chart: Chart) -> str:
    """Return a chart as an <svg> for a page, with a hidden cursor that the page's script moves.

    `data-x` and `data-y` tell the script how values map to the drawing: low, high, start, end.
    """
    across, up = x_scale(chart), y_scale(chart)
    return (
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(chart.title)}" '
        f'data-x="{_ends(across)}" data-y="{_ends(up)}">{plot(chart)}{_cursor(chart)}</svg>'
    )


def _ends(scale: Scale) -> str:
    return " ".join(f"{value:.10g}" for value in (scale.low, scale.high, scale.start, scale.end))


def _cursor(chart: Chart) -> str:
    """Return a line with room for its step, and a dot per series; areas on top of each other get no dots."""
    bottom = HEIGHT - BOTTOM
    drawn = () if chart.stacked else chart.series
    dots = "".join(f'<circle class="dot c{one.color % COLORS}" r="4"/>' for one in drawn)
    return (
        f'<g class="cursor"><line y1="{TOP}" y2="{bottom}"/>{dots}'
        f'<text class="tick" y="{bottom + 15}" text-anchor="middle"></text></g>'
    )


def _y_axis(ticks: Sequence[float], up: Scale, width: float, *, percent: bool) -> Iterator[str]:
    for tick in ticks:
        y = _n(up(tick))
        kind = "axis" if tick == ticks[0] else "grid"
        yield f'<line class="{kind}" x1="{LEFT}" x2="{_n(width - RIGHT)}" y1="{y}" y2="{y}"/>'
        label = number(tick, percent=percent)
        yield f'<text class="tick" x="{LEFT - 6}" y="{y}" dy=".32em" text-anchor="end">{label}</text>'


def _x_axis(name: str, across: Scale, height: float) -> Iterator[str]:
    inside = [t for t in nice_ticks(across.low, across.high) if across.low <= t <= across.high and t == int(t)]
    y = _n(height - BOTTOM + 15)
    yield f'<text class="tick" x="{LEFT - 14}" y="{y}" text-anchor="end">{escape(name)}</text>'
    for tick in inside:
        yield f'<text class="tick" x="{_n(across(tick))}" y="{y}" text-anchor="middle">{number(tick)}</text>'


def _line(series: Series, across: Scale, up: Scale) -> Iterator[str]:
    color, dash = f"c{series.color % COLORS}", f"d{series.dash % DASHES}"
    faint = " raw" if series.trend else ""
    if series.band:
        places = [x for x, _ in series.points]
        low, high = ([(x, ends[side]) for x, ends in zip(places, series.band, strict=True)] for side in (0, 1))
        yield f'<path class="area band {color}" d="{_path([*low, *reversed(high)], across, up)}Z"/>'
    for stretch in segments(series.points):
        if len(stretch) > 1:
            yield f'<path class="line {color} {dash}{faint}" d="{_path(stretch, across, up)}"/>'
        if series.dots or len(stretch) == 1:
            for x, y in stretch:
                yield f'<circle class="dot {color}" cx="{_n(across(x))}" cy="{_n(up(y))}" r="3"/>'
    for stretch in segments(series.trend):
        yield f'<path class="line {color} {dash}" d="{_path(stretch, across, up)}"/>'


def _areas(series: Sequence[Series], across: Scale, up: Scale) -> Iterator[str]:
    """Yield filled bands, each between the total before it and its own total."""
    below = [(x, 0.0) for x, _ in series[0].points]
    for one in stack(series):
        outline = _path([*one.points, *reversed(below)], across, up)
        yield f'<path class="area c{one.color % COLORS}" d="{outline}Z"/>'
        below = list(one.points)


def _path(points: Sequence[Point], across: Scale, up: Scale) -> str:
    return "M" + "L".join(f"{_n(across(x))},{_n(up(y))}" for x, y in points)


def _n(value: float) -> str:
    """Return a coordinate, rounded to a tenth of a unit."""
    text = f"{value:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text
