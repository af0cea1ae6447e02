"""One self-contained HTML page about one or more runs: the numbers, the curves, the groups.

The markup is made here, the looks and the behaviour are in assets/. All text from runs is untrusted: it is escaped here,
and what scripts show travels as one block of JSON that they only ever put into text nodes.
"""

import json
import math
from collections.abc import Iterator, Sequence
from html import escape
from importlib import resources
from string import Template
from typing import Any

from gvpo.report import charts
from gvpo.report.data import Run, is_number
from gvpo.report.groups import viewer_data
from gvpo.report.svg import Chart, inline, number
from gvpo.runfiles import to_json


def asset(name: str) -> str:
    """The text of a file in report/assets."""
    return resources.files("gvpo.report").joinpath("assets", name).read_text(encoding="utf-8")


def render(runs: Sequence[Run]) -> str:
    """The page's HTML.

    Raises:
        RunError: a rollout file is damaged.
    """
    sections = charts.sections(runs)
    drawn = [chart for section in sections.values() for chart in section]
    data = {"runs": viewer_data(runs), "charts": [_chart_data(chart) for chart in drawn]}
    return Template(asset("report.html")).substitute(
        title=escape(" / ".join(run.name for run in runs)),
        style=asset("chart.css") + asset("report.css"),
        header=_single(runs[0]) if len(runs) == 1 else _several(runs),
        curves="".join(_section(name, found, drawn) for name, found in sections.items()) or _empty("No metrics yet."),
        settings="".join(_settings(run) for run in runs),
        data=embed(data),
        script=asset("report.js"),
    )


def embed(data: Any) -> str:
    """JSON that is safe inside a <script> element, whatever texts it holds."""
    text = to_json(data)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


# The header


def _single(run: Run) -> str:
    figures = "".join(_figure(*figure) for figure in _figures(run))
    return f'<h1>{escape(run.name)}</h1><p class="about">{escape(_about(run))}</p><div class="figures">{figures}</div>'


def _several(runs: Sequence[Run]) -> str:
    names = ("run", "objective", "steps", "accuracy before", "after", "time")
    head = "".join(f"<th>{name}</th>" for name in names)
    body = "".join(_table_row(run, index) for index, run in enumerate(runs))
    return f'<h1>{len(runs)} runs</h1><table class="runs"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _table_row(run: Run, index: int) -> str:
    before, after = accuracies(run)
    cells = (_objective(run), _progress(run), _percent(before), _percent(after), _time(run))
    name = f'<td><i class="key c{index % 8}"></i>{escape(run.name)}</td>'
    return f"<tr>{name}{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"


def _figures(run: Run) -> Iterator[tuple[str, str, str]]:
    """(label, value, note) of the big numbers; only those that exist."""
    before, after = accuracies(run)
    if after is not None:
        change = f"{_percent(before)} → {_percent(after)}" if before is not None else _percent(after)
        yield "held-out accuracy, sampled", change, ""
    greedy = [y for _, y in run.points("eval/accuracy_greedy") if math.isfinite(y)]
    if greedy:
        first = f"{_percent(greedy[0])} → " if len(greedy) > 1 else ""
        yield "greedy", first + _percent(greedy[-1]), ""
    yield "steps", str(run.last_step), "" if run.summary else f"of {run.setting('train', 'steps') or '?'}, not finished"
    if time := _time(run):
        yield "time", time, ""


def _figure(label: str, value: str, note: str) -> str:
    small = f"<small>{escape(note)}</small>" if note else ""
    return f'<div class="figure"><b>{escape(value)}</b><span>{escape(label)} {small}</span></div>'


def accuracies(run: Run) -> tuple[float | None, float | None]:
    """Held-out sampled accuracy before and after: from the summary, else the evaluations so far."""
    evaluated = [y for _, y in run.points("eval/accuracy") if math.isfinite(y)]
    before = run.summary.get("accuracy_before", evaluated[0] if len(evaluated) > 1 else None)
    after = run.summary.get("accuracy_after", evaluated[-1] if evaluated else None)
    return (before if is_number(before) else None, after if is_number(after) else None)


def _about(run: Run) -> str:
    sampling = run.setting("sampling", "group_size")
    facts = (
        _objective(run),
        ("reference", run.setting("objective", "reference")),
        ("model", run.setting("model", "path") or _architecture(run)),
        ("data", run.setting("data", "task") or run.setting("data", "train")),
        ("prompts per step", run.setting("train", "prompts_per_step")),
        ("group size", sampling),
        ("learning rate", run.setting("train", "learning_rate")),
        ("seed", run.setting("run", "seed")),
    )
    texts = (
        fact if isinstance(fact, str) else f"{fact[0]} {fact[1]}" for fact in facts if fact and fact[-1] is not None
    )
    return "  ·  ".join(texts)


def _objective(run: Run) -> str:
    name, beta = run.setting("objective", "name"), run.setting("objective", "beta")
    return " ".join(str(part) for part in (name, f"β {beta}" if beta is not None else None) if part)


def _architecture(run: Run) -> str | None:
    init = run.setting("model", "init")
    return f"fresh {init.get('architecture', '')}".strip() if isinstance(init, dict) else None


def _progress(run: Run) -> str:
    return f"{run.last_step}" if run.summary else f"{run.last_step}, not finished"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}%"


def _time(run: Run) -> str:
    seconds = run.summary.get("seconds")
    if not is_number(seconds):
        seconds = sum(y for _, y in run.points("seconds/total") if math.isfinite(y))
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return (f"{minutes} min {rest:02d} s" if minutes else f"{rest} s") if seconds else ""


# The curves


def _section(name: str, found: Sequence[Chart], drawn: Sequence[Chart]) -> str:
    cards = "".join(_card(chart, drawn.index(chart)) for chart in found)
    if name == charts.OTHER:
        return f'<details class="more"><summary>{name}</summary><div class="charts">{cards}</div></details>'
    return f'<section><h2>{name}</h2><div class="charts">{cards}</div></section>'


def _card(chart: Chart, index: int) -> str:
    alone = len(chart.series) == 1
    keys = "".join(
        f'<li><i class="key c{one.color % 8}{" hollow" if one.dashed else ""}"></i>'
        f"{'' if alone else escape(one.name)} <b>{_last(chart, position)}</b></li>"
        for position, one in enumerate(chart.series)
    )
    unit = f"<small>{escape(chart.unit)}</small>" if chart.unit else ""
    return (
        f'<figure class="chart" data-chart="{index}"><figcaption title="{escape(chart.hint)}">{escape(chart.title)} '
        f'{unit}</figcaption><ul class="keys">{keys}</ul>{inline(chart)}</figure>'
    )


def _last(chart: Chart, position: int) -> str:
    finite = [y for _, y in chart.series[position].points if math.isfinite(y)]
    return number(finite[-1], percent=chart.percent)


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


def _empty(text: str) -> str:
    return f'<p class="empty">{text}</p>'
