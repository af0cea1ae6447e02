"""`gvpo eval MODEL ... --benchmark NAME,...`: models and responses on benchmarks, side by side."""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from gvpo import runfiles
from gvpo.errors import ConfigError, DataError

if TYPE_CHECKING:
    from gvpo.evaluation.benchmarks import Benchmark
    from gvpo.evaluation.entrants import Entrant
    from gvpo.evaluation.jobs import Job, Judges
    from gvpo.evaluation.protocol import EvalProtocol
    from gvpo.evaluation.results import Result
    from gvpo.types import Problem

SUMMARY = "summary.json"
TEMPLATES = ("auto", "chat", "few-shot", "none", "plain", "qwen-math", "r1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    from gvpo.cli.options import add_engine, add_pool, add_sampling

    parser.add_argument("models", nargs="*", metavar="MODEL", help="directory, run or hub id; several are compared")
    parser.add_argument(
        "--benchmark",
        required=True,
        metavar="NAME,...",
        help="of aime24, amc, math500, minerva, olympiadbench, gsm8k, mbpp, humaneval, or files with rows of `prompt`",
    )
    parser.add_argument(
        "--data", action="append", default=[], metavar="PLACE", help="NAME=FILE, or a directory (default: the hub)"
    )
    parser.add_argument("--reward", metavar="NAME", help="who judges benchmarks of your own")
    parser.add_argument(
        "--responses", action="append", default=[], metavar="FILE", help="judge these responses; no model is needed"
    )
    parser.add_argument("--check", action="store_true", help="judge the benchmarks' own golds, and wrong answers")
    parser.add_argument("--template", choices=TEMPLATES, default="auto", help="what stands around a question")
    parser.add_argument("--examples", metavar="FILE", help="rows of prompt and completion, for the template few-shot")
    parser.add_argument("--limit", type=int, metavar="N", help="at most N problems a benchmark, chosen by the seed")
    parser.add_argument("--k", metavar="K,...", help="which pass@k and maj@k (default: powers of two, and n)")
    parser.add_argument("--out", type=Path, default=Path("runs/eval"), help="directory (default: runs/eval)")
    parser.add_argument("--resume", action="store_true", help="go on with what is in --out; add to it")
    add_sampling(parser, samples="completions a problem (default: the benchmark's: aime24 32, others 1)")
    add_engine(parser)
    add_pool(parser)


def run(options: argparse.Namespace) -> int:
    """Evaluate, print the tables, say where the rows are."""
    from gvpo.cli.eval_tables import print_scores
    from gvpo.cli.options import check_sampling, going_on, pool_options
    from gvpo.evaluation.jobs import Judges
    from gvpo.evaluation.results import summary

    check_sampling(options)
    entrants = _entrants(options)
    protocol = _protocol(options)
    ks = _numbers(options.k)
    asked = _benchmarks(options, protocol)
    jobs = [
        (entrant, [entrant.job(benchmark, problems, protocol, options.out) for benchmark, problems in asked])
        for entrant in entrants
    ]
    _check_files([job for _, own in jobs for job in own], resume=options.resume)
    try:
        with Judges(pool_options(options)) as judges:
            results = [result for entrant, own in jobs for result in _results(entrant, own, judges, ks)]
    except KeyboardInterrupt:
        return going_on("eval")
    order = [benchmark.name for benchmark, _ in asked]
    found = summary(sorted(results, key=lambda result: order.index(result.benchmark)))
    used = [{"name": job.model, **job.settings} for _, own in jobs for job in own]
    runfiles.write_json(options.out / SUMMARY, {"protocol": vars(protocol), "settings": used, **found})
    print_scores(found, chosen=ks)
    print(f"rows and {SUMMARY}: {options.out}")
    return 0


def _check_files(jobs: Sequence["Job"], *, resume: bool) -> None:
    """All files can be begun or gone on with, and none is two models'."""
    owners: dict[Path, str] = {}
    for job in jobs:
        owner = owners.setdefault(job.file.path, job.model)
        if owner != job.model:
            raise ConfigError(
                f"{owner} and {job.model} would both write {job.file.path}; give each an --out of its own"
            )
        job.file.check(job.settings, resume=resume)


def _results(entrant: "Entrant", jobs: Sequence["Job"], judges: "Judges", ks: Sequence[int] | None) -> list["Result"]:
    from gvpo.cli.fill_progress import watching
    from gvpo.evaluation.jobs import run_job

    results = []
    for job in jobs:
        job.file.begin(job.settings, resume=True)
        title = f"{entrant.name} {job.benchmark.name}"
        with watching(title, len(job.items), len(job.file.finished())) as watch:
            results.append(run_job(job, partial(entrant.open, job), judges.of(job), ks=ks, watch=watch))
    entrant.close()
    return results


def _entrants(options: argparse.Namespace) -> list["Entrant"]:
    from gvpo.cli.options import engine_options, model_path
    from gvpo.evaluation.entrants import FileOfResponses, Known, Model

    engine = engine_options(options)
    entrants: list[Entrant] = [
        *(Model(model_path(name), name, engine=options.engine, options=engine) for name in options.models),
        *map(FileOfResponses, options.responses),
        *((Known("golds"), Known("wrong")) if options.check else ()),
    ]
    if not entrants:
        raise ConfigError("there is nothing to evaluate: name a MODEL, or give --responses FILE or --check")
    names = [entrant.name for entrant in entrants]
    if len(set(names)) < len(names):
        raise ConfigError(f"{max(names, key=names.count)} is named twice; name each once")
    return entrants


def _protocol(options: argparse.Namespace) -> "EvalProtocol":
    from gvpo.evaluation.protocol import EvalProtocol

    if options.limit is not None and options.limit < 1:
        raise ConfigError(f"--limit {options.limit}: take at least 1 problem")
    return EvalProtocol(
        template=options.template,
        examples=None if options.examples is None else _examples(options.examples),
        samples=options.n,
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        seed=options.seed,
        limit=options.limit,
        at_once=options.at_once,
    )


def _examples(file: str) -> list[tuple[str, str]]:
    from gvpo.data import load_records

    rows = load_records(file)
    for number, row in enumerate(rows, start=1):
        if not (isinstance(row.get("prompt"), str) and isinstance(row.get("completion"), str)):
            raise DataError(f"{file} row {number} has no text `prompt` or no text `completion`")
    return [(row["prompt"], row["completion"]) for row in rows]


def _benchmarks(options: argparse.Namespace, protocol: "EvalProtocol") -> list[tuple["Benchmark", list["Problem"]]]:
    from gvpo.evaluation.benchmarks import check_places, find_benchmark, load_problems

    found = [find_benchmark(name.strip(), options.reward) for name in options.benchmark.split(",") if name.strip()]
    if not found:
        raise ConfigError("--benchmark names nothing; give a benchmark, or a file")
    names = [benchmark.name for benchmark in found]
    if len(set(names)) < len(names):
        raise ConfigError(f"the benchmark {max(names, key=names.count)} is named twice; name each once")
    check_places(options.data, names)
    if options.reward is not None:
        _check_reward(options.reward, found)
    asked = []
    for benchmark in found:
        problems = load_problems(benchmark, options.data)
        if benchmark.size not in (None, len(problems)):
            print(
                f"gvpo: note: {benchmark.name} has {len(problems)} problems here and {benchmark.size} in the papers",
                file=sys.stderr,
            )
        asked.append((benchmark, protocol.chosen(problems)))
    return asked


def _check_reward(name: str, found: Sequence["Benchmark"]) -> None:
    """--reward has something to judge, and needs no options, as there is no place for them here."""
    from gvpo.rewards import needs_options

    if all(benchmark.family != "own" for benchmark in found):
        first = found[0]
        raise ConfigError(
            f"--reward {name} is for your own benchmarks, and {first.name} is judged by {first.reward}; drop it"
        )
    if name == "reward_model" or needs_options(name):
        raise ConfigError(
            f"the reward {name!r} needs options, and eval has none; name one that does not, file.py:NAME say"
        )


def _numbers(words: str | None) -> list[int] | None:
    if words is None:
        return None
    try:
        numbers = [int(word) for word in words.split(",")]
    except ValueError:
        raise ConfigError(f"--k {words}: write numbers, 1,8,32 say") from None
    if min(numbers) < 1:
        raise ConfigError(f"--k {words}: k is at least 1")
    return numbers
