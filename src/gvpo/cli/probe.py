"""`gvpo probe fit | eval | select`: choose among completions with a linear probe on a frozen model's features."""

import argparse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gvpo.cli.options import (
    ENGINE_READS,
    add_engine,
    add_settings,
    engine_name,
    engine_options,
    given_settings,
    list_of,
    positive,
)
from gvpo.errors import ConfigError
from gvpo.runfiles import require_writable

if TYPE_CHECKING:
    from gvpo.probe.data import Candidates
    from gvpo.probe.features import Progress
    from gvpo.probe.qprobe import QProbe
    from gvpo.probe.sources import Source
    from gvpo.sampling import Sampler

LOSSES = ("mse", "bce", "policy_gradient", "preferences")
TOKENS_PER_FORWARD, MAX_TOKENS = 4096, 512
READS = {"run.seed": "", "train.tokens_per_microbatch": f"{TOKENS_PER_FORWARD}; not auto"}
SELECT_READS = {
    **READS,
    "sampling.max_tokens": f"{MAX_TOKENS}; only with --draw",
    "sampling.temperature": "1; 0 is greedy; only with --draw",
    **ENGINE_READS,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command and of its actions."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, (add, summary) in {
        "fit": (_add_fit, "Fit a probe to scored groups of completions"),
        "eval": (_add_eval, "Measure the expected reward of the probe's choice by the number of completions"),
        "select": (_add_select, "Choose one completion for each prompt"),
    }.items():
        add(actions.add_parser(name, help=summary, description=f"{summary}."))


