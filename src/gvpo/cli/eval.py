"""`gvpo eval MODEL ... --benchmark NAME,...`: compare models and responses on benchmarks."""

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gvpo import runfiles
from gvpo.cli.options import ENGINE_READS
from gvpo.errors import ConfigError, DataError
from gvpo.notices import warn
from gvpo.progress import preparing

if TYPE_CHECKING:
    from gvpo.evaluation.benchmarks import Benchmark
    from gvpo.evaluation.entrants import Entrant
    from gvpo.evaluation.jobs import Job, Judges
    from gvpo.evaluation.protocol import EvalProtocol
    from gvpo.evaluation.results import Result
    from gvpo.types import Problem

SUMMARY = "summary.json"
TEMPLATES = ("auto", "chat", "few-shot", "none", "plain", "qwen-math", "r1")


READS = {
    "run.seed": "",
    "model.compute_dtype": "auto; also the dtype of the weights",
    "eval.samples": "the benchmark's: 32 for aime24, 1 for others",
    "sampling.max_tokens": "the benchmark's",
    "sampling.temperature": "0.6 for several samples, otherwise 0 (greedy)",
    "sampling.top_p": "0.95 for several samples, otherwise 1",
    "sampling.top_k": "",
    "sampling.tokens_per_batch": "",
    **ENGINE_READS,
    "rewards.funcs": "the benchmark's; a benchmark from a file needs one",
    "rewards.timeout": "",
    "rewards.workers": "one per core, at most 8",
    "rewards.memory_limit": "",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    from gvpo.cli.options import add_settings, add_work, list_of, positive

    parser.add_argument(
        "models",
        nargs="*",
        metavar="MODEL",
        help="Model directory, run directory or Hub model ID; several are compared",
    )
    add_settings(parser, READS)
    parser.add_argument(
        "--benchmark",
        required=True,
        metavar="NAME,...",
        help="aime24, amc, math500, minerva, olympiadbench, gsm8k, mbpp, humaneval, or files with rows of `prompt`",
    )
    parser.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="PLACE",
        help="NAME=FILE for one benchmark, or a directory with all (default: the Hub); may be repeated",
    )
    parser.add_argument(
        "--responses",
        action="append",
        default=[],
        metavar="FILE",
        help="Score these responses; no model is needed; may be repeated",
    )
    parser.add_argument(
        "--check", action="store_true", help="Score the benchmarks' reference answers, and wrong answers"
    )
    parser.add_argument(
        "--template", choices=TEMPLATES, default="auto", help="Prompt template of the questions (default: auto)"
    )
    parser.add_argument(
        "--examples", metavar="FILE", help="Rows of `prompt` and `completion` for the template few-shot"
    )
    parser.add_argument(
        "--limit", type=positive, metavar="N", help="Maximum number of problems per benchmark, chosen by run.seed"
    )
    parser.add_argument(
        "--k",
        type=list_of(positive),
        metavar="K,...",
        help="Values of k for pass@k and maj@k (default: powers of two, and the number of samples)",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/eval"), metavar="DIR", help="Output directory (default: runs/eval)"
    )
    parser.add_argument("--resume", action="store_true", help="Continue or extend the results in --out")
    add_work(parser)


def run(options: argparse.Namespace) -> int:
    """Evaluate, and print the tables and the location of the rows."""
    from gvpo.cli.options import given_settings

    given = given_settings(options)
    reward = _own_reward(given)
    with preparing("eval"):
        return _evaluate(options, given, reward)


def _evaluate(options: argparse.Namespace, given: Mapping[str, Any], reward: str | None) -> int:
    from gvpo.cli.eval_tables import print_scores
    from gvpo.cli.options import pool_options, stopped
    from gvpo.evaluation.jobs import Judges
    from gvpo.evaluation.results import summary

    entrants = _entrants(options, given)
    protocol = _protocol(options, given)
    asked = _benchmarks(options, protocol, reward)
    jobs = [
        (entrant, [entrant.job(benchmark, problems, protocol, options.out) for benchmark, problems in asked])
        for entrant in entrants
    ]
    _check_files([job for _, own in jobs for job in own], resume=options.resume)
    try:
        with Judges(pool_options(given)) as judges:
            results = [result for entrant, own in jobs for result in _results(entrant, own, judges, options.k)]
    except KeyboardInterrupt:
        return stopped("eval")
    order = [benchmark.name for benchmark, _ in asked]
    found = summary(sorted(results, key=lambda result: order.index(result.benchmark)))
    used = [{"name": job.model, **job.settings} for _, own in jobs for job in own]
    runfiles.write_json(options.out / SUMMARY, {"protocol": vars(protocol), "settings": used, **found})
    print_scores(found, chosen=options.k)
    print(f"rows and {SUMMARY}: {options.out}")
    return 0


