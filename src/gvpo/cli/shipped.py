"""The recipes and pages that are part of the gvpo package."""

import importlib.resources
from pathlib import Path

from gvpo import runfiles
from gvpo.errors import ConfigError
from gvpo.nearest import did_you_mean

RECIPE = "recipe.toml"
"""Name of the recipe that a directory stands for."""


def shipped_directory(name: str) -> Path:
    """Return a directory of the repository that is also in the wheel: `recipes` or `docs`."""
    package = Path(str(importlib.resources.files("gvpo")))
    inside = package / name
    return inside if inside.is_dir() else package.parents[1] / name


def shipped() -> list[str]:
    """Return the names of the recipes that come with gvpo."""
    root = shipped_directory("recipes")
    names = (file.relative_to(root).with_suffix("").as_posix() for file in root.glob("*/*.toml"))
    return sorted(name.removesuffix("/recipe") for name in names)


def find_recipe(name: str) -> Path:
    """Return the file of a recipe: a path, a directory with a recipe.toml, or the name of a shipped one.

    Raises:
        ConfigError: If there is none; the message suggests the nearest name, and says what a directory contains.
    """
    root = shipped_directory("recipes")
    candidates = [Path(name), Path(name) / RECIPE, root / name / RECIPE, root / f"{name}.toml"]
    for path in candidates:
        if path.is_file():
            return path
    if Path(name).is_dir():
        raise ConfigError(_of_directory(Path(name)))
    hint = did_you_mean(name.removesuffix(".toml"), shipped(), "give a file, or a name that `gvpo list recipes` prints")
    raise ConfigError(f"there is no recipe {name!r}{hint}")


def _of_directory(directory: Path) -> str:
    """Return the message for a directory that is not a recipe."""
    if runfiles.is_run(directory):
        return f"{directory} is a run, not a recipe; resume it with: gvpo train RECIPE run.dir={directory} --resume"
    found = sorted(file.name for file in directory.glob("*.toml"))
    hint = f"give one of its files: {', '.join(found)}" if found else "give a recipe's file"
    return f"the directory {directory} has no {RECIPE}; {hint}"
