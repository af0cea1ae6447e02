"""Functions and classes of users, loaded by name: `module:name` (also of the working directory) or `file.py:name`."""

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle

from gvpo.errors import GvpoError
from gvpo.nearest import did_you_mean


@dataclass(frozen=True)
class UserCode:
    """Loads one kind of things by name, with errors that call them by their word.

    Args:
        word: What is loaded, such as "reward".
        error: Class of the errors.
        attribute: What a file or module contains, such as "function".
    """

    word: str
    error: type[GvpoError]
    attribute: str = "function"

    def load(self, name: str) -> Callable[..., Any]:
        """Return what `module:name` or `path/to/file.py:name` stands for.

        Raises:
            GvpoError: If it does not exist or cannot be imported.
        """
        place, colon, attribute = name.rpartition(":")
        if not colon or not place.strip(".") or not attribute:
            which = self.attribute
            raise self.error(f"{self.word} {name!r} is not a name; write module:{which} or file.py:{which}")
        module = self._file(place, name) if place.endswith(".py") else self._module(place, name)
        found = getattr(module, attribute, None)
        if not callable(found):
            near = did_you_mean(attribute, [key for key, value in vars(module).items() if callable(value)])
            raise self.error(f"{self.word} {name!r}: {place} has no {self.attribute} {attribute!r}{near}")
        return found  # type: ignore[no-any-return]  # any callable may be meant

    def existing(self, path: str | Path, name: str) -> Path:
        """Return the absolute path of a file in a name.

        Raises:
            GvpoError: If it does not exist.
        """
        path = Path(path).expanduser().resolve()
        if not path.is_file():
            raise self.error(f"{self.word} {name!r}: there is no file {path}; correct the path")
        return path

    def check_options(self, name: str, make: Callable[..., Any], options: Mapping[str, Any]) -> None:
        """Check that a function or class accepts options.

        Raises:
            GvpoError: If it does not; the message lists what it accepts.
        """
        try:
            inspect.signature(make).bind(**options)
        except TypeError as error:
            takes = ", ".join(inspect.signature(make).parameters) or "none"
            raise self._unfit(name, f"{error}; it accepts {takes}") from None
        except ValueError:
            pass  # its signature cannot be read

    def make(self, name: str, make: Callable[..., Any], options: Mapping[str, Any]) -> Any:
        """Return what a function or class returns for options.

        Raises:
            GvpoError: If the options do not fit.
        """
        self.check_options(name, make, options)
        try:
            return make(**options)
        except (TypeError, ValueError) as error:
            raise self._unfit(name, str(error)) from error

    def _unfit(self, name: str, why: str) -> GvpoError:
        return self.error(f"the options of the {self.word} {name!r} do not fit: {why}")

    def _module(self, place: str, name: str) -> ModuleType:
        _make_importable(Path.cwd())
        try:
            return importlib.import_module(place)
        except (Exception, SystemExit) as error:
            raise self._cannot_import(name, place, error) from error

    def _file(self, place: str, name: str) -> ModuleType:
        """Import a file as a module. What it has is pickled by value, since workers cannot import it by name."""
        path = self.existing(place, name)
        known = f"gvpo_file_{path.stem}_{hashlib.blake2b(str(path).encode(), digest_size=4).hexdigest()}"
        if known in sys.modules:
            return sys.modules[known]
        _make_importable(path.parent)
        spec = importlib.util.spec_from_file_location(known, path)
        if spec is None or spec.loader is None:
            raise self.error(f"{self.word} {name!r}: {path} is not a Python file")
        module = sys.modules[known] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            del sys.modules[known]
            raise self._cannot_import(name, path, error) from error
        cloudpickle.register_pickle_by_value(module)
        return module

    def _cannot_import(self, name: str, place: str | Path, error: BaseException) -> GvpoError:
        what = f"{type(error).__name__}: {error}".replace("\n", " ")
        return self.error(f"{self.word} {name!r}: {place} cannot be imported: {what}")


def _make_importable(directory: Path) -> None:
    """Append to the import path, at the end so that it shadows no installed module; the workers use the same path."""
    if str(directory) not in sys.path:
        sys.path.append(str(directory))