def _own_reward(given: Mapping[str, Any]) -> str | None:
    """Return the reward of the user's own benchmarks.

    Raises:
        ConfigError: If there are several.
        RewardError: If it does not exist.
    """
    names = given.get("reward_funcs", [])
    if len(names) > 1:
        raise ConfigError(f"rewards.funcs has {len(names)} rewards, but a benchmark needs exactly one; set one")
    from gvpo.rewards import require_named

    for name in names:
        require_named(name)
    return names[0] if names else None


def _check_files(jobs: Sequence["Job"], *, resume: bool) -> None:
    """Raise an error unless every file can be started or resumed, and no two models share one."""
    owners: dict[Path, str] = {}
    for job in jobs:
        owner = owners.setdefault(job.file.path, job.model)
        if owner != job.model:
            raise ConfigError(f"{owner} and {job.model} would both write {job.file.path}; give each its own --out")
        job.file.check(job.settings, resume=resume)


def _results(entrant: "Entrant", jobs: Sequence["Job"], judges: "Judges", ks: Sequence[int] | None) -> list["Result"]:
    from gvpo.cli.progress import watching
    from gvpo.evaluation.jobs import run_job

    results = []
    for job in jobs:
        job.file.begin(job.settings, resume=True)
        title = f"{entrant.name} {job.benchmark.name}"
        with watching(title, len(job.items), len(job.file.finished())) as watch:
            results.append(run_job(job, partial(entrant.open, job), judges.of(job), ks=ks, watch=watch))
    entrant.close()
    return results


def _entrants(options: argparse.Namespace, given: Mapping[str, Any]) -> list["Entrant"]:
    from gvpo.cli.options import engine_name, engine_options
    from gvpo.data import require_file
    from gvpo.evaluation.entrants import FileOfResponses, Known, Model
    from gvpo.model_directories import require_model

    name, engine = engine_name(options, given), engine_options(given)
    for name in options.responses:
        if not Path(name).is_dir():
            require_file(name)
    entrants: list[Entrant] = [
        *(Model(require_model(each), each, engine=name, options=engine) for each in options.models),
        *map(FileOfResponses, options.responses),
        *((Known("golds"), Known("wrong")) if options.check else ()),
    ]
    if not entrants:
        raise ConfigError("there is nothing to evaluate: pass a MODEL, --responses FILE or --check")
    names = [entrant.name for entrant in entrants]
    if len(set(names)) < len(names):
        raise ConfigError(f"{max(names, key=names.count)} is listed twice; list each once")
    return entrants


def _protocol(options: argparse.Namespace, given: Mapping[str, Any]) -> "EvalProtocol":
    from gvpo.evaluation.protocol import EvalProtocol

    return EvalProtocol(
        template=options.template,
        examples=None if options.examples is None else _examples(options.examples),
        samples=given.get("eval_samples"),
        max_tokens=given.get("max_tokens"),
        temperature=given.get("temperature"),
        top_p=given.get("top_p"),
        top_k=given.get("top_k", 0),
        seed=given.get("seed", 0),
        limit=options.limit,
        at_once=options.save_every,
    )


def _examples(file: str) -> list[tuple[str, str]]:
    from gvpo.data import load_records

    rows = load_records(file)
    for number, row in enumerate(rows, start=1):
        if not (isinstance(row.get("prompt"), str) and isinstance(row.get("completion"), str)):
            raise DataError(f"{file} row {number} has no text `prompt` or no text `completion`")
    return [(row["prompt"], row["completion"]) for row in rows]


def _benchmarks(
    options: argparse.Namespace, protocol: "EvalProtocol", reward: str | None
) -> list[tuple["Benchmark", list["Problem"]]]:
    from gvpo.evaluation.benchmarks import check_places, find_benchmark, load_problems

    found = [find_benchmark(name.strip(), reward) for name in options.benchmark.split(",") if name.strip()]
    if not found:
        raise ConfigError("--benchmark is empty; pass a benchmark, or a file")
    names = [benchmark.name for benchmark in found]
    if len(set(names)) < len(names):
        raise ConfigError(f"the benchmark {max(names, key=names.count)} is listed twice; list each once")
    check_places(options.data, names)
    if reward is not None:
        _check_reward(reward, found)
    asked = []
    for benchmark in found:
        protocol.params(benchmark)  # raises for settings that cannot work, before a model is loaded
        problems = load_problems(benchmark, options.data)
        if benchmark.size not in (None, len(problems)):
            warn(f"{benchmark.name} has {len(problems)} problems here and {benchmark.size} in the papers")
        asked.append((benchmark, protocol.chosen(problems)))
    return asked


def _check_reward(name: str, found: Sequence["Benchmark"]) -> None:
    """Raise ConfigError unless the reward has a benchmark to score, and needs no options."""
    from gvpo.rewards import REWARD_MODEL, needs_options

    if all(benchmark.family != "own" for benchmark in found):
        first = found[0]
        raise ConfigError(
            f"rewards.funcs={name} is for your own benchmarks, but {first.name} is scored by {first.reward}; remove it"
        )
    if name == REWARD_MODEL or needs_options(name):
        raise ConfigError(
            f"the reward {name!r} needs options, which gvpo eval does not support; use another, such as file.py:NAME"
        )
