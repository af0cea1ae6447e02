"""`gvpo list [KIND]`: recipes, objectives, rewards and other kinds, one line per name, without torch."""

import argparse
import ast
import importlib.util
import inspect
import json
import re
import shutil
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from gvpo.errors import ConfigError
from gvpo.nearest import did_you_mean

GAP = 2
"""Spaces between a name and its description."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("kind", nargs="?", metavar="KIND", help=f"{', '.join(KINDS)} (default: list these kinds)")
    parser.add_argument("--json", action="store_true", help="Print a JSON list, in which no description is shortened")


def run(options: argparse.Namespace) -> int:
    """Print the names of a kind with their descriptions; without a kind, print the kinds."""
    if options.kind is not None and options.kind not in KINDS:
        hint = did_you_mean(options.kind, KINDS, f"choose one of {', '.join(KINDS)}")
        raise ConfigError(f"gvpo cannot list {options.kind!r}{hint}")
    found = dict(KINDS[options.kind][1]()) if options.kind else {kind: text for kind, (text, _) in KINDS.items()}
    if options.json:
        rows = [{"name": name, "description": text} for name, text in found.items()]
        print(json.dumps(rows, indent=1, ensure_ascii=False))
    else:
        _print(found)
    return 0


def _print(found: Mapping[str, str]) -> None:
    """Print one line per name that fits the terminal."""
    column = max(map(len, found)) + GAP
    room = max(20, shutil.get_terminal_size().columns - column)
    for name, text in found.items():
        print(f"{name:{column}}{textwrap.shorten(text, room, placeholder=' ...')}")


def _recipes() -> Iterator[tuple[str, str]]:
    from gvpo.cli.shipped import find_recipe, shipped

    for name in shipped():
        yield name, _sentence(_first_comment(find_recipe(name)))


def _first_comment(file: Path) -> str:
    """Return the paragraph with which a recipe begins."""
    found = re.match(r"(?:# .*\n)*", file.read_text(encoding="utf-8"))
    return " ".join(line.removeprefix("# ") for line in (found[0] if found else "").splitlines())


def _sentence(text: str) -> str:
    """Return the first sentence of a comment, without the command that follows it."""
    return re.split(r"\. |[:.]? ?`gvpo ", text)[0].rstrip(" .:")


def _objectives() -> Iterator[tuple[str, str]]:
    from gvpo.config import OBJECTIVES

    return ((name, _capital(spec.summary)) for name, spec in OBJECTIVES.items())


def _rewards() -> Iterator[tuple[str, str]]:
    from gvpo.rewards import MAKERS, REWARDS

    for name, function in sorted({**REWARDS, **MAKERS}.items()):
        yield name, _capital(_first_line(inspect.getdoc(function)).removeprefix("Return "))


def _tasks() -> Iterator[tuple[str, str]]:
    from gvpo.data import TASKS

    return ((name, _capital(task.summary)) for name, task in TASKS.items())


def _environments() -> Iterator[tuple[str, str]]:
    """Yield the environments with the first lines of their modules."""
    from gvpo.environments.registry import ENVIRONMENTS

    for name, function in ENVIRONMENTS.items():
        yield name, _first_line(inspect.getdoc(inspect.getmodule(function)))


def _benchmarks() -> Iterator[tuple[str, str]]:
    from gvpo.evaluation.benchmarks import BENCHMARKS

    for name, benchmark in BENCHMARKS.items():
        yield name, f"{benchmark.size} problems of {benchmark.hub_id}"


def _engines() -> Iterator[tuple[str, str]]:
    """Yield the engines with the first lines of their modules, which are read and not imported."""
    from gvpo.sampling.engines import ENGINES

    for name, target in ENGINES.items():
        spec = importlib.util.find_spec(target.partition(":")[0])
        text = Path(spec.origin).read_text(encoding="utf-8") if spec and spec.origin else ""
        yield name, _first_line(ast.get_docstring(ast.parse(text)))


def _first_line(docstring: str | None) -> str:
    return (docstring or "").partition("\n")[0].rstrip(".")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


KINDS: dict[str, tuple[str, Callable[[], Iterator[tuple[str, str]]]]] = {
    "recipes": ("Settings of whole runs, for gvpo train NAME", _recipes),
    "objectives": ("Losses, for objective.name", _objectives),
    "rewards": ("Reward functions, for rewards.funcs", _rewards),
    "tasks": ("Problems with a reward, for data.task", _tasks),
    "environments": ("Games and tools that answer the policy, for environment.name", _environments),
    "benchmarks": ("Problems of papers, for gvpo eval --benchmark", _benchmarks),
    "engines": ("Programs that sample, for --engine", _engines),
}
"""Kinds by name: a description, and the function that yields names and descriptions."""
