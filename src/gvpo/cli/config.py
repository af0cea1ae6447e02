"""`gvpo config RECIPE [section.key=value ...]`: the resolved settings as a recipe, and where each comes from."""

import argparse
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gvpo.cli.options import add_recipe
from gvpo.cli.shipped import find_recipe, shipped_directory
from gvpo.config import FIELDS, RunPlan, TrainConfig, resolve
from gvpo.config.recipe import parse_overrides, recipe_layers, stacked
from gvpo.config.settings import layer
from gvpo.config.toml import WIDTH, toml_key, toml_lines

COLUMN = 40
"""Column of the comments, which say where settings come from."""
COMMAND_LINE, BY_REGIME, DEFAULT = "command line", "default for this kind of run", "default"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_recipe(parser)
    parser.add_argument("--all", action="store_true", help="Print all settings, also those with their default")


def run(options: argparse.Namespace) -> int:
    """Print the settings in the form of a recipe; the comment of each says where it comes from."""
    layers = [(_label(path), settings) for path, settings in recipe_layers(find_recipe(options.recipe))]
    recipe = stacked([settings for _, settings in layers])
    given = parse_overrides(options.settings, recipe)
    config = TrainConfig(**layer(recipe, given))
    plan = resolve(config)
    layers.append((COMMAND_LINE, given))
    origins = {name: label for label, settings in layers for name in settings if name in config.model_fields_set}
    values = _values(config, plan)
    origins |= dict.fromkeys((name for name in values if values[name] != getattr(config, name)), BY_REGIME)
    if config.epochs is not None:
        values["steps"] = None  # a recipe has one of the two
    shown = {dotted: values[name] for dotted, name in FIELDS.items() if options.all or name in origins}
    command = shlex.join(["gvpo", "config", options.recipe, *options.settings])
    print(f"# {command}: {len(origins)} of {len(FIELDS)} settings are set")
    for line in _recipe(shown, origins, plan):
        print(line)
    return 0


def _label(path: Path) -> str:
    """Return a file as its comment names it: shipped recipes by their place among these, others by their path."""
    root = shipped_directory("recipes").resolve()
    return str(path.resolve().relative_to(root)) if path.resolve().is_relative_to(root) else str(path)


def _values(config: TrainConfig, plan: RunPlan) -> dict[str, Any]:
    """Return the settings by field: as given, and as resolved if the run reads what was resolved."""
    return {name: plan.resolved.get(name, getattr(config, name)) for name in FIELDS.values()}


def _recipe(shown: Mapping[str, Any], origins: Mapping[str, str], plan: RunPlan) -> Iterator[str]:
    """Yield the lines of the recipe, with tables after the other settings of their section."""
    for section in dict.fromkeys(dotted.partition(".")[0] for dotted in shown):
        yield from ("", f"[{section}]")
        own = {dotted: value for dotted, value in shown.items() if dotted.startswith(f"{section}.")}
        for dotted in sorted(own, key=lambda name: isinstance(own[name], dict) and own[name] != {}):
            field, key = FIELDS[dotted], dotted.partition(".")[2]
            if own[dotted] is None:
                yield _unset(key, field, plan)
            else:
                yield from _setting(dotted, key, own[dotted], origins.get(field, DEFAULT))


def _setting(dotted: str, key: str, value: Any, origin: str) -> Iterator[str]:
    if isinstance(value, dict) and value:
        yield from ("", _commented([f"[{dotted}]"], origin)[0])
        for inner, item in value.items():
            yield from toml_lines(inner, item)
    else:
        yield from _commented(toml_lines(key, value), origin)


def _commented(lines: Sequence[str], origin: str) -> list[str]:
    """Return lines with a comment: at the end of a single line if it fits, otherwise before them."""
    line = f"{lines[0]:{COLUMN}}  # {origin}"
    return [line] if len(lines) == 1 and len(line) <= WIDTH else [f"# {origin}:", *lines]


def _unset(key: str, field: str, plan: RunPlan) -> str:
    """Return the comment for a setting without a value; keywords have the default of the objective, if it has any."""
    keywords = plan.objective.keywords
    if keywords.get(field) is None:
        return f"# {toml_key(key)} is not set"
    (line,) = toml_lines(key, keywords[field])
    return _commented([f"# {line}"], f"default of {plan.settings.objective}")[-1]
