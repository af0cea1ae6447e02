"""Train GVPO and GRPO offline on the demo's task, on the same groups: a grid of settings, several seeds.

`python benchmarks/demo_offline.py --out runs/offline` trains a warm start and samples 1,920 groups of 8 for each seed,
trains every arm on them, skips finished work, and prints a table. `--warm runs/demo-{seed}` uses the warm starts of
earlier runs.
"""

import argparse
import json
import os
import warnings
from pathlib import Path
from statistics import fmean
from typing import Any

from gvpo import runfiles
from gvpo.cli.shipped import find_recipe
from gvpo.config import TrainConfig
from gvpo.config.recipe import layer, read_recipe
from gvpo.errors import GvpoWarning
from gvpo.training.warm_start import WARM_START, train_recipe

BETAS = (0.05, 0.1, 0.2, 0.4)
FRESH = ("model_init", "vocabulary", "warm_start_steps")
KEYS = ("accuracy_before", "accuracy_after", "accuracy_greedy_before", "accuracy_greedy_after")


def settings(recipe: str, seed: int) -> dict[str, Any]:
    """Return a shipped recipe's settings, with evaluations only before and after training."""
    quiet = {"eval_every": 0, "rollouts_every": 0, "checkpoint_every": 0, "checkpoint_verify": False}
    return {**read_recipe(find_recipe(recipe)), **quiet, "seed": seed}


def start(out: Path, warm: str | None, seed: int) -> tuple[str, Path]:
    """Return a seed's warm model and the groups that it sampled; create what is missing."""
    run = out / f"sampled-{seed}"
    groups = run / runfiles.GROUPS
    given = Path(warm.format(seed=seed)) if warm else run
    if not groups.exists():
        own = {**settings("demo/offline", seed), "steps": 1, "epochs": None, "run_dir": run}
        if warm is not None:
            own = {**{k: v for k, v in own.items() if k not in FRESH}, "model_path": _warm_model(given)}
        train_recipe(TrainConfig(**own))
    return _warm_model(given), groups


def _warm_model(run: Path) -> str:
    return str(runfiles.read_json(run / WARM_START / runfiles.SUMMARY)["model"])


def result(out: Path, model: str, groups: Path, seed: int, arm: dict[str, Any]) -> dict[str, Any]:
    """Return the summary of an arm on a seed, and train it unless it exists."""
    run = out / ("-".join(str(value) for value in arm.values()) + f"-{seed}")
    done = runfiles.read_json(run / runfiles.SUMMARY)
    if done:
        return done
    base = {k: v for k, v in settings("demo/offline", seed).items() if k not in (*FRESH, "sample_groups")}
    config = TrainConfig(**layer(base, arm), model_path=model, groups_data=str(groups), run_dir=run)
    return train_recipe(config, resume=run.exists())


def arms(rates: list[float]) -> list[dict[str, Any]]:
    """Return every arm: GRPO at each learning rate, GVPO at each learning rate and beta."""
    formulas: list[dict[str, Any]] = [{"objective": "grpo"}, *({"objective": "gvpo", "beta": beta} for beta in BETAS)]
    return [{**formula, "learning_rate": rate} for rate in rates for formula in formulas]


def line(arm: dict[str, Any], summaries: list[dict[str, Any]]) -> str:
    """Return a line of the table: means and ranges over the seeds."""
    cells = [f"{arm['objective']:5} {arm.get('beta', ''):>5} {arm['learning_rate']:8g}"]
    for key in KEYS:
        values = [summary[key] for summary in summaries]
        cells.append(f"{fmean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
    return " | ".join(cells)


def main() -> None:
    """Train missing runs, seed by seed, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/offline"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-5, 1e-4, 3e-4])
    parser.add_argument("--warm", help="Directories of runs with a warm start, with {seed} in the path")
    options = parser.parse_args()
    warnings.simplefilter("ignore", GvpoWarning)
    results: dict[str, list[dict[str, Any]]] = {}
    for seed in options.seeds:
        model, groups = start(options.out, options.warm, seed)
        for arm in arms(options.rates):
            results.setdefault(json.dumps(arm), []).append(result(options.out, model, groups, seed, arm))
    for name, summaries in results.items():
        print(line(json.loads(name), summaries))
    (options.out / f"offline-{os.getpid()}.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
