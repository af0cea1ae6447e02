"""`gvpo docs`: every page has one name, and every page that gvpo names exists."""

import ast
import re
import tomllib
from pathlib import Path

import gvpo
from gvpo.cli.docs import PARTS, name, pages
from gvpo.cli.main import main
from gvpo.cli.shipped import shipped_directory

PACKAGE = Path(gvpo.__file__).parent
SOURCES = [path for path in PACKAGE.rglob("*") if path.suffix in {".py", ".toml", ".html"}]


def test_a_page_is_printed_by_its_name(capsys):
    assert main(["docs", "scaling"]) == 0
    assert capsys.readouterr().out == pages()["scaling"].read_text(encoding="utf-8")


def test_comments_for_tools_are_not_printed(capsys):
    assert "<!-- runs -->" in pages()["quickstart"].read_text(encoding="utf-8")
    assert main(["docs", "quickstart"]) == 0
    assert "<!--" not in capsys.readouterr().out


def test_without_a_name_all_pages_are_listed(capsys):
    assert main(["docs"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == list(pages())
    assert {"quickstart", "configuration", "objectives", "gvpo", "architecture"} <= set(listed)


def test_error_about_a_misspelled_page_suggests_the_nearest_name(capsys):
    assert main(["docs", "scalling"]) == 2
    assert "there is no page 'scalling'; did you mean 'scaling'?" in capsys.readouterr().err


def test_no_two_pages_have_the_same_name():
    names = [name(file) for part in PARTS for file in _files(part)]
    assert sorted(names) == sorted(set(names))


def _files(part):
    return (shipped_directory("docs") / part).rglob("*.md")


def test_the_wheel_contains_every_page():
    build = tomllib.loads((PACKAGE.parents[1] / "pyproject.toml").read_text("utf-8"))["tool"]["hatch"]["build"]
    included = build["targets"]["wheel"]["force-include"]
    assert {part: included[f"docs/{part}"] for part in PARTS} == {part: f"gvpo/docs/{part}" for part in PARTS}


def test_every_page_that_a_message_names_exists():
    named = {
        (path.name, page) for path in SOURCES for page in re.findall(r"gvpo docs ([\w-]+)", path.read_text("utf-8"))
    }
    assert len(named) > 5
    assert [(file, page) for file, page in named if page not in pages()] == []


def test_messages_name_pages_by_a_command_that_an_installed_gvpo_has():
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                assert ".md" not in node.value or "docs/" not in node.value, f"{path.name}: {node.value}"


def test_files_that_docstrings_and_comments_name_exist():
    root = PACKAGE.parents[1]
    named = {(path, page) for path in SOURCES for page in re.findall(r"docs/[\w./-]+\.md", path.read_text("utf-8"))}
    assert len(named) > 5
    assert [(str(path), page) for path, page in named if not (root / page).is_file()] == []
