"""`gvpo COMMAND ...`: find the command, and turn errors into one line and exit code 2.

A command is imported when it is called, so that `gvpo --help` is fast.
"""

import argparse
import importlib
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import NoReturn


@dataclass(frozen=True)
class Command:
    """A command as far as it is known before its module is imported.

    Args:
        summary: Short description.
        example: Command line that a newcomer can run or adapt.
    """

    summary: str
    example: str


GROUPS = {
    "train": {
        "train": Command("Train a model with a recipe", "gvpo train demo"),
        "init": Command("Write a small project that trains: recipe, reward and data", "gvpo init mine"),
        "list": Command("List recipes, objectives, rewards, tasks, benchmarks or engines", "gvpo list recipes"),
        "config": Command("Print the settings of a recipe, and where each comes from", "gvpo config demo"),
        "report": Command("Write a report of one or several runs", "gvpo report runs/demo"),
    },
    "use a model": {
        "eval": Command("Evaluate models or responses, with confidence intervals", "gvpo eval MODEL --benchmark gsm8k"),
        "generate": Command(
            "Sample and score completions: groups for offline training",
            "gvpo generate MODEL --prompts FILE --out groups.jsonl rewards.funcs=gsm8k",
        ),
        "decode": Command(
            "Complete prompts while excluding some tokens or texts",
            "gvpo decode MODEL --prompt TEXT sampling.allow=digits",
        ),
        "merge": Command("Merge a LoRA adapter into its base model", "gvpo merge runs/mine merged"),
    },
    "data and scores": {
        "data": Command("Check data for leaked, repeated and overlong rows", "gvpo data check train.jsonl"),
        "score": Command(
            "Score written answers under aligned models",
            "gvpo score MODEL --data rows.jsonl --out scored.jsonl",
        ),
        "probe": Command(
            "Choose among completions with a linear probe",
            "gvpo probe fit groups.jsonl --model MODEL --out probe.safetensors",
        ),
    },
    "help": {
        "doctor": Command("Check this machine, or plan the memory of a run with --plan", "gvpo doctor"),
        "docs": Command("Print a page of the documentation, or the list of pages", "gvpo docs quickstart"),
    },
}
"""Commands by the heading under which `gvpo` lists them."""

COMMANDS: dict[str, Command] = {name: command for group in GROUPS.values() for name, command in group.items()}

FIRST_STEPS = """first steps:
  gvpo train demo            Train a small model on a CPU, in minutes
  gvpo init mine             Write a project to change
  gvpo COMMAND --help        Show the options of a command
"""
SETTING = re.compile(r"\w+(\.[\w-]*)*=")
"""Beginning of a word that is a setting. A path such as `runs/a=1` or `./a=1` is not a setting."""

_MISSING = "the following arguments are required: "


class Parser(argparse.ArgumentParser):
    """A parser for commands: settings may be anywhere among the other words, and an error is one line."""

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse a command line without its settings, then add the settings that the command reads."""
        words = list(sys.argv[1:] if args is None else args)
        if all(action.dest != "settings" for action in self._actions):
            return super().parse_known_args(words, namespace)
        before = ["", *words]
        places = [i for i, word in enumerate(words) if SETTING.match(word) and not self._takes_value(before[i])]
        others = [word for i, word in enumerate(words) if i not in places]
        options, late = super().parse_known_args(others, namespace)
        options.settings = [*options.settings, *(words[i] for i in places)]
        return options, late

    def flags(self) -> list[str]:
        """Return the flags of the command."""
        return list(self._option_string_actions)

    def _takes_value(self, word: str) -> bool:
        """Return whether the word after this one is its value."""
        action = self._option_string_actions.get(word)
        return word.startswith("-") and "=" not in word and (action is None or action.nargs != 0)

    def error(self, message: str) -> NoReturn:
        """Print the error and exit with code 2."""
        if message.startswith(_MISSING) and (example := self.get_default("example")):
            message = f"{message.removeprefix(_MISSING)} is missing, for example: {example}"
        self.exit(2, f"gvpo: error: {message}; see {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0 for success, 2 for an error that the user can fix (printed in one line), or 130 after an interrupt.
    """
    from gvpo import notices
    from gvpo.terminal import lasting_streams

    with lasting_streams(), notices.handled(notices.show):
        return _run(list(sys.argv[1:] if arguments is None else arguments))


