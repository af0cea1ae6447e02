"""The tables of `gvpo eval`: numbers with intervals, differences, and the number of problems needed to detect them."""

import itertools
import string
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

NOTHING = "-"
WIDEST = 10_000
"""Width of the console that tables are measured for."""

MODELS = ("model", "minus")
"""Columns of models' names. If a table is too wide for the terminal, the names become letters, which are explained."""

Values = Mapping[str, Any]
Titled = tuple[str, Sequence[Mapping[str, str]]]


def print_scores(summary: Values, *, chosen: Sequence[int] | None = None) -> None:
    """Print a summary's results, averages and differences.

    Args:
        summary: Result of `evaluation.results.summary`.
        chosen: Values of k for pass@k and maj@k; by default the number of samples.
    """
    console = Console()
    tables = list(_tables(summary, chosen))
    if any(_width(console, _table(table)) > console.width for table in tables):
        names = dict(zip(_models(summary["results"]), _letters(), strict=False))
        for name, letter in names.items():
            console.print(f"{letter}  {name}", highlight=False, markup=False, soft_wrap=True)
        tables = [(title, [_renamed(row, names) for row in rows]) for title, rows in tables]
    for table in tables:
        console.print(_table(table))


def _tables(summary: Values, chosen: Sequence[int] | None) -> Iterator[Titled]:
    """Yield the title and the rows of each table."""
    results = summary["results"]
    yield "percent correct, with 95% intervals over problems", _scores(results)
    if any(result["samples"] > 1 for result in results):
        yield "percent, for several samples", _of_several(results, chosen)
    yield "completions", [_completions(result) for result in results]
    if summary["averages"]:
        yield "averages over benchmarks", [_average(average) for average in summary["averages"]]
    if summary["differences"]:
        yield "paired differences in avg@n, in points", [_difference(each) for each in summary["differences"]]


def _width(console: Console, table: Table) -> int:
    """Return the number of columns that a table needs."""
    return Measurement.get(console, console.options.update(max_width=WIDEST), table).maximum


def _models(results: Sequence[Values]) -> list[str]:
    return list(dict.fromkeys(result["model"] for result in results))


def _letters() -> Iterator[str]:
    """Yield A, B, ..., Z, A1, B1, ..."""
    for number in itertools.count():
        yield from (f"{letter}{number or ''}" for letter in string.ascii_uppercase)


def _renamed(row: Mapping[str, str], names: Mapping[str, str]) -> dict[str, str]:
    """Return a row with letters instead of the models' names."""
    return {key: names.get(text, text) if key in MODELS else text for key, text in row.items()}


def _table(titled: Titled) -> Table:
    """Return a table of rows with the same keys; words are aligned left, and numbers right."""
    title, rows = titled
    table = Table(title=title, title_justify="left")
    for name in rows[0]:
        table.add_column(name, justify="left" if name in ("benchmark", *MODELS) else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row.values())
    return table


def _scores(results: Sequence[Values]) -> list[dict[str, str]]:
    return [
        {
            "benchmark": result["benchmark"],
            "model": result["model"],
            "problems": str(result["problems"]),
            "n": str(result["samples"]),
            "avg@n": _percent(result["avg"]["mean"]),
            "95%": _interval(result["avg"]["interval"]),
        }
        for result in results
    ]


def _of_several(results: Sequence[Values], chosen: Sequence[int] | None) -> list[dict[str, str]]:
    return [
        {
            "benchmark": result["benchmark"],
            "model": result["model"],
            "k": str(k),
            **_at(result["pass_at"].get(str(k)), "pass@k"),
            **_at(result["maj_at"].get(str(k)), "maj@k"),
        }
        for result in results
        for k in chosen or [result["samples"]]
    ]


def _at(value: Values | None, name: str) -> dict[str, str]:
    if value is None:
        return {name: NOTHING, f"95% {name}": NOTHING}
    return {name: _percent(value["mean"]), f"95% {name}": _interval(value["interval"])}


def _completions(result: Values) -> dict[str, str]:
    return {
        "benchmark": result["benchmark"],
        "model": result["model"],
        "mean tokens": NOTHING if result["length"] is None else f"{result['length']:.0f}",
        "% truncated": _percent(result["truncated"]),
        "failed rewards": str(result["failed"]),
    }


def _average(average: Values) -> dict[str, str]:
    return {
        "model": average["model"],
        "benchmarks": str(average["benchmarks"]),
        "avg@n": _percent(average["mean"]),
        "95%": NOTHING if average["interval"] is None else _interval(average["interval"]),
    }


def _difference(difference: Values) -> dict[str, str]:
    low, high = (100 * end for end in difference["interval"])
    needed = difference["problems_needed"]
    return {
        "benchmark": difference["benchmark"],
        "model": difference["first"],
        "minus": difference["second"],
        "points": f"{100 * difference['difference']:+.1f}",
        "95%": f"[{low:+.1f}, {high:+.1f}]",
        "problems": str(difference["problems"]),
        "needed": NOTHING if needed is None else str(needed),
    }


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _interval(ends: Sequence[float]) -> str:
    low, high = ends
    return f"[{_percent(low)}, {_percent(high)}]"
