import math
import xml.etree.ElementTree as ET

import pytest

from gvpo.report.svg import Chart, Scale, Series, inline, nice_ticks, number, plot, segments, stack, y_ticks


def elements(svg: str, tag: str, kind: str) -> list[dict[str, str]]:
    root = ET.fromstring(f"<svg>{svg}</svg>")
    return [node.attrib for node in root.iter(tag) if kind in node.attrib["class"].split()]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 3, [0, 1, 2, 3]),
        (0.27, 0.96, [0.2, 0.4, 0.6, 0.8, 1]),
        (-0.05, 0.8, [-0.2, 0, 0.2, 0.4, 0.6, 0.8]),
        (1, 200, [0, 50, 100, 150, 200]),
        (0, 3e-4, [0, 1e-4, 2e-4, 3e-4]),
        (1e9, 1e9 + 4, [1e9, 1e9 + 1, 1e9 + 2, 1e9 + 3, 1e9 + 4]),
    ],
)
def test_ticks(low, high, expected):
    assert nice_ticks(low, high) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.5, "0.5"),
        (0.03125, "0.03125"),
        (2e-7, "2.0e-7"),
        (9999, "9999"),
        (12500, "12.5k"),
        (3e6, "3M"),
        (-2.5e9, "-2.5G"),
    ],
)
def test_numbers(value, text):
    assert number(value) == text


def test_percentages():
    assert [number(value, percent=True) for value in (0.0, 0.845, 1.0)] == ["0%", "84.5%", "100%"]


def test_scale_maps_ends_and_middle():
    scale = Scale(2.0, 6.0, 100.0, 0.0)
    assert [scale(2), scale(4), scale(6)] == [100.0, 50.0, 0.0]


def test_worked_example():
    # The drawing is 420 x 210, its margins 46 left, 10 right, 10 above, 24 below:
    # x 0..10 -> 46..410 and y 0..1 -> 186..10.
    svg = plot(Chart("t", "", [Series("s", [(0, 0.0), (5, 0.5), (10, 1.0)])]))
    (line,) = elements(svg, "path", "line")
    assert line["d"] == "M46,186L228,98L410,10"
    labels = elements(svg, "text", "tick")
    assert [(label["x"], label["y"]) for label in labels if label["x"] == "40"][:6] == [
        ("40", "186"), ("40", "150.8"), ("40", "115.6"), ("40", "80.4"), ("40", "45.2"), ("40", "10")
    ]  # fmt: skip


def test_gaps_break_the_line_and_lone_points_are_dots():
    points = [(1, 1.0), (2, 2.0), (3, math.nan), (4, 2.0), (5, math.nan), (6, 1.0), (7, 1.0)]
    assert [len(stretch) for stretch in segments(points)] == [2, 1, 2]
    svg = plot(Chart("t", "", [Series("s", points)]))
    assert len(elements(svg, "path", "line")) == 2
    assert len(elements(svg, "circle", "dot")) == 1


def test_an_interval_is_a_shade_within_the_axes():
    # x 1..3 -> 46..410; the ticks cover the shade: y 0..4 -> 186..10, 44 a unit
    series = Series("s", [(1, 1.0), (3, 2.0)], band=[(0.0, 2.0), (1.0, 4.0)])
    svg = plot(Chart("t", "", [series], across="k <"))
    (shade,) = elements(svg, "path", "band")
    assert shade["d"] == "M46,186L410,142L410,10L46,98Z"
    assert ">k &lt;</text>" in svg


def test_areas_are_stacked():
    a, b = Series("a", [(0, 1.0), (1, 1.0)]), Series("b", [(0, 1.0), (1, math.nan)], color=1)
    assert [one.points for one in stack([a, b])] == [[(0, 1.0), (1, 1.0)], [(0, 2.0), (1, 1.0)]]
    # y 0..2 -> 186..10, so 1 is at 98; the upper band's lower edge is the lower band's upper edge
    lower, upper = elements(plot(Chart("t", "", [a, b], stacked=True)), "path", "area")
    assert lower["d"] == "M46,98L410,98L410,186L46,186Z"
    assert upper["d"] == "M46,10L410,98L410,98L46,98Z"


def test_bounds_hold_unless_the_data_go_beyond():
    inside = Chart("t", "", [Series("s", [(0, 0.4), (1, 0.6)])], low=0.0, high=1.0)
    beyond = Chart("t", "", [Series("s", [(0, -0.4), (1, 1.6)])], low=0.0, high=1.0)
    assert (y_ticks(inside)[0], y_ticks(inside)[-1]) == (0.0, 1.0)
    assert (y_ticks(beyond)[0], y_ticks(beyond)[-1]) == (-0.5, 2.0)


@pytest.mark.parametrize("value", [0.0, 5.0, -3.0, 1e-12, 1e12])
def test_a_single_point_and_a_constant_line_have_room(value):
    for points in ([(7, value)], [(1, value), (2, value)]):
        chart = Chart("t", "", [Series("s", points)])
        ticks = y_ticks(chart)
        assert ticks[0] < value < ticks[-1]
        assert "nan" not in inline(chart)


def test_a_line_that_is_constant_up_to_rounding_has_room():
    ticks = y_ticks(Chart("t", "", [Series("s", [(1, -0.024), (2, -0.024000000000000004)])]))
    assert ticks[0] < -0.024 < ticks[-1]


def test_a_constant_line_at_a_bound_has_room_on_the_other_side_alone():
    def ends(value: float) -> tuple[float, float]:
        ticks = y_ticks(Chart("t", "", [Series("s", [(1, value), (2, value)])], low=0.0))
        return ticks[0], ticks[-1]

    assert ends(0.0) == (0.0, 1.0)
    assert ends(5.0) == (0.0, 5.0)


def test_a_trend_makes_the_points_faint():
    svg = plot(Chart("t", "", [Series("s", [(0, 0.0), (1, 1.0)], trend=[(0, 0.5), (1, 0.5)])]))
    faint, bold = elements(svg, "path", "line")
    assert "raw" in faint["class"]
    assert "raw" not in bold["class"]


def test_scripts_learn_the_scale():
    root = ET.fromstring(inline(Chart("a <b>", "", [Series("s", [(3, 0.0), (13, 1.0)])])))
    assert root.attrib["data-x"] == "3 13 46 410"
    assert root.attrib["aria-label"] == "a <b>"
