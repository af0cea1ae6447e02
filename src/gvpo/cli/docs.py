"""`gvpo docs [PAGE]`: print a page of the documentation of this version."""

import argparse
import re
from pathlib import Path

from gvpo.cli.shipped import shipped_directory
from gvpo.errors import ConfigError
from gvpo.nearest import did_you_mean

PARTS = ("guides", "reference", "internals")
"""Directories of pages, in the order in which they are listed."""
COMMENT = re.compile(r"^<!--.*?-->\n", re.DOTALL | re.MULTILINE)
"""A comment for tools, such as the mark of a snippet that a test runs."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("page", nargs="?", metavar="PAGE", help="Name of a page (default: list all pages)")


def run(options: argparse.Namespace) -> int:
    """Print one page, or the list of pages."""
    found = pages()
    if options.page is None:
        print("\n".join(f"{name:26} {title(file)}" for name, file in found.items()))
    elif options.page in found:
        print(COMMENT.sub("", found[options.page].read_text(encoding="utf-8")), end="")
    else:
        hint = did_you_mean(options.page, found, "`gvpo docs` lists all pages")
        raise ConfigError(f"there is no page {options.page!r}{hint}")
    return 0


def pages() -> dict[str, Path]:
    """Return the file of each page by its name: guides first, then reference and internals."""
    root = shipped_directory("docs")
    return {name(file): file for part in PARTS for file in sorted((root / part).rglob("*.md"))}


def name(file: Path) -> str:
    """Return the name of a page: the name of its file, or of its directory if it introduces one."""
    return file.parent.name if file.stem == "README" else file.stem


def title(file: Path) -> str:
    """Return the title of a page, which is its first line."""
    return file.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