def _run(words: list[str]) -> int:
    debug = "--debug" in words
    parser = _parser(words)
    if not words:
        parser.print_help()
        return 0
    options, late = parser.parse_known_args(words)
    home = next((name for name in ("models", "files", "runs", "settings") if hasattr(options, name)), None)
    if late and (home is None or any(word.startswith("-") for word in late)):
        hint = _other_flag(late, options.parser) or (_as_setting(late) if hasattr(options, "settings") else "")
        options.parser.error(f"unrecognized arguments: {' '.join(late)}{hint}")
    elif late and home is not None:  # argparse does not collect the words that come after an option
        setattr(options, home, [*getattr(options, home), *late])
    try:
        code = int(options.run(options))
        print(end="", flush=True)
        return code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if debug or (line := _explained(error)) is None:
            raise
        print(f"gvpo: error: {line}", file=sys.stderr)
        return 2


def _other_flag(words: Sequence[str], parser: Parser) -> str:
    """Return the flag of a command that was probably meant, as the end of a message; "" if there is none."""
    from gvpo.nearest import did_you_mean

    flag = next(word.partition("=")[0] for word in words if word.startswith("-"))
    return did_you_mean(flag, [name for name in parser.flags() if name.startswith("--")])


def _as_setting(words: Sequence[str]) -> str:
    """Return the setting that a flag of another program stands for, as the end of a message; "" if there is none."""
    from gvpo.config.settings import FIELDS, instead_of

    flag = next(word for word in words if word.startswith("-"))
    hint = instead_of(flag.lstrip("-").partition("=")[0].replace("-", "_"), FIELDS)
    return f"; settings are written as section.key=value{hint}" if hint else ""


def _explained(error: Exception) -> str | None:
    """Return an error as one line, or None if it is a bug of the program."""
    from gvpo.errors import GvpoError, one_line
    from gvpo.system_errors import refusal

    if isinstance(error, GvpoError):
        return one_line(error, most=None)
    refused = refusal(error)
    return None if refused is None else f"{refused}; fix this, then run the command again"


def _parser(words: Sequence[str]) -> Parser:
    """Return the parser, with the arguments of only the command that is called."""
    parser = Parser(
        prog="gvpo",
        usage="gvpo COMMAND ...",
        description="Post-train language models with GVPO and its family.",
        epilog="\n".join([*_listed(), FIRST_STEPS]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"gvpo {metadata.version('gvpo')}")
    subparsers = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, prog="gvpo", help=argparse.SUPPRESS
    )
    called = next((word for word in words if not word.startswith("-")), None)
    if called is not None and called not in COMMANDS:
        parser.error(_unknown(called))
    for name, known in COMMANDS.items():
        command = subparsers.add_parser(
            name,
            description=f"{known.summary}, for example:\n\n  {known.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_argument("--debug", action="store_true", help="Show the traceback of an error")
        if name == called:
            module = importlib.import_module(f"gvpo.cli.{name}")
            module.add_arguments(command)
            command.set_defaults(run=module.run, parser=command, example=known.example)
    return parser


def _listed() -> Iterator[str]:
    """Yield the lines of the help that list the commands."""
    for heading, group in GROUPS.items():
        yield f"{heading}:"
        yield from (f"  {name:10} {command.summary}" for name, command in group.items())
        yield ""


def _unknown(called: str) -> str:
    """Return the message for a word that is not a command, with the command that was probably meant."""
    from gvpo.cli.shipped import shipped
    from gvpo.nearest import did_you_mean

    is_recipe = called.endswith(".toml") or called in shipped()
    hint = f"; did you mean 'gvpo train {called}'?" if is_recipe else did_you_mean(called, COMMANDS)
    return f"there is no command {called!r}{hint}"


if __name__ == "__main__":
    sys.exit(main())
