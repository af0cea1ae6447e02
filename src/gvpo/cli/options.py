"""The flags and settings that several commands share.

All commands have one grammar. Positional arguments and flags are the subject of a command: a model, files, `--out`,
`--resume`. A word `section.key=value` is a setting, with the keys, values and errors of recipes and `gvpo train`.
"""

import argparse
import os
import shlex
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

from gvpo.config import FIELDS, TrainConfig
from gvpo.config.engine_rules import SERVER, VLLM
from gvpo.config.recipe import parse_overrides
from gvpo.errors import ConfigError

if TYPE_CHECKING:
    from gvpo.evaluation.jobs import PoolOptions
    from gvpo.sampling.engines import EngineOptions

T = TypeVar("T")

INTERRUPTED = 130
"""Exit code of work that Ctrl-C has stopped."""

CORES = min(8, os.cpu_count() or 1)
"""Reward workers of the commands that only sample and score."""

ENGINE_READS = dict.fromkeys(
    (
        "sampling.engine",
        "sampling.engine_options",
        "sampling.server_urls",
        "sampling.server_api_key_env",
        "sampling.server_deadline",
        "sampling.server_concurrency",
    ),
    "",
)
"""Settings of engines that the commands with `--engine` read."""

KEY_COLUMN = 34
"""Width of the settings' names in a help text."""


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """Add a recipe and the settings that override it."""
    parser.add_argument(
        "recipe", metavar="RECIPE", help="Recipe file, or the name of a recipe that `gvpo list recipes` prints"
    )
    parser.add_argument(
        "settings",
        nargs="*",
        default=[],
        metavar="section.key=value",
        help="Settings that override the recipe; `gvpo docs configuration` lists all",
    )


def add_settings(parser: argparse.ArgumentParser, reads: Mapping[str, str]) -> None:
    """Let a command read settings.

    Args:
        parser: Parser of the command.
        reads: Keys that it reads, each with a description of its default, or "" for the recipe's default.
    """
    parser.add_argument("settings", nargs="*", default=[], metavar="section.key=value", help="Settings, listed below")
    parser.set_defaults(reads=reads, parser=parser)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "\n".join(["settings:", *_help_lines(reads)])


def _help_lines(reads: Mapping[str, str]) -> Iterator[str]:
    width = max(KEY_COLUMN + 20, shutil.get_terminal_size().columns - 2)
    for key, own in reads.items():
        field = TrainConfig.model_fields[FIELDS[key]]
        default = own or ("" if field.default_factory or field.default is None else str(field.default))
        text = f"{field.description}{f' (default: {default})' if default else ''}"
        name = f"  {key}".ljust(KEY_COLUMN)
        yield textwrap.fill(text, width, initial_indent=name, subsequent_indent=" " * KEY_COLUMN)


def given_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of the command line as TrainConfig fields, checked.

    A temperature of 0, which training does not allow, means greedy decoding here.

    Raises:
        ConfigError: If a word is not a setting, the command does not read it, or its value is wrong.
    """
    given = parse_overrides(options.settings)
    unread = next((key for key, field in FIELDS.items() if field in given and key not in options.reads), None)
    if unread is not None:
        raise ConfigError(f"{options.parser.prog} does not read {unread}; it reads {', '.join(options.reads)}")
    temperature = given.get("temperature")
    greedy = {"temperature": float(temperature)} if isinstance(temperature, int | float) and temperature <= 0 else {}
    config = TrainConfig(**{name: value for name, value in given.items() if name not in greedy})
    return {**{name: getattr(config, name) for name in given}, **greedy}


def add_work(parser: argparse.ArgumentParser) -> None:
    """Add the flags of commands that sample and score many problems."""
    add_engine(parser)
    parser.add_argument(
        "--save-every",
        type=positive,
        metavar="N",
        help="Number of problems that are sampled together, and at most lost after an interruption (default: as many "
        "as have 64 samples on a CPU, or 256 on a GPU)",
    )


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Add the flag that chooses the engine; a command with it reads `ENGINE_READS`."""
    parser.add_argument(
        "--engine",
        metavar="NAME",
        help="Sampling engine, as listed by gvpo list engines; short for sampling.engine=NAME (default: transformers)",
    )


def positive(word: str) -> int:
    """Return a whole number above 0, as the `type` of a flag."""
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word!r} is not a whole number of at least 1")
    return int(word)


def list_of(kind: Callable[[str], T]) -> Callable[[str], list[T]]:
    """Return the `type` of a flag whose value is a list, separated by commas."""

    def read(words: str) -> list[T]:
        try:
            return [kind(word) for word in words.split(",")]
        except ValueError:
            raise argparse.ArgumentTypeError(f"{words!r} is not a list of numbers such as 1,8") from None

    return read


def engine_name(options: argparse.Namespace, given: Mapping[str, Any]) -> str:
    """Return the engine that the flag or the setting names, after the checks that need no model.

    Raises:
        ConfigError: If both name different engines, there is no such engine, or a setting is for another engine or
            cannot work.
    """
    from gvpo.sampling.engines import check_engine

    flag, setting = options.engine, given.get("sampling_engine")
    if flag is not None and setting is not None and flag != setting:
        raise ConfigError(f"--engine {flag} and sampling.engine={setting} are different engines; pass one of them")
    name: str = flag or setting or "transformers"
    check_engine(name)
    _check_owners(name, given)
    if name == "server":
        from gvpo.sampling.server.client import Servers

        Servers.of(engine_options(given))
    return name


def _check_owners(name: str, given: Mapping[str, Any]) -> None:
    """Raise ConfigError for a setting of one of the library's engines that another one of them does not read."""
    owners = {"server": SERVER, "vllm": VLLM}
    for key, field in FIELDS.items():
        owner = next((each for each, starts in owners.items() if key.startswith(starts)), name)
        if field in given and owner != name and name in ("transformers", *owners):
            raise ConfigError(f"{key} is for the engine {owner}, not for {name}; add --engine {owner}, or remove it")


def engine_options(given: Mapping[str, Any]) -> "EngineOptions":
    """Return the options with which the engine loads the model, according to the settings."""
    from gvpo.sampling.engines import EngineOptions

    names = {field.name: f"sampling_{field.name}" for field in fields(EngineOptions)}
    names |= {"dtype": "compute_dtype", "tokens_per_batch": "tokens_per_batch"}
    return EngineOptions(**{option: given[name] for option, name in names.items() if name in given})


def pool_options(given: Mapping[str, Any]) -> "PoolOptions":
    """Return the options with which the rewards run, according to the settings."""
    from gvpo.evaluation.jobs import PoolOptions

    defaults = TrainConfig()
    return PoolOptions(
        given.get("reward_workers", CORES),
        given.get("reward_timeout", defaults.reward_timeout),
        round(given.get("reward_memory_limit", defaults.reward_memory_limit) * 2**30),
    )


def stopped(command: str) -> int:
    """Print how to resume after Ctrl-C, and return the exit code."""
    words = [word for word in sys.argv[1:] if word != "--resume"]
    again = shlex.join(["gvpo", *(words if words[:1] == [command] else [command, "..."]), "--resume"])
    print(f"gvpo: stopped; resume with: {again}", file=sys.stderr)
    return INTERRUPTED
