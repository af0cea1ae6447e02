"""`gvpo probe fit | eval | select`: a linear probe on a frozen model's features chooses among completions."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gvpo.errors import ConfigError
from gvpo.runfiles import require_writable

if TYPE_CHECKING:
    from gvpo.probe.data import Candidates
    from gvpo.probe.features import Progress
    from gvpo.probe.qprobe import QProbe
    from gvpo.probe.sources import Source

LOSSES = ("mse", "bce", "policy_gradient", "preferences")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    _add_fit(actions.add_parser("fit", help="fit a probe to scored groups of completions"))
    _add_eval(actions.add_parser("eval", help="expected reward of its choice against the number of completions"))
    _add_select(actions.add_parser("select", help="choose one completion of each prompt"))


def _add_fit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("groups", help="file or hub id with rows {prompt, completions, rewards}, or preference pairs")
    parser.add_argument("--model", required=True, help="directory, run or hub id; with --endpoint its name there")
    parser.add_argument("--endpoint", metavar="URL", help="of an OpenAI-compatible API, instead of a model here")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.safetensors", help="where the probe goes")
    parser.add_argument("--layer", type=int, help="0 the embeddings, -1 the last (default: 26/32 of the depth)")
    parser.add_argument("--token", default="last", help="last | mean | end: of the completion (default: last)")
    parser.add_argument("--dimensions", type=int, help="asked of an endpoint whose model can shorten its vectors")
    parser.add_argument("--loss", default="mse", help=f"{' | '.join(LOSSES)} (default: mse)")
    parser.add_argument("--learning-rate", type=float, default=5e-5, help="of Adam (default: 5e-5)")
    parser.add_argument("--epochs", type=int, default=150, help="times through the data (default: 150)")
    parser.add_argument("--batch", type=int, default=1000, help="completions a step (default: 1000)")
    parser.add_argument("--samples", type=int, default=10, help="policy_gradient: completions compared (default: 10)")
    parser.add_argument("--standardize", action="store_true", help="fit on features of mean 0 and variance 1")
    _add_common(parser)


def _add_eval(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("probe", type=Path, help="the file that fit wrote")
    parser.add_argument("groups", help="held-out rows {prompt, completions, rewards}")
    parser.add_argument(
        "--beta", type=float, nargs="+", default=[0.1], help="softmax(Q/beta); 0 the best (default: 0.1)"
    )
    parser.add_argument("--k", type=int, nargs="+", help="numbers of completions (default: 1, 2, 4, ...)")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="also write the numbers")
    parser.add_argument("--figure", type=Path, metavar="FILE.svg", help="also draw the curves")
    parser.add_argument("--model", help="where the model is now, if not where the probe was fitted")
    parser.add_argument("--endpoint", metavar="URL", help="where the API is now")
    _add_common(parser)


def _add_select(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("probe", type=Path, help="the file that fit wrote")
    parser.add_argument("candidates", help="rows {prompt, completions}; with --draw rows {prompt}")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.jsonl", help="rows with `selected` added")
    parser.add_argument("--beta", type=float, default=0.1, help="softmax(Q/beta); 0 the best (default: 0.1)")
    parser.add_argument(
        "--draw", type=int, metavar="K", help="draw K completions from the probe's own model (paper: 48)"
    )
    parser.add_argument("--max-tokens", type=int, default=512, help="with --draw: tokens a completion (default: 512)")
    parser.add_argument("--temperature", type=float, default=1.0, help="with --draw (default: 1)")
    parser.add_argument("--model", help="where the model is now, if not where the probe was fitted")
    parser.add_argument("--endpoint", metavar="URL", help="where the API is now")
    _add_common(parser)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cache", type=Path, metavar="DIR", help="keeps features (default: beside the probe)")
    parser.add_argument("--device", help="of a model here (default: an accelerator if there is one)")
    parser.add_argument("--tokens-per-batch", type=int, default=4096, help="computed at once (default: 4096)")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def run(options: argparse.Namespace) -> int:
    """Do what was asked for, say what came of it and where it is."""
    for path in (options.out, getattr(options, "figure", None)):
        if path is not None:
            require_writable(path)
    {"fit": _fit, "eval": _evaluate, "select": _select}[options.action](options)
    return 0


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
    """Completions from the model that the features come from."""
    from gvpo.data import load_records, problems_from_records
    from gvpo.probe.draw import ModelSample, drawn_candidates
    from gvpo.sampling import SamplingParams
    from gvpo.sampling.transformers import TransformersSampler

    if source.model is None:
        raise ConfigError("--draw needs a model in this process; draw elsewhere and give rows with `completions`")
    params = SamplingParams(options.draw, options.max_tokens, options.temperature)
    sampler = TransformersSampler(source.model, source.tokenizer)
    sampler.check([], params)
    problems = problems_from_records(load_records(options.candidates))
    sample = ModelSample(sampler, source.tokenizer, params, seed=options.seed)
    with _progress("drawing") as drawing:
        return drawn_candidates(problems, sample, options.draw, drawing)


def _loaded(path: Path) -> "QProbe":
    from gvpo.probe.qprobe import QProbe

    return QProbe.load(path)


def _source_of(probe: "QProbe", options: argparse.Namespace) -> "Source":
    from gvpo.probe.sources import FeatureSource

    return _opened(FeatureSource.of(probe, model=_model(options), endpoint=options.endpoint), options)


def _model(options: argparse.Namespace) -> Any:
    """Return the model that the options name; of a run, its newest checkpoint."""
    from gvpo.cli.options import model_path

    here = options.model is not None and options.endpoint is None
    return model_path(options.model) if here else options.model


def _opened(source: Any, options: argparse.Namespace) -> "Source":
    opened: Source = source.open(device=options.device, tokens_per_batch=options.tokens_per_batch)
    return opened


def _cache(probe: Path, options: argparse.Namespace) -> Path:
    return options.cache or probe.with_name(f"{probe.stem}-features")


@contextmanager
def _progress(title: str) -> "Iterator[Progress]":
    """Progress on standard error, from the first report on."""
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
    """A table: k, and the mean reward of each arm with its interval; the gain over a random one at the largest k."""
    from rich.console import Console
    from rich.table import Table

    left_out = f", {result['left_out']} with fewer completions left out" if result["left_out"] else ""
    table = Table(title=f"expected reward over {result['prompts']} prompts{left_out}", title_justify="left")
    table.add_column("k", justify="right")
    for name in result["arms"]:
        table.add_column(name, justify="right")
    for place, k in enumerate(result["ks"]):
        table.add_row(str(k), *[_cell(arm, place) for arm in result["arms"].values()])
    console = Console()
    console.print(table)
    for name, arm in result["arms"].items():
        if name.startswith("beta"):
            gain = _with_interval(arm["gain"][-1], arm["gain_low"][-1], arm["gain_high"][-1])
            console.print(f"{name}: gain over random at k = {result['ks'][-1]}: {gain}", highlight=False)


def _cell(arm: Mapping[str, Sequence[float]], place: int) -> str:
    return _with_interval(arm["mean"][place], arm["low"][place], arm["high"][place])


def _with_interval(mean: float, low: float, high: float) -> str:
    return f"{mean:.3f} ({low:.3f} to {high:.3f})"
