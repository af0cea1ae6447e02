"""`gvpo init NAME`: create a directory with a recipe, a reward and data that can be trained immediately."""

import argparse
import importlib.resources
import json
import os
from pathlib import Path
from string import Template

from gvpo.config.toml import toml_value
from gvpo.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("name", type=Path, metavar="NAME", help="New or empty directory for the project")


def run(options: argparse.Namespace) -> int:
    """Write the directory, and print how to train it."""
    write_project(options.name)
    print(f"wrote {options.name}: recipe.toml, reward.py, data/, README.md")
    print(f"train it with: gvpo train {options.name / 'recipe.toml'}")
    return 0


def write_project(directory: Path) -> None:
    """Write the project.

    Args:
        directory: Directory of the project; the paths in the recipe begin with it.

    Raises:
        ConfigError: If it is not empty, or cannot be written.
    """
    try:
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise ConfigError(f"{directory} already exists; choose another name, existing files are not overwritten")
        for name, text in project_files(directory).items():
            file = directory / name
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("x", encoding="utf-8") as stream:  # fails if the file was created in the meantime
                stream.write(text)
    except OSError as error:
        raise ConfigError(f"cannot write {directory}: {os.strerror(error.errno or 0)}; choose another name") from error


def project_files(directory: Path) -> dict[str, str]:
    """Return the texts of the project's files by their path in it."""
    place = importlib.resources.files("gvpo.cli") / "project"
    values = {
        "name": directory.as_posix(),
        "train": _quoted(directory / "data/train.jsonl"),
        "eval": _quoted(directory / "data/eval.jsonl"),
        "reward": _quoted(directory / "reward.py", ":reward"),
    }
    texts = {name: (place / name).read_text(encoding="utf-8") for name in ("recipe.toml", "reward.py", "README.md")}
    filled = {name: text if name == "reward.py" else Template(text).substitute(values) for name, text in texts.items()}
    numbers = range(10, 100)
    return {
        **filled,
        "data/train.jsonl": "".join(_line(n) for n in numbers if not _is_held_out(n)),
        "data/eval.jsonl": "".join(_line(n) for n in numbers if _is_held_out(n)),
    }


def _quoted(path: Path, rest: str = "") -> str:
    """Return a path as a TOML string."""
    return toml_value(path.as_posix() + rest)


def _is_held_out(number: int) -> bool:
    """Return whether a number is held out: two tens per last digit, so that training has every digit as well."""
    return sum(divmod(number, 10)) % 5 == 0


def _line(number: int) -> str:
    return json.dumps({"prompt": str(number), "answer": str((number + 1) % 10)}) + "\n"
