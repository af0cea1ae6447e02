"""Compare objectives on groups that other policies than the current one sampled: the demo's task, tuned, paired seeds.

`python benchmarks/off_policy.py tune offline` measures a regime; `cells NAME` measures every combination of a grid;
`table NAME` prints what was measured. All runs of a seed begin with the same warm start, and have the same problems and
the same sampling noise. A finished run is a line of results.jsonl and is not repeated, so several processes can share a
directory: `--arms` and `--seeds` divide the work.

Protocol of `tune`: the arm's learning rate is chosen at its default parameter, then its parameter at that rate, by
sampled accuracy on the tuning seeds. If the best of three or more values is at the end of its grid, one more is tried.
The chosen setting is then trained on fresh seeds. The table pairs them with those of GVPO.
"""

import argparse
import contextlib
import json
import random
import resource
import shutil
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import measure
import torch
from off_policy_arms import GRIDS, RATE, REGIMES, Arm, Settings

from gvpo import runfiles
from gvpo.cli.shipped import find_recipe
from gvpo.config import TrainConfig
from gvpo.config.recipe import layer, read_recipe
from gvpo.errors import GvpoWarning, TrainingError
from gvpo.training.warm_start import WARM_START, train_recipe

TUNING, FRESH = range(3), range(10, 20)
UPDATES, GROUPS = 96, 8
"""Updates per run, and groups of 8 completions per update."""
LAST = 8
"""Number of last steps over which the mean log-ratio is averaged."""
QUIET = {"eval_every": 0, "rollouts_every": 0, "checkpoint_every": 0, "checkpoint_verify": False, "reward_workers": 1}
OF_WARM_START = ("model_init", "vocabulary", "warm_start_steps")


class Missing(Exception):
    """A run is not finished, and nothing is to be trained."""


@dataclass(frozen=True)
class Study:
    """Runs of regimes in a directory.

    Args:
        out: Directory of the warm starts and of results.jsonl, which has one line per finished run.
        trains: Whether missing runs are trained.
    """

    out: Path
    trains: bool

    def result(self, regime: str, settings: Settings, seed: int) -> dict[str, Any]:
        """Return the result of a setting on a seed; train it unless that is done.

        Raises:
            Missing: If it is not done, and this study does not train.
        """
        known = {name: value for name, value in sorted(settings.items()) if value is not None}
        key, path = json.dumps([regime, known, seed]), self.out / "results.jsonl"
        found = {line["key"]: line for line in runfiles.read_lines(path)}
        if key not in found and not self.trains:
            raise Missing(key)
        if key not in found:
            found[key] = {"key": key, **self._train(regime, known, seed)}
            runfiles.append(path, runfiles.metrics_line(found[key]).encode())
        return found[key]

    def accuracy(self, regime: str, settings: Settings, seeds: Iterable[int]) -> float:
        """Return the mean sampled accuracy over seeds."""
        return fmean(self.result(regime, settings, seed)["sampled"] for seed in seeds)

    def tuned(self, regime: str, arm: Arm, seeds: Sequence[int]) -> Settings:
        """Return the arm's settings with the best learning rate and the best value of its parameter."""
        settings = self._best(regime, arm.settings, (RATE,), arm.rates, seeds)
        return self._best(regime, settings, arm.parameter, arm.values, seeds) if arm.values else settings

    def start(self, seed: int) -> Path:
        """Return the run with a seed's warm start and the groups that it sampled; create it unless it exists."""
        run = self.out / "warm" / f"seed-{seed}"
        if not (run / runfiles.SUMMARY).exists():
            own = {"sample_groups": UPDATES * GROUPS, "prompts_per_step": GROUPS, "steps": 1, "run_dir": run}
            train_recipe(TrainConfig(**{**read_recipe(find_recipe("demo")), **QUIET, "seed": seed, **own}))
        return run

    def _best(
        self, regime: str, settings: Settings, names: Sequence[str], values: Sequence[float], seeds: Sequence[int]
    ) -> Settings:
        def accuracy(value: float) -> float:
            return self.accuracy(regime, {**settings, **dict.fromkeys(names, value)}, seeds)

        best = max(values, key=accuracy)
        beyond = extension(best, values)
        tried = [best] if beyond is None else [best, beyond]
        return {**settings, **dict.fromkeys(names, max(tried, key=accuracy))}

    def _train(self, regime: str, settings: Settings, seed: int) -> dict[str, Any]:
        started, run = processor_seconds(), self.out / "runs" / f"{regime}-{seed}-{time.time_ns()}"
        config = self.config(regime, settings, seed).replace(run_dir=run)
        started_at = time.perf_counter()
        try:
            found = measured(train_recipe(config), runfiles.read_metrics(run / runfiles.METRICS))
        except TrainingError as error:  # the updates were no longer finite
            found = {"sampled": 0.0, "greedy": 0.0, "error": str(error)}
        shutil.rmtree(run, ignore_errors=True)
        used = {"cpu_seconds": processor_seconds() - started, "seconds": time.perf_counter() - started_at}
        return {**found, **{name: round(value, 2) for name, value in used.items()}}

    def config(self, regime: str, settings: Settings, seed: int) -> TrainConfig:
        """Return the settings of a run: the demo's, then the study's, the regime's and the arm's."""
        warm = self.start(seed)
        demo = {k: v for k, v in read_recipe(find_recipe("demo")).items() if k not in OF_WARM_START}
        loop = {"steps": UPDATES, "prompts_per_step": GROUPS, "schedule": "constant", "eval_samples": 4}
        source = {"groups_data": str(warm / runfiles.GROUPS)} if regime == "offline" else REGIMES[regime][0]
        model = runfiles.read_json(warm / WARM_START / runfiles.SUMMARY)["model"]
        own = {**QUIET, **loop, **source, "beta": None, **settings, "seed": seed, "model_path": model}
        return TrainConfig(**{name: value for name, value in layer(demo, own).items() if value is not None})


