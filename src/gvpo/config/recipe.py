"""Recipes as files: TOML in sections, in layers, and the resolved settings in the form in which a run stores them.

    load_config:  extended recipe ◀── recipe ◀── section.key=value ...  ──▶ TrainConfig

The settings and the rules between them are in the other modules of `gvpo.config`.
"""

import functools
import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

from gvpo.config.sections import SECTIONS
from gvpo.config.settings import FIELDS, TrainConfig, layer, unknown_setting
from gvpo.errors import ConfigError

HERE = "{recipe}"
"""Beginning of values that name a file in the folder of the recipe."""


def flatten(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's sections as TrainConfig fields.

    Raises:
        ConfigError: If a section or a key does not exist; the message suggests the nearest one.
    """
    settings: dict[str, Any] = {}
    for section, table in recipe.items():
        if section not in SECTIONS:
            raise ConfigError(unknown_setting(section, [*SECTIONS, *FIELDS]))
        if not isinstance(table, Mapping):
            raise ConfigError(f"{section!r} is a section; write [{section}] with its keys below, not a value")
        for key, value in table.items():
            dotted = f"{section}.{key}"
            if dotted not in FIELDS:
                raise ConfigError(unknown_setting(dotted, FIELDS))
            settings[FIELDS[dotted]] = value
    return settings


def parse_overrides(pairs: Sequence[str], below: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return `section.key=value` settings as TrainConfig fields; values are TOML, or otherwise text.

    A single value for a setting that is a list becomes a list of one. A key inside a table changes only that key.

        rewards.funcs=math_answer                  ["math_answer"]
        rewards.options.length_penalty.limit=512   {"length_penalty": {"limit": 512}}

    Args:
        pairs: Settings as on a command line.
        below: Settings of a lower layer, whose tables keep their other keys.

    Raises:
        ConfigError: If one is not `key=value`, or its key is unknown.
    """
    settings: dict[str, Any] = {}
    for pair in pairs:
        dotted, equals, raw = pair.partition("=")
        if not equals or not dotted:
            raise ConfigError(f"{pair!r} is not a setting; write section.key=value, for example objective.beta=0.2")
        field, inside = _find_field(dotted)
        if inside:
            table = settings.get(field, (below or {}).get(field))
            settings[field] = _with_value(table, inside, parse_value(raw))
        else:
            value = parse_value(raw)
            settings[field] = [value] if _is_a(field, list) and not isinstance(value, list) else value
    return settings


def _find_field(dotted: str) -> tuple[str, list[str]]:
    """Return the field that a key sets, and the keys inside it if it is a table.

    Raises:
        ConfigError: If there is no such setting.
    """
    section, *keys = dotted.split(".")
    field = FIELDS.get(f"{section}.{keys[0]}") if keys else None
    if field is None or not all(keys) or (keys[1:] and not _is_a(field, dict)):
        raise ConfigError(unknown_setting(dotted, FIELDS))
    return field, keys[1:]


def _is_a(field: str, kind: type) -> bool:
    """Return whether the values of a field, except None, are of this kind."""
    annotation = TrainConfig.model_fields[field].annotation
    return any(get_origin(part) is kind for part in (annotation, *get_args(annotation)))


def _with_value(table: Any, keys: Sequence[str], value: Any) -> dict[str, Any]:
    """Return a copy of a table with one value set, inside nested tables if there are several keys."""
    first, *rest = keys
    copy = dict(table) if isinstance(table, Mapping) else {}
    return {**copy, first: _with_value(copy.get(first), rest, value) if rest else value}


def parse_value(raw: str) -> Any:
    """Return a value of TOML, or otherwise the text itself."""
    try:
        return tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        return raw


def read_recipe(path: Path) -> dict[str, Any]:
    """Return a recipe file as TrainConfig fields. `extends = "other.toml"` inherits from a recipe in the same folder.

    `{recipe}` at the start of a value stands for the directory of the file.

    Raises:
        ConfigError: If the file does not exist or is not TOML, keys are unknown, or recipes extend each other in a
            circle; the message contains the name of the file.
    """
    return stacked([settings for _, settings in recipe_layers(path)])


def recipe_layers(path: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Return the recipe files that one extends and itself, the lowest first, each with its own settings as fields.

    Raises:
        ConfigError: As `read_recipe`.
    """
    return _layers(path, ())


def _layers(path: Path, above: tuple[Path, ...]) -> list[tuple[Path, dict[str, Any]]]:
    """Return the layers of a recipe; `above` are the recipes that lead here."""
    if path.resolve() in above:
        raise ConfigError(f"recipe {path} extends itself, through {above[-1].name}; remove one `extends`")
    try:
        recipe = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        by = f", which {above[-1].name} extends" if above else ""
        raise ConfigError(f"cannot read recipe {path}{by}: {error.strerror}; correct the path") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {path} is not valid TOML: {error}") from None
    base = recipe.pop("extends", None)
    if not isinstance(base, str | None):
        raise ConfigError(f'{path}: extends={base!r} is not a recipe; name one file, extends = "other.toml"')
    inherited = _layers(path.parent / base, (*above, path.resolve())) if base else []
    try:
        return [*inherited, (path, flatten(_located(recipe, path.parent)))]
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _located(value: Any, directory: Path) -> Any:
    """Return a value with `directory` instead of `{recipe}`, also inside tables and lists."""
    if isinstance(value, str) and value.startswith(HERE):
        return directory.as_posix() + value.removeprefix(HERE)
    if isinstance(value, Mapping):
        return {key: _located(item, directory) for key, item in value.items()}
    return [_located(item, directory) for item in value] if isinstance(value, list) else value


def load_config(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Return the recipe at `path`, overridden by `section.key=value` settings."""
    recipe = read_recipe(path)
    return TrainConfig(**layer(recipe, parse_overrides(overrides, recipe)))


def stacked(layers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the settings of several layers, the lowest first."""
    return functools.reduce(layer, layers, {})


def dump_config(config: TrainConfig) -> str:
    """Return the resolved configuration in the form in which the run directory stores it (JSON, in sections)."""
    return json.dumps(config.to_recipe(), indent=2, ensure_ascii=False) + "\n"


def restore_config(text: str) -> TrainConfig:
    """Return the configuration that `dump_config` wrote, in this version or an earlier one."""
    return TrainConfig(**{**_BEFORE, **flatten(json.loads(text))})


_BEFORE = {"rollout_old_logprobs": "trainer"}
"""Fields that earlier versions did not have, with what they did."""
