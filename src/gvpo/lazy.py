"""Public names that are imported on first use, so that `import gvpo` does not wait for torch.

A package lists its names once, as imports that only type checkers execute:

    if TYPE_CHECKING:
        from gvpo.training.trainer import Trainer as Trainer
    __all__, __getattr__, __dir__ = lazy.exports(__name__)
"""

import ast
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any


def exports(package: str) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__all__`, `__getattr__` and `__dir__` of a package that imports its names under `if TYPE_CHECKING`.

    Args:
        package: `__name__` of the package that is being imported.
    """
    module = sys.modules[package]
    homes = dict(_imported(ast.parse(inspect.getsource(module))))

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if homes[name] == package:  # the name is a module of the package
            return importlib.import_module(f"{package}.{name}")
        return getattr(importlib.import_module(homes[name]), name)

    return sorted(homes), load, lambda: sorted({*vars(module), *homes})


def named(target: str) -> Any:
    """Import the object that "module:name" refers to."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def _imported(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield each name that is imported under `if TYPE_CHECKING`, and the module that defines it."""
    for block in tree.body:
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING":
            for statement in block.body:
                if isinstance(statement, ast.ImportFrom) and statement.module:
                    yield from ((alias.name, statement.module) for alias in statement.names)
