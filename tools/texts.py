"""Extract the English of the repository: docstrings, comments, messages, help texts, test names and Markdown.

A stand-in replaces parts that are not English (`names`, "quotations", $formulas$, blocks of code), so that no rule
matches them. Line breaks are kept, so that a finding can name its line.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOMS = ("src", "tests", "docs", "recipes", "benchmarks", "tools", "examples")
"""The folders to read, in addition to the Markdown files in the root."""

PROBLEMS = "word_problems.py"
"""The file whose strings are problems for models: to change their words is to change the data."""

SUFFIXES = (".py", ".md", ".toml", ".sh")

STAND_IN = "§"
"""The character that replaces a name, a formula or a quotation."""

_LITERAL = re.compile(r"``[^`]+``|`(?:[^`\n]|\n(?! *\n))+`|\$\$[^$]+\$\$|\$[^$\n]+\$|\"[^\"\n]*\"|“[^”]*”")
_BLOCK = re.compile(r"^ *(`{3,}|~{3,}).*?^ *\1 *$|<!--.*?-->|^ *>.*?$|\]\([^)]*\)", re.MULTILINE | re.DOTALL)
_EXAMPLE = re.compile(r"^ *(>>>|\.\.\.) .*$", re.MULTILINE)
_TOKEN = re.compile(
    r"\"{3}(?:\\.|[^\\])*?\"{3}|'{3}(?:\\.|[^\\])*?'{3}|\"(?:\\.|[^\\\"\n])*\"|'(?:\\.|[^\\'\n])*'"
    r"|(?P<comment>(?:^[ \t]*#[^\n]*\n?)+|#[^\n]*)",
    re.DOTALL | re.MULTILINE,
)
_MARK = re.compile(r"^[ \t]*#+[!:]?", re.MULTILINE)
_HELP = ("help", "description")


class Text(NamedTuple):
    """One text of a file.

    `kind` is "module", "class", "function", "property", "test" or "constant" for a docstring, and otherwise "comment",
    "message", "help", "test name" or "markdown". `line` is the number of the first line of `words`.
    """

    path: Path
    line: int
    kind: str
    words: str


def texts(root: Path, wanted: set[Path]) -> Iterator[Text]:
    """Yield the texts of the files of the repository at `root` that are among the wanted paths or inside one."""
    for path in files(root):
        if not wanted & {path.resolve(), *path.resolve().parents}:
            continue
        source, name = path.read_text(encoding="utf-8"), path.relative_to(root)
        if path.suffix == ".py":
            yield from python_texts(name, source)
        elif path.suffix == ".md":
            yield markdown_text(name, source)
        else:
            yield from _comments(name, source)


def files(root: Path) -> list[Path]:
    """Return the Python, Markdown, TOML and shell files of the repository at `root`."""
    below = (path for room in ROOMS for path in (root / room).rglob("*") if path.suffix in SUFFIXES)
    return sorted([*root.glob("*.md"), *below])


def markdown_text(name: Path, source: str) -> Text:
    """Return a Markdown file without its blocks of code, quotations and links."""
    return Text(name, 1, "markdown", mask(_BLOCK.sub(_blank, source)))


def python_texts(name: Path, source: str) -> Iterator[Text]:
    """Yield the docstrings, comments and test names of a Python file, and the messages of a file in src."""
    nodes = list(ast.walk(ast.parse(source)))
    docstrings = {id(constant): (constant, kind) for node in nodes for constant, kind in _docstrings(node)}
    for constant, kind in docstrings.values():
        yield Text(name, constant.lineno, kind, mask(_EXAMPLE.sub(STAND_IN, constant.value)))
    yield from _comments(name, source)
    if name.parts[0] == "src" and name.name != PROBLEMS:
        yield from _messages(name, nodes, set(docstrings))
    if name.name.startswith("test_"):
        yield from _test_names(name, nodes)


def mask(text: str) -> str:
    """Replace names, formulas and quotations by a stand-in."""
    return _LITERAL.sub(_blank, text)


def _blank(found: re.Match[str]) -> str:
    return STAND_IN + "\n" * found[0].count("\n")


def _docstrings(node: ast.AST) -> Iterator[tuple[ast.Constant, str]]:
    """Yield the docstring of a module, class or function, and those under the constants in it, with their kinds."""
    if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        return
    for index, statement in enumerate(node.body):
        constant = statement.value if isinstance(statement, ast.Expr) else None
        if isinstance(constant, ast.Constant) and isinstance(constant.value, str):
            yield constant, "constant" if index else _kind(node)


def _kind(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    if isinstance(node, ast.Module):
        return "module"
    if isinstance(node, ast.ClassDef):
        return "class"
    if any(ast.unparse(mark).endswith(("property", "fixture")) for mark in node.decorator_list):
        return "property"
    return "test" if node.name.startswith("test_") else "function"


def _comments(name: Path, source: str) -> Iterator[Text]:
    """Yield the comments; adjacent lines that contain only a comment are one text."""
    for found in _TOKEN.finditer(source):
        if found["comment"]:
            line = source.count("\n", 0, found.start()) + 1
            yield Text(name, line, "comment", mask(_MARK.sub("", found["comment"])))


def _messages(name: Path, nodes: list[ast.AST], docstrings: set[int]) -> Iterator[Text]:
    """Yield the strings of at least three words, and every help text."""
    helps = {id(node.value) for node in nodes if isinstance(node, ast.keyword) and node.arg in _HELP}
    parts = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in ast.walk(node)} - {
        id(node) for node in nodes if isinstance(node, ast.JoinedStr)
    }
    for node in nodes:
        if isinstance(node, (ast.Constant, ast.JoinedStr)) and id(node) not in parts | docstrings:
            words = _words(node)
            if id(node) in helps or words.count(" ") > 1:
                yield Text(name, node.lineno, "help" if id(node) in helps else "message", mask(words))


def _words(node: ast.Constant | ast.JoinedStr) -> str:
    values = node.values if isinstance(node, ast.JoinedStr) else [node]
    return "".join(str(part.value) if isinstance(part, ast.Constant) else STAND_IN for part in values)


def _test_names(name: Path, nodes: list[ast.AST]) -> Iterator[Text]:
    for node in nodes:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield Text(name, node.lineno, "test name", node.name.removeprefix("test_").replace("_", " "))
