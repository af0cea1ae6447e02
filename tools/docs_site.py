"""Build the documentation site in build/site from the same pages that the repository shows.

`make docs-site` runs it. The pages have the order of docs/README.md. Links between pages are relative to the
repository, so the pages are copied in the same layout first. A broken link or anchor is an error.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "site"
LINK = re.compile(r"\[[^\]]+\]\(([^)#\s]+\.md)")
COPIED = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "docs", "examples", "recipes")
CONFIG = """\
[project]
site_name = "gvpo"
site_description = "Post-train language models with Group Variance Policy Optimization and its family"
docs_dir = "pages"
site_dir = "html"
use_directory_urls = false
nav = {nav}

[project.theme]
font = false
features = ["navigation.sections", "navigation.top", "search.highlight", "content.code.copy"]

[project.markdown_extensions]
tables = {{}}
attr_list = {{}}
md_in_html = {{}}
sane_lists = {{}}

[project.markdown_extensions.pymdownx.superfences]

[project.markdown_extensions.pymdownx.highlight]

[project.markdown_extensions.toc]
permalink = true
slugify = {{ object = "pymdownx.slugs.slugify", kwds = {{ case = "lower" }} }}
"""


def main() -> int:
    """Build the site and return the generator's exit code."""
    shutil.rmtree(BUILD, ignore_errors=True)
    for name in COPIED:
        _copy(ROOT / name, BUILD / "pages" / name)
    (BUILD / "zensical.toml").write_text(CONFIG.format(nav=_toml(navigation())), encoding="utf-8")
    command = [Path(sys.executable).parent / "zensical", "build", "--strict", "--config-file", BUILD / "zensical.toml"]
    return subprocess.run(command, cwd=BUILD).returncode


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)


def navigation() -> dict[str, list[str]]:
    """Return the pages of each section of docs/README.md, in its order, and those of the objectives' index."""
    objectives = ROOT / "docs/reference/objectives/README.md"
    sections = re.split(r"^## ", (ROOT / "docs/README.md").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    found = {"Start": ["README.md", "docs/README.md"]}
    for section in sections:
        found[section.partition("\n")[0]] = _pages(section, ROOT / "docs")
        if _page(objectives) in found[section.partition("\n")[0]]:
            own = _pages(objectives.read_text(encoding="utf-8"), objectives.parent)
            found["Objectives"] = [page for page in own if Path(page).parent == Path(_page(objectives)).parent]
    return found


def _pages(text: str, directory: Path) -> list[str]:
    """Return the pages that a text links to, each once."""
    return list(dict.fromkeys(_page(directory / link) for link in LINK.findall(text)))


def _page(path: Path) -> str:
    return path.resolve().relative_to(ROOT).as_posix()


def _toml(sections: dict[str, list[str]]) -> str:
    return "[" + ", ".join(f"{{ {json.dumps(name)} = {json.dumps(pages)} }}" for name, pages in sections.items()) + "]"


if __name__ == "__main__":
    sys.exit(main())
