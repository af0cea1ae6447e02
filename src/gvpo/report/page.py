"""One self-contained HTML page about one or more runs: the numbers, the curves, the groups.

The markup is made in Python; the looks and the behaviour are in assets/. All text from runs is untrusted: it is
escaped here, and what scripts show travels as JSON, plain or packed, and only ever becomes text nodes and titles.
"""

import json
from collections.abc import Iterable, Sequence
from html import escape
from string import Template
from typing import Any

from gvpo.report.asset_files import asset, script, style
from gvpo.report.cards import anchor, curves, curves_data
from gvpo.report.charts import sections
from gvpo.report.comparison import totals
from gvpo.report.data import Run
from gvpo.report.header import header
from gvpo.report.held_out import held_out
from gvpo.report.viewer import viewer_data
from gvpo.runfiles import to_json


def render(runs: Sequence[Run], *, price_per_hour: float | None = None) -> str:
    """Return the page's HTML; see `gvpo.report.write_report` for the arguments."""
    found, answers = sections(runs), held_out(runs)
    return Template(asset("report.html")).substitute(
        title=escape(" / ".join(run.name for run in runs)),
        style=style(),
        header=header(runs),
        contents=_contents([*found, *(["Held-out answers"] if answers else []), "Groups", "Totals", "Settings"]),
        curves=curves(found) or _empty("No metrics yet."),
        answers=_section("Held-out answers", f'<div class="some">{answers}</div>') if answers else "",
        totals=_section("Totals", totals(runs, price_per_hour)),
        settings="".join(_settings(run) for run in runs),
        data=embed({"runs": [run.name for run in runs], "charts": curves_data(found)}),
        packed="\n".join(_packed(name, text) for name, text in viewer_data(runs).items()),
        script=script(),
    )


def embed(data: Any) -> str:
    """Return JSON that is safe inside a <script> element, whatever text it contains."""
    text = to_json(data)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _contents(headings: Iterable[str]) -> str:
    """Return links to the sections of the page."""
    links = "".join(f'<li><a href="#{anchor(name)}">{name}</a></li>' for name in headings)
    return f'<nav class="contents" aria-label="Contents"><ul>{links}</ul></nav>'


def _section(heading: str, inside: str) -> str:
    return f'<section id="{anchor(heading)}"><h2>{heading}</h2>{inside}</section>'


def _settings(run: Run) -> str:
    texts = {"config.json": run.config, "environment.json": run.environment, "summary.json": run.summary}
    blocks = "".join(
        f"<h3>{escape(run.name)}/{name}</h3><pre>{escape(json.dumps(value, indent=2, ensure_ascii=False))}</pre>"
        for name, value in texts.items()
        if value
    )
    return blocks or _empty("No settings were recorded.")


def _packed(name: str, text: str) -> str:
    """Return a block of the viewer's data: base64, which needs no escaping."""
    return f'<script type="text/plain" id="{name}">{text}</script>'


def _empty(text: str) -> str:
    return f'<p class="empty">{text}</p>'
