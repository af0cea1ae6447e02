import math
from pathlib import Path

from gvpo.report.catalogue import spec_for
from gvpo.report.charts import build, sections
from gvpo.report.data import Run
from gvpo.report.thinning import MAX_POINTS, smooth, thin


def run(name: str, *lines: dict) -> Run:
    return Run(name, Path(name), metrics=lines)


def test_only_what_exists_is_drawn():
    found = sections([run("a", {"step": 1, "train/loss": 0.5, "kl/reference": None})])
    assert {name: [chart.title for chart in charts] for name, charts in found.items()} == {"Objective": ["Loss"]}


def test_nothing_to_draw():
    assert sections([run("a")]) == {}


def test_unknown_metrics_are_shown_too():
    line = {"step": 1, "own_metric": 3.0, "grpo/new_value": 1.0, "grpo/new_value/last": 2.0, "text": "x", "flag": True}
    found = sections([run("a", line)])
    assert {name: [chart.title for chart in charts] for name, charts in found.items()} == {
        "Objective": ["GRPO: new value"],
        "Other metrics": ["Own metric", "GRPO: new value, last update"],
    }
    assert found["Objective"][0].series[0].points == [(1.0, 1.0)]


def test_reward_parts_have_a_chart_when_there_are_several():
    several = run("a", {"step": 1, "reward/mean": 1.0, "reward/boxed": 0.5, "reward/format": 1.0})
    titles = [chart.title for chart in sections([several])["Learning"]]
    assert titles == ["Reward", "Reward functions"]
    single = run("a", {"step": 1, "reward/mean": 1.0, "reward/boxed": 1.0})
    assert [chart.title for chart in sections([single])["Learning"]] == ["Reward"]


def test_one_run_colours_metrics_and_several_runs_colour_runs():
    line = {"step": 1, "accuracy": 0.5, "eval/accuracy": 0.25}
    spec = spec_for("accuracy")
    alone = build(spec, [run("a", line)])
    assert [(one.name, one.run, one.color, one.dash) for one in alone.series] == [
        ("training, sampled", "", 0, 0),
        ("held-out, sampled", "", 1, 0),
    ]
    both = build(spec, [run("a", line), run("b", line)])
    assert [(one.run, one.color, one.dash) for one in both.series] == [
        ("a", 0, 0),
        ("a", 0, 1),
        ("b", 1, 0),
        ("b", 1, 1),
    ]
    assert [one.dots for one in alone.series] == [False, True]  # evaluations are few: each is marked


def test_seconds_of_several_runs_are_totals():
    line = {"step": 1, "seconds/sampling": 1.0, "seconds/updating": 2.0}
    spec = spec_for("seconds/sampling")
    assert build(spec, [run("a", line)]).stacked
    both = build(spec, [run("a", line), run("b", line)])
    assert not both.stacked
    assert [one.points for one in both.series] == [[(1.0, 3.0)], [(1.0, 3.0)]]


def test_non_finite_values_are_gaps():
    points = run("a", {"step": 1, "x": None}, {"step": 2, "x": 1e305}, {"step": 3, "x": 2.0}, {"step": 4}).points("x")
    assert [x for x, _ in points] == [1.0, 2.0, 3.0]
    assert [math.isnan(y) for _, y in points] == [True, True, False]


def test_smoothing_is_a_centred_mean():
    points = [(float(i), float(i * i)) for i in range(10)]
    smoothed = smooth(points)
    # 5 points around i: the mean of (i-2)^2 .. (i+2)^2 is i^2 + 2
    assert smoothed[2:8] == [(float(i), i * i + 2.0) for i in range(2, 8)]
    assert smoothed[0] == (0.0, (0 + 1 + 4) / 3)


def test_smoothing_leaves_gaps():
    smoothed = smooth([(0, 1.0), (1, math.nan), (2, 3.0)])
    assert smoothed[0] == (0, 2.0)
    assert math.isnan(smoothed[1][1])


def test_thinning_keeps_spikes_and_the_last_point():
    points = [(float(i), 0.0) for i in range(10_000)]
    points[1234] = (1234.0, 9.0)
    points[4321] = (4321.0, -9.0)
    kept = thin(points)
    assert len(kept) <= MAX_POINTS + 1
    assert {(1234.0, 9.0), (4321.0, -9.0)} <= set(kept)
    assert kept[-1] == points[-1]
    assert [x for x, _ in kept] == sorted(x for x, _ in kept)


def test_sources_and_ages_are_drawn_where_some_rows_are_not_fresh():
    plain = {"step": 1, "rows/live": 1.0, "rows/history": 0.0, "age/mean": 0.0, "age/max": 0}
    assert sections([run("a", plain)]) == {}
    mixed = {**plain, "step": 2, "rows/live": 0.5, "rows/history": 0.5, "age/mean": 1.5, "age/max": 3}
    charts = sections([run("a", plain, mixed)])["Health and speed"]
    assert [(chart.title, [series.name for series in chart.series]) for chart in charts] == [
        ("Sources of the completions", ["live", "history"]),
        ("Age of the completions", ["mean", "oldest"]),
    ]
