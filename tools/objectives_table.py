"""Write the tables of objectives and of their defaults into every page that has a place for them.

`python tools/objectives_table.py` writes `gvpo.config.OBJECTIVES` between the markers `<!-- objectives -->` and
`<!-- /objectives -->`, and `gvpo.config.defaults` between `<!-- defaults -->` and `<!-- /defaults -->`;
tests/test_docs.py fails if one is out of date.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from gvpo.config import OBJECTIVES, ObjectiveSpec
from gvpo.config.defaults import DEFAULTS, OTHERWISE
from gvpo.config.objectives import taking

ROOT = Path(__file__).parents[1]
OWN = ROOT / "docs" / "reference" / "objectives"
MARKED = re.compile(r"(<!-- (objectives|defaults) -->\n).*?(<!-- /\2 -->)", re.DOTALL)


def pages() -> list[Path]:
    """Return the pages that have a place for the table."""
    candidates = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    return sorted(page for page in candidates if MARKED.search(page.read_text(encoding="utf-8")))


def filled(page: Path) -> str:
    """Return a page's text with the current tables."""

    def table(found: re.Match[str]) -> str:
        rows = _rows(page.parent) if found[2] == "objectives" else _defaults()
        return "\n".join([found[1], *rows, "", found[3]])

    return MARKED.sub(table, page.read_text(encoding="utf-8"))


def _defaults() -> Iterator[str]:
    """Yield the lines of the table of defaults."""
    yield "| `objective.name` | Regime | `objective.reference` | `objective.beta` | `objective.anchor` |"
    yield "|---|---|---|---|---|"
    alike: dict[object, list[str]] = {}
    for name, regimes in DEFAULTS.items():
        alike.setdefault((tuple(regimes.items()), _anchor(name, None)), []).append(name)
    for names in alike.values():
        listed = ", ".join(f"`{name}`" for name in names)
        for regime, default in DEFAULTS[names[0]].items():
            anchor = _anchor(names[0], default.anchor)
            yield f"| {listed} | {regime} | `{default.reference}` | {default.beta} | {anchor} |"
    for name in taking("beta"):
        if name not in DEFAULTS:
            beta = OBJECTIVES[name].keywords["beta"]
            yield f"| `{name}` | any | `{OTHERWISE.reference}` | {beta} | {_anchor(name, None)} |"
    yield f"| others, with a KL penalty | any | `{OTHERWISE.reference}` | none | none |"


def _anchor(name: str, value: float | None) -> str:
    """Return the default of `objective.anchor`: of a regime, else of the objective's function, if it has one."""
    found = OBJECTIVES[name].keywords.get("anchor") if value is None else value
    return "none" if found is None else f"{found:g}"


def _rows(directory: Path) -> Iterator[str]:
    """Yield the lines of the table; links are relative to a directory."""
    own = Path(os.path.relpath(OWN, directory))
    yield "| `objective.name` | What it does | Learns from | Old policy | Reference | Other inputs | Paper |"
    yield "|---|---|---|---|---|---|---|"
    for name, spec in OBJECTIVES.items():
        arxiv = f"[arXiv {spec.paper}](https://arxiv.org/abs/{spec.paper})"
        old = "required" if "old_logprobs" in spec.needs else "not used"
        cells = [f"[`{name}`]({(own / name).as_posix()}.md)", spec.summary, spec.learns_from, old, _reference(spec)]
        yield f"| {' | '.join(cells)} | {_others(spec)} | {arxiv} |"


def _reference(spec: ObjectiveSpec) -> str:
    if "ref_logprobs" in spec.needs:
        return "required"
    return "for its KL term" if "kl_coef" in spec.keywords else "not used"


def _others(spec: ObjectiveSpec) -> str:
    known = ("rewards", "old_logprobs", "ref_logprobs")
    return ", ".join(f"`{name}`" for name in spec.needs if name not in known)


if __name__ == "__main__":
    for each in pages():
        each.write_text(filled(each), encoding="utf-8")