def _add_fit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "groups",
        metavar="GROUPS",
        help="File or Hub dataset ID with rows {prompt, completions, rewards}, or preference pairs",
    )
    add_settings(parser, READS)
    parser.add_argument(
        "--model",
        required=True,
        metavar="MODEL",
        help="Model directory, run directory or Hub model ID; with --endpoint the model's name there",
    )
    parser.add_argument(
        "--endpoint", metavar="URL", help="OpenAI-compatible API that computes the features, instead of a local model"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.safetensors", help="Output file for the probe")
    parser.add_argument(
        "--layer", type=int, metavar="N", help="Layer; 0: the embeddings, -1: the last (default: 26/32 of the depth)"
    )
    parser.add_argument(
        "--token",
        choices=("last", "mean", "end"),
        default="last",
        help="Token of the completion (default: last)",
    )
    parser.add_argument(
        "--dimensions", type=positive, metavar="N", help="Size of the endpoint's vectors, if its model can shorten them"
    )
    parser.add_argument("--loss", choices=LOSSES, default="mse", help="Loss of the fit (default: mse)")
    parser.add_argument(
        "--learning-rate", type=float, default=5e-5, metavar="R", help="Learning rate of Adam (default: 5e-5)"
    )
    parser.add_argument(
        "--epochs", type=int, default=150, metavar="N", help="Number of passes through the data (default: 150)"
    )
    parser.add_argument(
        "--batch", type=int, default=1000, metavar="N", help="Completions per optimizer step (default: 1000)"
    )
    parser.add_argument(
        "--samples", type=int, default=10, metavar="N", help="Completions per block of policy_gradient (default: 10)"
    )
    parser.add_argument(
        "--standardize", action="store_true", help="Scale features to mean 0 and variance 1 before the fit"
    )
    _add_common(parser)


def _add_eval(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("probe", type=Path, metavar="PROBE", help="File written by gvpo probe fit")
    parser.add_argument("groups", metavar="GROUPS", help="Held-out rows {prompt, completions, rewards}")
    add_settings(parser, READS)
    parser.add_argument(
        "--beta",
        type=list_of(float),
        default=[0.1],
        metavar="B,...",
        help="Temperatures of softmax(Q/beta); 0 chooses the best (default: 0.1)",
    )
    parser.add_argument(
        "--k", type=list_of(positive), metavar="K,...", help="Numbers of completions (default: 1, 2, 4, ...)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="Output file for the numbers")
    parser.add_argument("--figure", type=Path, metavar="FILE.svg", help="Output file for a figure of the curves")
    _add_place(parser)
    _add_common(parser)


def _add_select(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("probe", type=Path, metavar="PROBE", help="File written by gvpo probe fit")
    parser.add_argument("candidates", metavar="CANDIDATES", help="Rows {prompt, completions}, or {prompt} with --draw")
    add_settings(parser, SELECT_READS)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE.jsonl", help="Output file: the rows with `selected` added"
    )
    parser.add_argument(
        "--beta",
        type=float,
        default=0.1,
        metavar="B",
        help="Temperature of softmax(Q/beta); 0 chooses the best (default: 0.1)",
    )
    parser.add_argument(
        "--draw", type=int, metavar="K", help="Sample K completions from the probe's own model (48 in the paper)"
    )
    add_engine(parser)
    _add_place(parser)
    _add_common(parser)


def _add_place(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="MODEL", help="Current place of the model (default: as in the fit)")
    parser.add_argument("--endpoint", metavar="URL", help="Current URL of the API (default: as in the fit)")


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cache", type=Path, metavar="DIR", help="Directory for features (default: next to the probe)")
    parser.add_argument(
        "--device", metavar="DEVICE", help="Device of a local model (default: an accelerator if there is one)"
    )
    parser.add_argument("--debug", action="store_true", help="Show the traceback of an error")


def run(options: argparse.Namespace) -> int:
    """Run the action, and print its result and the location of its files."""
    options.given = given_settings(options)
    if hasattr(options, "engine"):
        options.engine = engine_name(options, options.given)
    options.seed = options.given.get("seed", 0)
    for path in (options.out, getattr(options, "figure", None)):
        if path is not None:
            require_writable(path)
    _require_files(options)
    {"fit": _fit, "eval": _evaluate, "select": _select}[options.action](options)
    return 0


def _require_files(options: argparse.Namespace) -> None:
    """Raise an error for a missing file or model before torch is imported."""
    from gvpo.data import require_file
    from gvpo.probe.qprobe import require_probe

    if hasattr(options, "probe"):
        require_probe(options.probe)
    require_file(options.candidates if options.action == "select" else options.groups)
    _model(options)


def _fit(options: argparse.Namespace) -> None:
    from gvpo.probe.data import read_candidates
    from gvpo.probe.fit import FitSettings
    from gvpo.probe.run import fit_candidates
    from gvpo.probe.sources import FeatureSource

    names = ("loss", "learning_rate", "epochs", "batch", "samples", "standardize", "seed")
    settings = FitSettings(**{name: getattr(options, name) for name in names})
    candidates = read_candidates(options.groups)
    where = FeatureSource(_model(options), options.endpoint, options.layer, options.token, options.dimensions)
    source = _opened(where, options)
    with _progress("embedding") as embedding, _progress("fitting") as fitting:
        fitted = fit_candidates(
            candidates, source, settings, cache=_cache(options.out, options), embedding=embedding, fitting=fitting
        )
    facts = fitted.probe.metadata["fit"]
    print(
        f"{options.loss}: {facts['rows']} completions of {facts['prompts']} prompts, "
        f"{len(fitted.probe.weight)} features; "
        f"loss {fitted.losses[0]:.4g} in the first epoch, {fitted.losses[-1]:.4g} in the last"
    )
    print(f"wrote {fitted.probe.save(options.out)}")


def _evaluate(options: argparse.Namespace) -> None:
    from gvpo.probe.data import read_candidates
    from gvpo.probe.run import evaluate_candidates
    from gvpo.report.probe import write_reward_figure
    from gvpo.runfiles import write_json

    probe, candidates = _loaded(options.probe), read_candidates(options.groups)
    source = _source_of(probe, options)
    with _progress("embedding") as embedding:
        result = evaluate_candidates(
            probe,
            candidates,
            source,
            betas=options.beta,
            ks=options.k,
            seed=options.seed,
            cache=_cache(options.probe, options),
            embedding=embedding,
        )
    _print_curves(result)
    if options.out:
        write_json(options.out, {"probe": str(options.probe), "groups": options.groups, **result})
        print(f"wrote {options.out}")
    if options.figure:
        print(f"wrote {write_reward_figure(result, options.figure)}")


def _select(options: argparse.Namespace) -> None:
    from gvpo.data import write_groups
    from gvpo.probe.data import read_candidates
    from gvpo.probe.run import select_candidates

    probe = _loaded(options.probe)
    source = _source_of(probe, options)
    candidates = read_candidates(options.candidates) if options.draw is None else _drawn(source, options)
    with _progress("embedding") as embedding:
        rows = select_candidates(
            probe,
            candidates,
            source,
            beta=options.beta,
            seed=options.seed,
            cache=_cache(options.probe, options),
            embedding=embedding,
        )
    write_groups(options.out, rows)
    print(f"selected one of {min(len(one.completions) for one in candidates)} or more for {len(rows)} prompts")
    print(f"wrote {options.out}")


def _drawn(source: "Source", options: argparse.Namespace) -> "list[Candidates]":
    """Sample completions from the model that computes the features."""
    from gvpo.data import load_records, problems_from_records
    from gvpo.probe.draw import ModelSample, drawn_candidates
    from gvpo.sampling import SamplingParams

    if source.model is None:
        raise ConfigError("--draw needs a local model; sample elsewhere and pass rows with `completions`")
    params = SamplingParams(
        options.draw, options.given.get("max_tokens", MAX_TOKENS), options.given.get("temperature", 1.0)
    )
    problems = problems_from_records(load_records(options.candidates))
    sampler = _sampler(source, options)
    sample = ModelSample(sampler, source.tokenizer, params, seed=options.seed)
    try:
        getattr(sampler, "check", lambda *_: None)([], params)
        with _progress("drawing") as drawing:
            return drawn_candidates(problems, sample, options.draw, drawing)
    finally:
        getattr(sampler, "close", lambda: None)()


def _sampler(source: "Source", options: argparse.Namespace) -> "Sampler":
    """Return a sampler of the model that computes the features; the engine transformers uses the same copy of it."""
    from gvpo.sampling.engines import open_engine
    from gvpo.sampling.transformers import TransformersSampler

    if options.engine == "transformers":
        return TransformersSampler(source.model, source.tokenizer)
    return open_engine(options.engine, source.description.model, source.tokenizer, engine_options(options.given))


def _loaded(path: Path) -> "QProbe":
    from gvpo.probe.qprobe import QProbe

    return QProbe.load(path)


def _source_of(probe: "QProbe", options: argparse.Namespace) -> "Source":
    from gvpo.probe.sources import FeatureSource

    return _opened(FeatureSource.of(probe, model=_model(options), endpoint=options.endpoint), options)


def _model(options: argparse.Namespace) -> Any:
    """Return the model that the options name; for a run, its latest checkpoint."""
    from gvpo.model_directories import require_model

    here = options.model is not None and options.endpoint is None
    return require_model(options.model) if here else options.model


def _opened(source: Any, options: argparse.Namespace) -> "Source":
    tokens = options.given.get("tokens_per_microbatch", TOKENS_PER_FORWARD)
    if tokens == "auto":
        raise ConfigError("train.tokens_per_microbatch='auto' is for training; set a number of tokens")
    opened: Source = source.open(device=options.device, tokens_per_batch=tokens)
    return opened


def _cache(probe: Path, options: argparse.Namespace) -> Path:
    return options.cache or probe.with_name(f"{probe.stem}-features")


@contextmanager
def _progress(title: str) -> "Iterator[Progress]":
    """Show progress on standard error after the first report."""
    from gvpo.progress import StepProgress

    shown: list[StepProgress] = []

    def report(done: int, total: int) -> None:
        if not shown:
            shown.append(StepProgress(title, total).__enter__())
        shown[0].update(done, {})

    try:
        yield report
    finally:
        for bar in shown:
            bar.__exit__(None, None, None)


def _print_curves(result: Mapping[str, Any]) -> None:
    """Print the mean reward of each choice by k, with its interval, and the gain over a random choice."""
    from rich.console import Console
    from rich.table import Table

    left_out = f", {result['left_out']} with fewer completions are skipped" if result["left_out"] else ""
    table = Table(title=f"expected reward over {result['prompts']} prompts{left_out}", title_justify="left")
    table.add_column("k", justify="right")
    for name in result["arms"]:
        table.add_column(name, justify="right")
    for place, k in enumerate(result["ks"]):
        cells = [(arm[key][place] for key in ("mean", "low", "high")) for arm in result["arms"].values()]
        table.add_row(str(k), *[_with_interval(*values) for values in cells])
    console = Console()
    console.print(table)
    for name, arm in result["arms"].items():
        if name.startswith("beta"):
            gain = _with_interval(arm["gain"][-1], arm["gain_low"][-1], arm["gain_high"][-1])
            console.print(f"{name}: gain over random at k = {result['ks'][-1]}: {gain}", highlight=False)


def _with_interval(mean: float, low: float, high: float) -> str:
    return f"{mean:.3f} ({low:.3f} to {high:.3f})"
