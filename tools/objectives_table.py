"""Write the table of objectives into every page that has a place for it, from `gvpo.config.OBJECTIVES`.

`python tools/objectives_table.py` writes it between the markers `<!-- objectives -->` and `<!-- /objectives -->`;
tests/test_docs.py fails if it is out of date.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from gvpo.config import OBJECTIVES, ObjectiveSpec

ROOT = Path(__file__).parents[1]
OWN = ROOT / "docs" / "reference" / "objectives"
MARKED = re.compile(r"(?<=<!-- objectives -->\n).*?(?=<!-- /objectives -->)", re.DOTALL)


def pages() -> list[Path]:
    """Return the pages that have a place for the table."""
    candidates = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    return sorted(page for page in candidates if MARKED.search(page.read_text(encoding="utf-8")))


def filled(page: Path) -> str:
    """Return a page's text with the current table."""
    table = "\n".join(["", *_rows(page.parent), "", ""])
    return MARKED.sub(lambda _: table, page.read_text(encoding="utf-8"))


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
