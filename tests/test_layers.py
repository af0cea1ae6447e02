"""Imports point down (docs/internals/architecture.md): read from the source, so that a lazy import counts too."""

import ast
from pathlib import Path

import pytest

import gvpo

ROOT = Path(gvpo.__file__).parent
MODULES = sorted(path for path in ROOT.rglob("*.py") if "recipes" not in path.parts)

# What each part may import of gvpo besides itself. A part is a package or a module directly under gvpo.
ALLOWED = {
    "errors": set(),
    "outage": {"errors"},
    "terminal": set(),
    "downloads": set(),
    "retries": set(),
    "types": {"errors"},
    "messages": {"errors"},
    "combinations": set(),
    "config": {"errors", "combinations"},
    "recipefiles": {"errors", "config"},
    "runfiles": {"errors", "types"},
    "collapse": set(),
    "objectives": {"errors"},
    "rewards": {"errors", "types", "retries"},
    "tasks": {"errors", "types", "messages", "rewards", "downloads"},
    "policy": {"errors", "types", "messages", "outage", "config", "downloads"},
    "decoding": {"errors", "types", "policy"},
    "sampling": {"errors", "types", "policy", "decoding"},
    "rollout": {"errors", "types", "rewards", "sampling"},
    "generation": {"errors", "types", "messages", "runfiles", "policy", "rewards", "sampling", "rollout"},
    "evaluation": {"errors", "types", "messages", "rewards", "tasks", "policy", "sampling", "rollout", "generation"},
    "probe": {
        "errors",
        "types",
        "messages",
        "retries",
        "config",
        "runfiles",
        "tasks",
        "policy",
        "sampling",
        "evaluation",
    },
    "report": {"errors", "types", "runfiles", "collapse"},
    "planning": {"errors"},
    "datacheck": {"errors", "types", "rewards", "tasks"},
}
ALLOWED["training"] = {name for name in ALLOWED if name not in ("report", "probe")}
ALLOWED["cli"] = {*ALLOWED, "training"}
FREE_OF_TORCH = {
    "messages",
    "outage",
    "terminal",
    "downloads",
    "retries",
    "errors",
    "types",
    "combinations",
    "config",
    "recipefiles",
    "runfiles",
    "collapse",
    "rewards",
    "tasks",
    "report",
    "planning",
    "datacheck",
    "cli",
}
HOME_OF_TRANSFORMERS = {"policy", "sampling", "decoding"}


def part_of(path: Path) -> str:
    """The part that a file belongs to: `training` for training/update.py, `types` for types.py."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> list[str]:
    """Every module that a file imports anywhere but under `if TYPE_CHECKING`."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            plain = node.module == "gvpo"
            names += [f"gvpo.{alias.name}" for alias in node.names] if plain else [node.module]
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    part = part_of(path)
    if part == "__init__":
        return
    for name in imports(path):
        if name.startswith("gvpo."):
            target = name.split(".")[1]
            assert target == part or target in ALLOWED[part], f"{path} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_torch_and_transformers_stay_where_they_belong(path):
    part = part_of(path)
    roots = {name.partition(".")[0] for name in imports(path)}
    if part in FREE_OF_TORCH:
        assert not roots & {"torch", "transformers", "accelerate"}, path
    if part not in HOME_OF_TRANSFORMERS:
        assert "transformers" not in roots, path


def test_objectives_know_only_torch_and_errors():
    for path in (ROOT / "objectives").glob("*.py"):
        outside = {
            n for n in imports(path) if n.startswith("gvpo.") and not n.startswith(("gvpo.objectives", "gvpo.errors"))
        }
        assert not outside, path


def test_every_part_has_its_rule():
    assert {part_of(path) for path in MODULES} - {"__init__"} <= set(ALLOWED)
