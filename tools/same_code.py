"""Show that a change of the English did not change the code: compare syntax trees without strings and comments.

`python -m tools.same_code BASE` compares the Python files of src between the git revision BASE and the working tree,
and exits with 1 if one differs. Docstrings may be added and removed. The text of other strings may change, and so may
the names of tests and the order of the expressions in an f-string. A changed string without a space is also printed,
since it may be a key or a path.
"""

import argparse
import ast
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]


class _WithoutWords(ast.NodeTransformer):
    """Empty the strings, and remove those that are statements."""

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        """Empty a string."""
        return ast.Constant("") if isinstance(node.value, str) else node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.expr:
        """Keep the expressions of an f-string, in any order; one without an expression is a plain string."""
        values = [value for value in node.values if isinstance(value, ast.FormattedValue)]
        for value in values:
            value.value = self.visit(value.value)
        return ast.JoinedStr(sorted(values, key=ast.dump)) if values else ast.Constant("")

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        """Ignore the name of a test."""
        node.name = re.sub(r"^test_.*", "test_", node.name)
        return self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        """Remove a docstring."""
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_text else self.generic_visit(node)


def skeleton(source: str) -> str:
    """Return the syntax tree of a Python file without the words of its strings."""
    return ast.dump(_WithoutWords().visit(ast.parse(source)))


def renamed(before: str, after: str) -> list[str]:
    """Return strings without a space, perhaps keys or paths, that are in only one of two sources."""
    old, new = _names(before), _names(after)
    return sorted({*(old - new), *(new - old)})


def _names(source: str) -> Counter[str]:
    values = (node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant))
    return Counter(value for value in values if isinstance(value, str) and re.fullmatch(r"\S*\w\S*", value))


def compare(root: Path, base: str, folders: list[str]) -> tuple[list[str], list[str]]:
    """Return the Python files whose code differs from that of the revision `base`, and notes on strings to look at."""
    changed = _git(root, "diff", "--name-only", "--no-renames", base, "--", *folders).splitlines()
    changed += _git(root, "ls-files", "--others", "--exclude-standard", "--", *folders).splitlines()
    differing, notes = [], []
    for name in sorted(name for name in changed if name.endswith(".py")):
        before = subprocess.run(["git", "-C", root, "show", f"{base}:{name}"], capture_output=True, check=False)
        after = (root / name).read_text(encoding="utf-8") if (root / name).is_file() else None
        if before.returncode or after is None or skeleton(before.stdout.decode("utf-8")) != skeleton(after):
            differing.append(name)
        else:
            notes += [f"{name}: look at {text!r}" for text in renamed(before.stdout.decode("utf-8"), after)]
    return differing, notes


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", root, *arguments], capture_output=True, check=True, text=True).stdout


def main(arguments: list[str]) -> int:
    """Print the files whose code changed; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.same_code", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("base", help="Git revision to compare with")
    parser.add_argument("--tests", action="store_true", help="Compare tests, benchmarks, tools and examples too")
    parser.add_argument("--root", type=Path, default=ROOT, help="Directory of the repository")
    options = parser.parse_args(arguments)
    folders = ["src", "tests", "benchmarks", "recipes", "tools", "examples"] if options.tests else ["src"]
    differing, notes = compare(options.root, options.base, folders)
    lines = [*notes, *(f"{name}: the code differs" for name in differing)]
    print("\n".join([*lines, f"{len(differing)} files differ in more than their words"]))
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
