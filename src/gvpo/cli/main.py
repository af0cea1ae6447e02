"""`gvpo COMMAND ...`: finds the command, and turns errors into one line and exit code 2.

Commands are imported when they are called, so that `gvpo --help` answers at once.
"""

import argparse
import importlib
import re
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import NoReturn

COMMANDS = {
    "train": "train a model by a recipe",
    "eval": "measure models or responses on benchmarks, with intervals",
    "generate": "sample and judge completions of prompts: groups to train on offline",
    "report": "write the report of one run or several",
    "score": "score written answers under aligned models, for poft and for filtering",
    "probe": "choose among completions by a linear probe: fit one, evaluate it, select with it",
    "merge": "merge a LoRA adapter into its base: a whole model for any program",
    "decode": "complete prompts with some tokens, strings, characters or patterns excluded",
    "doctor": "say what this machine can do, or (--plan MODEL) what a run would need",
    "data": "look for what is wrong with a data set: leaked, repeated, unscorable, overlong rows",
    "docs": "print a page of the documentation, or the list of pages",
    "init": "write a small project that trains: recipe, reward and data to make your own",
}

SETTING = re.compile(r"\w+(\.[\w-]*)*=")
"""How a word begins that is a setting. A path such as `runs/a=1` or `./a=1` is not one."""


class Parser(argparse.ArgumentParser):
    """A parser for commands: settings may be anywhere among the other words, and an error is one line."""

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse the words of a command that reads settings without its settings, then add them."""
        words = list(sys.argv[1:] if args is None else args)
        if all(action.dest != "settings" for action in self._actions):
            return super().parse_known_args(words, namespace)
        before = ["", *words]
        places = [i for i, word in enumerate(words) if SETTING.match(word) and not self._takes_value(before[i])]
        others = [word for i, word in enumerate(words) if i not in places]
        options, late = super().parse_known_args(others, namespace)
        options.settings = [*options.settings, *(words[i] for i in places)]
        return options, late

    def _takes_value(self, word: str) -> bool:
        """Return whether the word after this one is its value."""
        action = self._option_string_actions.get(word)
        return word.startswith("-") and "=" not in word and (action is None or action.nargs != 0)

    def error(self, message: str) -> NoReturn:
        """Print what is wrong and exit with code 2."""
        self.exit(2, f"gvpo: error: {message}; see {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0: done. 2: an error that the user can mend, printed in one line. 130: interrupted.
    """
    from gvpo import notices
    from gvpo.terminal import lasting_streams

    with lasting_streams(), notices.handled(notices.show):
        return _run(list(sys.argv[1:] if arguments is None else arguments))


def _run(words: list[str]) -> int:
    debug = "--debug" in words
    parser = _parser(words)
    options, late = parser.parse_known_args(words)
    home = next((name for name in ("models", "files", "runs", "settings") if hasattr(options, name)), None)
    if late and (home is None or any(word.startswith("-") for word in late)):
        options.parser.error(f"unrecognized arguments: {' '.join(late)}")
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


def _explained(error: Exception) -> str | None:
    """Return an error as one line; None if it is a fault of the program."""
    from gvpo.errors import GvpoError, one_line
    from gvpo.system_errors import refusal

    if isinstance(error, GvpoError):
        return one_line(error, most=None)
    refused = refusal(error)
    return None if refused is None else f"{refused}; free what it names, then run the command again"


def _parser(words: Sequence[str]) -> Parser:
    """The parser, with the arguments of the one command that is called."""
    parser = Parser(prog="gvpo", description="Post-train language models by GVPO and its family.")
    parser.add_argument("--version", action="version", version=f"gvpo {metadata.version('gvpo')}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    called = next((word for word in words if not word.startswith("-")), None)
    for name, summary in COMMANDS.items():
        command = subparsers.add_parser(name, help=summary, description=summary.capitalize() + ".")
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        if name == called:
            module = importlib.import_module(f"gvpo.cli.{name}")
            module.add_arguments(command)
            command.set_defaults(run=module.run, parser=command)
    return parser


if __name__ == "__main__":
    sys.exit(main())
