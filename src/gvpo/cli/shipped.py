"""The recipes and pages that are part of the gvpo package."""

import importlib.resources
from pathlib import Path


def shipped_directory(name: str) -> Path:
    """Return a directory of the repository that is also in the wheel: `recipes` or `docs`."""
    package = Path(str(importlib.resources.files("gvpo")))
    inside = package / name
    return inside if inside.is_dir() else package.parents[1] / name
