"""Imports point down (docs/internals/architecture.md); the source is read, so that lazy imports count as well."""

import ast
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import gvpo

ROOT = Path(gvpo.__file__).parent
MODULES = sorted(path for path in ROOT.rglob("*.py") if "recipes" not in path.parts)

# The rooms, from the ground up: a room may import those of the rows above its own, and no other.
FLOORS = [
    ["errors", "lazy", "nearest", "terminal", "retries", "hub", "collapse", "model_config", "activity"],
    ["types", "notices", "outcome"],
    ["messages", "system_errors", "runfiles", "progress", "user_code"],
    ["config", "objectives", "planning", "report", "resumable", "workers", "model_directories"],
    ["rewards"],
    ["environments"],
    ["data"],
    ["model"],
    ["update"],
    ["sampling"],
    ["rollout", "callbacks"],
    ["evaluation", "testing"],
    ["training", "probe"],
    ["integrations"],
    ["cli"],
    ["__main__"],
]
FREE_OF_TORCH = {room for row in FLOORS[:7] for room in row} - {"objectives"} | {"cli"}
HOME_OF_TRANSFORMERS = {"model", "sampling", "update", "callbacks"}
BELOW = {room: {each for row in FLOORS[:floor] for each in row} for floor, row in enumerate(FLOORS) for room in row}
MOST_MODULES = 20
"""Maximum number of modules in one folder, without `__init__.py`."""


def part_of(path: Path) -> str:
    """Return the part that a file belongs to: `update` for update/group_backward.py, `types` for types.py."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> list[str]:
    """Return every module that a file imports outside of `if TYPE_CHECKING`."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    part = part_of(path)
    if part == "__init__":
        return
    for name in imports(path):
        if name.startswith("gvpo."):
            target = name.split(".")[1]
            assert target == part or target in BELOW[part], f"{path} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_torch_and_transformers_stay_where_they_belong(path):
    part = part_of(path)
    roots = {name.partition(".")[0] for name in imports(path)}
    if part in FREE_OF_TORCH:
        assert not roots & {"torch", "transformers", "accelerate"}, path
    if part not in HOME_OF_TRANSFORMERS:
        assert "transformers" not in roots, path


def test_objectives_import_only_torch_and_errors():
    for path in (ROOT / "objectives").glob("*.py"):
        outside = {
            n for n in imports(path) if n.startswith("gvpo.") and not n.startswith(("gvpo.objectives", "gvpo.errors"))
        }
        assert not outside, path


def test_every_part_has_its_rule():
    assert {part_of(path) for path in MODULES} - {"__init__"} == set(BELOW)


def test_no_folder_has_too_many_modules():
    counts = Counter(path.parent for path in MODULES if path.name != "__init__.py")
    assert max(counts.values()) <= MOST_MODULES, counts.most_common(3)


def test_no_modules_import_each_other():
    """Find circles among modules; a package's `__init__` only re-exports names and is skipped."""
    names = {".".join(("gvpo", *path.relative_to(ROOT).with_suffix("").parts)): path for path in MODULES}
    graph = {name: {each for each in imports(path) if each in names} for name, path in names.items()}
    tuple(TopologicalSorter(graph).static_order())  # raises CycleError, whose message has the circle
