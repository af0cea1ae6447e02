"""The top of a report: the settings and the result, as big numbers for one run and as a table for several."""

import math
from collections.abc import Iterator, Sequence
from html import escape

from gvpo.outcome import findings
from gvpo.report.comparison import differing_settings, duration
from gvpo.report.data import Run, is_number
from gvpo.report.svg import COLORS


def header(runs: Sequence[Run]) -> str:
    """Return the header's HTML, with the warnings that follow from the metrics."""
    return (_single(runs[0]) if len(runs) == 1 else _several(runs)) + "".join(_warnings(runs))


def _warnings(runs: Sequence[Run]) -> Iterator[str]:
    for run in runs:
        for warning in findings(run.metrics):
            text = warning if len(runs) == 1 else f"{run.name}: {warning}"
            yield f'<p class="warning"><b>Warning</b> {escape(text)}</p>'


def _single(run: Run) -> str:
    figures = "".join(_figure(*figure) for figure in _figures(run))
    return f'<h1>{escape(run.name)}</h1><p class="about">{escape(_about(run))}</p><div class="figures">{figures}</div>'


def _several(runs: Sequence[Run]) -> str:
    names = ("run", "objective", "steps", "accuracy before", "after", "time")
    head = "".join(f"<th>{name}</th>" for name in names)
    body = "".join(_table_row(run, index) for index, run in enumerate(runs))
    table = f'<table class="runs"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f"<h1>{len(runs)} runs</h1>{table}{differing_settings(runs)}"


def _table_row(run: Run, index: int) -> str:
    before, after = before_and_after(run, "accuracy")
    steps = f"{run.last_step}" if run.summary else f"{run.last_step}, not finished"
    cells = (_objective(run), steps, _percent(before), _percent(after), _time(run))
    name = f'<td><i class="key c{index % COLORS}"></i>{escape(run.name)}</td>'
    return f"<tr>{name}{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"


def _figures(run: Run) -> Iterator[tuple[str, str, str]]:
    """Yield (label, value, note) of each big number that exists."""
    sampled = "held-out pairs ranked correctly" if _on_pairs(run) else "held-out accuracy, sampled"
    for label, kind in ((sampled, "accuracy"), ("held-out accuracy, greedy", "accuracy_greedy")):
        before, after = before_and_after(run, kind)
        if after is not None:
            yield label, _percent(after) if before is None else f"{_percent(before)} → {_percent(after)}", ""
    yield "steps", str(run.last_step), "" if run.summary else f"of {run.setting('train', 'steps') or '?'}, not finished"
    if time := _time(run):
        yield "time", time, ""


def _figure(label: str, value: str, note: str) -> str:
    small = f"<small>{escape(note)}</small>" if note else ""
    return f'<div class="figure"><b>{escape(value)}</b><span>{escape(label)} {small}</span></div>'


def before_and_after(run: Run, kind: str) -> tuple[float | None, float | None]:
    """Return held-out `accuracy` or `accuracy_greedy` before and after: from the summary, else from the evaluations."""
    evaluated = [y for _, y in run.points(f"eval/{kind}") if math.isfinite(y)]
    before = run.summary.get(f"{kind}_before", evaluated[0] if len(evaluated) > 1 else None)
    after = run.summary.get(f"{kind}_after", evaluated[-1] if evaluated else None)
    return (before if is_number(before) else None, after if is_number(after) else None)


def _on_pairs(run: Run) -> bool:
    """Return whether held-out accuracy is that of pairs, because the run has no held-out problems."""
    return "eval/pair_accuracy" in run.keys and "eval/reward" not in run.keys


def _about(run: Run) -> str:
    facts = (
        _objective(run),
        ("reference", run.setting("objective", "reference")),
        ("model", run.setting("model", "path") or _architecture(run)),
        ("data", run.setting("data", "task") or run.setting("data", "train")),
        ("prompts per step", run.setting("train", "prompts_per_step")),
        ("group size", run.setting("sampling", "group_size")),
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
    return f"{init.get('architecture', '')} with random weights".strip() if isinstance(init, dict) else None


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}".removesuffix(".0") + "%"


def _time(run: Run) -> str:
    seconds = run.summary.get("seconds")
    if not is_number(seconds):
        seconds = sum(y for _, y in run.points("seconds/total") if math.isfinite(y))
    return duration(seconds)
