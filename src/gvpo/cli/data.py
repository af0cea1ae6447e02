"""`gvpo data check FILE ... --against BENCHMARK,...`: find faults of a dataset before training on it."""

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from gvpo.errors import ConfigError
from gvpo.messages import well_formed
from gvpo.runfiles import write_text

if TYPE_CHECKING:
    from gvpo.data.check import Report, Tokens
    from gvpo.rewards import RewardPool

SHOWN = 3
"""Number of findings per kind that the table shows."""


READS = {
    "data.prompt_column": "prompt, question, problem, ...",
    "data.answer_column": "answer or final_answer",
    "rewards.funcs": "none; each is checked against the data's answers and against wrong ones",
    "rewards.timeout": "",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    from gvpo.cli.options import add_settings

    parser.add_argument("action", choices=("check",), help="Check the rows; the data are not changed")
    parser.add_argument("files", nargs="+", metavar="FILE", help="Data file, directory of files, or Hub dataset ID")
    add_settings(parser, READS)
    parser.add_argument(
        "--against",
        metavar="NAME,...",
        help="Benchmarks that must not be in the data: names of gvpo eval such as math500, or files",
    )
    parser.add_argument("--tokenizer", metavar="MODEL", help="Model directory or Hub model ID, to count tokens")
    parser.add_argument("--context", type=int, metavar="N", help="Maximum number of tokens per prompt")
    parser.add_argument(
        "--similarity",
        type=float,
        default=0.7,
        metavar="SHARE",
        help="Similarity above which two texts are near duplicates (default: 0.7)",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="Output file for all findings with their rows; - prints them"
    )
    parser.add_argument("--write", type=Path, metavar="FILE.jsonl", help="Output file for the rows without a finding")


def run(options: argparse.Namespace) -> int:
    """Check the rows, show and write the findings; return 0 if there are none, otherwise 1."""
    from gvpo.cli.options import given_settings
    from gvpo.model_directories import require_directory

    given = given_settings(options)
    _require_sense(options)
    if options.tokenizer is not None:
        require_directory(options.tokenizer, "tokenizer")
    from gvpo.data.check import check, read_rows

    columns: dict[str, Any] = {name: given.get(name) for name in ("prompt_column", "answer_column")}
    rows = [row for file in dict.fromkeys(options.files) for row in read_rows(file, **columns)]
    benchmarks = [row for name in _names(options.against or "") for row in read_rows(name, split="test")]
    with _pool(given) as pool, _progress("answers", len(rows), shown=pool is not None) as progress:
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
        kept = [row.record for row in rows if row.place not in report.places]
        _write(options.write, "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in kept))
    return 1 if report.findings else 0


def _require_sense(options: argparse.Namespace) -> None:
    """Raise ConfigError for flags that make no sense, before long work starts."""
    if not 0 < options.similarity <= 1:
        raise ConfigError(f"--similarity is a fraction above 0 and at most 1, not {options.similarity:g}")
    if options.context is not None and options.tokenizer is None:
        raise ConfigError("--context counts tokens; name the model with --tokenizer")
    if options.context is not None and options.context < 1:
        raise ConfigError(f"--context is a number of tokens above 0, not {options.context}")
    for path in (options.write, options.json):
        if path is not None and path.exists():
            raise ConfigError(f"{path} already exists; choose another name, existing files are not overwritten")
    if options.write is not None and options.write == options.json:
        raise ConfigError(f"--write and --json both name {options.write}; give them different names")
    if options.write is not None and options.write.suffix != ".jsonl":
        raise ConfigError(f"--write writes JSON lines; choose a name that ends in .jsonl instead of {options.write}")


def _names(words: str) -> list[str]:
    """Return the files of the benchmarks' rows; for names of `gvpo eval`, they are on the Hub."""
    from gvpo.evaluation.benchmarks import BENCHMARKS

    names = [word for word in words.split(",") if word]
    return [BENCHMARKS[name].hub_id if name in BENCHMARKS and not Path(name).exists() else name for name in names]


@contextlib.contextmanager
def _pool(given: Mapping[str, Any]) -> "Iterator[RewardPool | None]":
    """Yield a pool with the rewards of the settings, or None if there are none."""
    if not given.get("reward_funcs"):
        yield None
        return
    from gvpo.rewards import RewardPool, load

    functions = {name: load(name) for name in given["reward_funcs"]}
    with RewardPool(functions, timeout=given.get("reward_timeout", 10.0)) as pool:
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
    """Show a bar on standard error if that is a terminal; yield the function that advances it."""
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
        skipped = f"not checked: {report.skipped[kind]}" if kind in report.skipped else ""
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


def _write(path: Path, text: str) -> None:
    write_text(path, text)
    print(f"wrote {path}", file=sys.stderr)
