"""The curves of a probe's evaluation as a figure: expected reward against how many completions are drawn."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gvpo.report.figure import figure
from gvpo.report.svg import Chart, Series
from gvpo.runfiles import write_text

_NAMES = {"random": "a random one", "best": "the best of k"}


def reward_figure(result: Mapping[str, Any]) -> str:
    """Return the figure of an evaluation, as `gvpo probe eval --out` writes it, as SVG text."""
    series = [
        Series(
            name=_NAMES.get(name, f"probe, {name}"),
            points=list(zip(result["ks"], arm["mean"], strict=True)),
            color=color,
            dots=True,
            band=list(zip(arm["low"], arm["high"], strict=True)),
        )
        for color, (name, arm) in enumerate(result["arms"].items())
    ]
    unit = f"{result['prompts']} prompts, 95% intervals"
    return figure([Chart("Expected reward", unit, series, across="k")])


def write_reward_figure(result: Mapping[str, Any], out: str | Path) -> Path:
    """Write `reward_figure` to a file and return its path.

    Raises:
        RunError: the file cannot be written.
    """
    write_text(Path(out), reward_figure(result))
    return Path(out)