def extension(best: float, values: Sequence[float]) -> float | None:
    """Return the value after the end of a grid if the best one is at that end; a pair is no grid."""
    if len(values) < 3:
        return None
    low, high = sorted(values)[:2], sorted(values)[-2:]
    if best == high[1]:
        return float(f"{high[1] ** 2 / high[0]:.1g}")
    return float(f"{low[0] ** 2 / low[1]:.1g}") if best == low[0] else None


def measured(summary: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the numbers of a finished run."""
    moved = [line["offpolicy/logratio_mean"] for line in lines[-LAST:] if "offpolicy/logratio_mean" in line]
    parts = {key for line in lines for key in line if key.startswith("seconds/")}
    return {
        "before": summary["accuracy_before"],
        "sampled": summary["accuracy_after"],
        "greedy": summary["accuracy_greedy_after"],
        "logratio": fmean(moved) if moved else None,
        "sampled_tokens": sum(line.get("tokens/sampled", 0) for line in lines),
        "parts": {key: round(sum(line.get(key, 0.0) for line in lines), 3) for key in sorted(parts)},
    }


def processor_seconds() -> float:
    """Return the processor time of this process and of its finished children."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def interval(differences: Sequence[float], draws: int = 10_000) -> tuple[float, float]:
    """Return the 95% bootstrap interval of the mean of paired differences."""
    draw = random.Random(0)
    means = sorted(fmean(draw.choices(differences, k=len(differences))) for _ in range(draws))
    return means[int(0.025 * draws)], means[int(0.975 * draws)]


def table(study: Study, regime: str, arms: Mapping[str, Arm], tuning: Sequence[int], fresh: Sequence[int]) -> str:
    """Return the table of a regime's finished arms as Markdown; the first arm is what the others are paired with."""
    found = {}
    for name, arm in arms.items():
        with contextlib.suppress(Missing):
            settings = study.tuned(regime, arm, tuning)
            found[name] = settings, [study.result(regime, settings, seed) for seed in fresh]
    first = next(iter(found), "")
    lines = [cells(name, arms[name], *result, found[first][1]) for name, result in found.items()]
    header = ["arm", "setting", "sampled", "greedy", f"sampled, minus {first}", "log-ratio", "CPU s"]
    return f"\n{regime}, {len(fresh)} seeds\n\n" + measure.table(header, lines)


def cells(name: str, arm: Arm, settings: Settings, results: Sequence[Any], first: Sequence[Any]) -> list[str]:
    """Return an arm's line of the table."""
    differences = [one["sampled"] - other["sampled"] for one, other in zip(results, first, strict=True)]
    low, high = interval(differences)
    ratios = [result["logratio"] for result in results if result["logratio"] is not None]
    return [
        name,
        ", ".join(f"{setting} {settings[setting]:g}" for setting in (RATE, *arm.parameter[:1])),
        *(spread([result[key] for result in results]) for key in ("sampled", "greedy")),
        f"{fmean(differences):+.3f} ({low:+.3f} to {high:+.3f})",
        f"{fmean(ratios):.2f}" if ratios else "",
        f"{fmean(result['cpu_seconds'] for result in results):.1f}",
    ]


def grid(study: Study, regimes: Sequence[str], settings: Sequence[Settings], seeds: Sequence[int]) -> str:
    """Return the table of a grid's finished cells, with means and ranges over seeds."""
    lines = []
    for regime, setting in product(regimes, settings):
        with contextlib.suppress(Missing):
            results = [study.result(regime, setting, seed) for seed in seeds]
            ratios = [result["logratio"] or 0.0 for result in results]
            values = [spread([result[key] for result in results]) for key in ("sampled", "greedy")]
            label = f"anchor {setting['anchor'] or 0:g}, lr {setting[RATE]:g}"
            lines.append([f"{regime}, {label}", *values, f"{fmean(ratios):.2f}"])
    return measure.table(["cell", "sampled", "greedy", "log-ratio"], lines)


def spread(values: Sequence[float]) -> str:
    """Return the mean of values and their range."""
    return f"{fmean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def options() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("warm", "tune", "cells", "table"))
    parser.add_argument("names", nargs="*", help=f"Regimes ({', '.join(REGIMES)}) or grids ({', '.join(GRIDS)})")
    parser.add_argument("--out", type=Path, default=Path("runs/off-policy"))
    parser.add_argument("--arms", nargs="+", help="Names of the arms; default: all of the regime")
    parser.add_argument("--tuning", type=int, nargs="+", default=TUNING, help="Seeds for tuning")
    parser.add_argument("--seeds", type=int, nargs="+", default=FRESH, help="Seeds that are reported")
    return parser.parse_args()


def main() -> None:
    """Train what is missing, or print the tables of what is there."""
    given = options()
    warnings.simplefilter("ignore", GvpoWarning)
    torch.set_num_threads(1)
    study = Study(given.out, trains=given.what != "table")
    if given.what == "warm":
        for seed in (*given.tuning, *given.seeds):
            study.start(seed)
    for name in given.names:
        if name in GRIDS:
            print(grid(study, *GRIDS[name], given.seeds))
        else:
            arms = {arm: REGIMES[name][1][arm] for arm in given.arms or REGIMES[name][1]}
            print(table(study, name, arms, given.tuning, given.seeds))


if __name__ == "__main__":
    main()
