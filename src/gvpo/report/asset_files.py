"""The files of report/assets: the page's frame, its styles and its scripts, each with one job."""

from importlib import resources

STYLES = (
    "chart.css",
    "page.css",
    "curves.css",
    "controls.css",
    "list.css",
    "completions.css",
    "episodes.css",
    "held_out.css",
    "tokens.css",
)

SCRIPTS = (
    "dom.js",
    "curves.js",
    "store.js",
    "query.js",
    "address.js",
    "contents.js",
    "tokens.js",
    "list.js",
    "turns.js",
    "completions.js",
    "episodes.js",
    "controls.js",
    "viewer.js",
    "start.js",
)
"""The order of the scripts in the page: they share a scope, which no other script sees."""


def asset(name: str) -> str:
    """Return the text of a file in report/assets."""
    return resources.files("gvpo.report").joinpath("assets", name).read_text(encoding="utf-8")


def style() -> str:
    """Return the page's style sheet."""
    return "".join(asset(name) for name in STYLES)


def script() -> str:
    """Return the page's script."""
    return "\n".join(asset(name) for name in SCRIPTS)
