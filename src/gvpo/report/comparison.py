"""Tables that compare runs: the settings in which they differ, and their totals of tokens, time and cost."""

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from gvpo.report.data import Run, is_number

SAME_EVERYWHERE = "run.dir"
"""The setting that always differs and says nothing."""

PHASES = ("sampling", "rewarding", "scoring", "updating", "evaluating")


def differing_settings(runs: Sequence[Run]) -> str:
    """Return a table of the settings and package versions in which runs differ; "" for one run or equal ones."""
    facts = [_facts(run) for run in runs]
    names = dict.fromkeys(name for each in facts for name in each)
    rows = {name: [_text(each.get(name)) for each in facts] for name in names if name != SAME_EVERYWHERE}
    differing = {name: cells for name, cells in rows.items() if len(set(cells)) > 1}
    if len(runs) < 2 or not differing:
        return ""
    return _table("settings that differ", [run.name for run in runs], differing)


def totals(runs: Sequence[Run], price_per_hour: float | None = None) -> str:
    """Return a table of the totals of runs so far.

    Args:
        runs: The runs of the page.
        price_per_hour: Price of one process for one hour, in any currency; None omits the cost.
    """
    rows: dict[str, list[str]] = {
        "completions": [_count(_completions(run)) for run in runs],
        "completion tokens": [_count(_sum(run, "tokens/sampled")) for run in runs],
        "prompt tokens": [_count(_sum(run, "tokens/prompt")) for run in runs],
        "trained tokens, counted per update": [_count(_sum(run, "tokens/trained")) for run in runs],
        **{f"time {phase}": [duration(_sum(run, f"seconds/{phase}")) for run in runs] for phase in PHASES},
        "time of all steps and evaluations": [duration(_seconds(run)) for run in runs],
        "completion tokens per second of training": [_rate(run) for run in runs],
        "processes": [str(_processes(run)) for run in runs],
    }
    if price_per_hour is not None:
        rows[f"cost at {price_per_hour:g} per process and hour"] = [f"{_cost(run, price_per_hour):.2f}" for run in runs]
    known = {name: cells for name, cells in rows.items() if any(cells)}
    return _table("total", [run.name for run in runs], known)


def duration(seconds: float) -> str:
    """Return a duration in words; "" for none."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    if minutes:
        return f"{minutes} min {rest:02d} s"
    return f"{seconds:.2g} s" if 0 < seconds < 1 else f"{rest} s" if rest else ""


def _facts(run: Run) -> dict[str, Any]:
    """Return the settings of a run by dotted key, and its package versions and machine."""
    packages = run.environment.get("packages")
    machine = {"processes": run.environment.get("ranks"), "device": run.environment.get("device")}
    return {
        **_flat(run.config),
        **{name: value for name, value in machine.items() if value is not None},
        **(packages if isinstance(packages, Mapping) else {}),
    }


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        f"{section}.{key}": value
        for section, table in config.items()
        if isinstance(table, Mapping)
        for key, value in table.items()
    }


def _text(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _table(corner: str, names: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in (corner, *names))
    body = "".join(
        f"<tr><td>{escape(name)}</td>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
        for name, cells in rows.items()
    )
    return f'<table class="runs"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _sum(run: Run, key: str) -> float:
    return math.fsum(y for _, y in run.points(key) if math.isfinite(y))


def _completions(run: Run) -> float:
    """Return the number of training completions; a line has their tokens and their mean length."""
    lines = [(line.get("tokens/sampled"), line.get("length/mean")) for line in run.metrics]
    return sum(round(tokens / mean) for tokens, mean in lines if is_number(tokens) and is_number(mean) and mean > 0)


def _seconds(run: Run) -> float:
    return _sum(run, "seconds/total") + _sum(run, "seconds/evaluating")


def _rate(run: Run) -> str:
    seconds = _sum(run, "seconds/total")
    return _count(_sum(run, "tokens/sampled") / seconds) if seconds else ""


def _processes(run: Run) -> int:
    ranks = run.environment.get("ranks")
    return ranks if isinstance(ranks, int) else 1


def _cost(run: Run, price_per_hour: float) -> float:
    return _seconds(run) / 3600 * _processes(run) * price_per_hour


def _count(value: float) -> str:
    return f"{value:,.0f}" if value else ""
