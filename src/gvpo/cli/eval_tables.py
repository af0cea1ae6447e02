"""The tables of `gvpo eval`: numbers with intervals, differences, and the number of problems needed to detect them."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

NOTHING = "-"

Values = Mapping[str, Any]


def print_scores(summary: Values, *, chosen: Sequence[int] | None = None) -> None:
    """Print a summary's results, averages and differences.

    Args:
        summary: Result of `evaluation.results.summary`.
        chosen: Values of k for pass@k and maj@k; by default the number of samples.
    """
    console = Console()
    results = summary["results"]
    console.print(_table("percent correct, with 95% intervals over problems", _scores(results)))
    if any(result["samples"] > 1 for result in results):
        console.print(_table("percent, for several samples", _of_several(results, chosen)))
    console.print(_table("completions", [_completions(result) for result in results]))
    if summary["averages"]:
        console.print(_table("averages over benchmarks", [_average(average) for average in summary["averages"]]))
    if summary["differences"]:
        found = [_difference(difference) for difference in summary["differences"]]
        console.print(_table("paired differences in avg@n, in points", found))


def _table(title: str, rows: Sequence[Mapping[str, str]]) -> Table:
    """Return a table of rows with the same keys; words are aligned left and may be folded, numbers right."""
    table = Table(title=title, title_justify="left")
    for name in rows[0]:
        words = name in ("benchmark", "model", "minus")
        table.add_column(name, justify="left" if words else "right", overflow="fold", no_wrap=not words)
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
