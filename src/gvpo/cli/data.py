"""`gvpo data check FILE ... --against BENCHMARK ...`: what is wrong with a data set before anybody trains on it."""

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from gvpo.errors import ConfigError
from gvpo.messages import well_formed
from gvpo.runfiles import write_text

if TYPE_CHECKING:
    from gvpo.data.check import CheckedRow, Report, Tokens
    from gvpo.rewards import RewardPool

SHOWN = 3
"""Findings of a kind that the table names."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument("action", choices=("check",), help="look for what is wrong with the rows; nothing is changed")
    parser.add_argument("files", nargs="+", metavar="FILE", help="data file, directory of them, or hub id")
    parser.add_argument(
        "--against",
        nargs="+",
        default=[],
        metavar="BENCHMARK",
        help="the same, or a name as of gvpo eval (math500): problems not to be trained on",
    )
    parser.add_argument(
        "--reward",
        action="append",
        default=[],
        metavar="NAME",
        help="reward of the data (may be repeated): does it accept the data's answers, and no wrong ones?",
    )
    parser.add_argument("--timeout", type=float, default=10.0, metavar="SECONDS", help="of a call of the reward")
    parser.add_argument("--tokenizer", metavar="MODEL", help="directory or hub id: count tokens too")
    parser.add_argument("--context", type=int, metavar="N", help="the most tokens that a prompt may have")
    parser.add_argument(
        "--similarity", type=float, default=0.7, metavar="SHARE", help="from which texts are almost the same (0.7)"
    )
    parser.add_argument("--prompt-column", metavar="NAME", help="default: prompt, question, problem, ...")
    parser.add_argument("--answer-column", metavar="NAME", help="default: answer, final_answer")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write every finding with its row; - for the terminal"
    )
    parser.add_argument("--write", type=Path, metavar="CLEAN.jsonl", help="write the rows of which nothing was found")


def run(options: argparse.Namespace) -> int:
    """Checks, shows, writes; 0 if nothing was found, else 1."""
    _require_sense(options)
    from gvpo.data.check import check, read_rows

    columns = {"prompt_column": options.prompt_column, "answer_column": options.answer_column}
    rows = [row for file in dict.fromkeys(options.files) for row in read_rows(file, **columns)]
    benchmarks = [row for name in _names(options.against) for row in read_rows(name, split="test")]
    with _pool(options) as pool, _progress("answers", len(rows), shown=pool is not None) as progress:
        report = check(
            rows,
            benchmarks=benchmarks,
            pool=pool,
            tokens=_tokens(options),
            similarity=options.similarity,
            progress=progress,
        )
    as_json = well_formed(json.dumps(report.to_json(), indent=1, ensure_ascii=False)) + "\n"
    if options.json == Path("-"):
        sys.stdout.write(as_json)
    else:
        _print(report, len(benchmarks))
        if options.json is not None:
            _write(options.json, as_json)
    if options.write is not None:
        _write(options.write, "".join(_line(row) for row in rows if row.place not in report.places))
    return 1 if report.findings else 0


def _require_sense(options: argparse.Namespace) -> None:
    """Refuse, before anything long starts, what cannot be meant."""
    if not 0 < options.similarity <= 1:
        raise ConfigError(f"--similarity is a share above 0 and at most 1, not {options.similarity:g}")
    if options.context is not None and options.tokenizer is None:
        raise ConfigError("--context counts tokens; name the model with --tokenizer")
    if options.context is not None and options.context < 1:
        raise ConfigError(f"--context is a number of tokens above 0, not {options.context}")
    for path in (options.write, options.json):
        if path is not None and path.exists():
            raise ConfigError(f"{path} exists already; choose another name, nothing is overwritten")
    if options.write is not None and options.write == options.json:
        raise ConfigError(f"--write and --json both name {options.write}; give them different names")
    if options.write is not None and options.write.suffix != ".jsonl":
        raise ConfigError(f"--write writes JSON lines; give {options.write} the ending .jsonl")


def _names(words: Sequence[str]) -> list[str]:
    """Each benchmark's data; commas may part them too. Names that `gvpo eval` knows are on the hub."""
    from gvpo.evaluation.benchmarks import BENCHMARKS

    names = [name for word in words for name in ([word] if Path(word).exists() else word.split(","))]
    return [BENCHMARKS[name].hub_id if name in BENCHMARKS and not Path(name).exists() else name for name in names]


@contextlib.contextmanager
def _pool(options: argparse.Namespace) -> "Iterator[RewardPool | None]":
    """A pool with the rewards that are named."""
    if not options.reward:
        yield None
        return
    from gvpo.rewards import RewardPool, load

    with RewardPool({name: load(name) for name in options.reward}, timeout=options.timeout) as pool:
        yield pool


def _tokens(options: argparse.Namespace) -> "Tokens | None":
    if options.tokenizer is None:
        return None
    from gvpo.data.check import Tokens
    from gvpo.model.tokenizer import encode_prompt, load_tokenizer

    tokenizer = load_tokenizer(options.tokenizer)
    return Tokens(lambda prompt: len(encode_prompt(tokenizer, prompt)), options.context)


@contextlib.contextmanager
def _progress(title: str, total: int, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, where that is a terminal; gives what moves it on."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not (shown and console.is_terminal)) as bar:
        task = bar.add_task(title, total=total)
        yield lambda rows: bar.advance(task, rows)


def _print(report: "Report", benchmarks: int) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from gvpo.data.check.check import PERCENTILES
    from gvpo.data.check.findings import Kind

    console = Console()
    table = Table(box=None, pad_edge=False)
    for column in ("found", "rows", "such as"):
        table.add_column(column, justify="right" if column == "rows" else "left", overflow="fold")
    for kind in get_args(Kind):
        found = report.of(kind)
        examples = [f"{finding.place}: {finding.detail}" for finding in found[:SHOWN]]
        skipped = f"not looked for: {report.skipped[kind]}" if kind in report.skipped else ""
        table.add_row(kind, "" if skipped else str(len(found)), Text(skipped or "\n".join(examples)))
    console.print(table)
    lengths = Table(box=None, pad_edge=False)
    for column in ("length of prompts", *(f"{share}%" for share in PERCENTILES)):
        lengths.add_column(column, justify="left" if column.startswith("length") else "right")
    for unit, values in report.lengths.items():
        lengths.add_row(unit, *map(str, values))
    console.print(lengths)
    left = report.rows - len(report.places)
    console.print(f"{report.rows} rows, {benchmarks} of benchmarks; {left} rows without a finding", highlight=False)


def _line(row: "CheckedRow") -> str:
    return json.dumps(row.record, ensure_ascii=False, default=str) + "\n"


def _write(path: Path, text: str) -> None:
    write_text(path, text)
    print(f"wrote {path}", file=sys.stderr)
