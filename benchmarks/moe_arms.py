"""Train GSPO, GRPO with and without replayed experts, and GVPO on a mixture of experts: the recipes `moe`.

`python benchmarks/moe_arms.py --out runs/moe` trains each arm (a recipe of `moe`) on each seed, skips finished runs,
and prints a table. A run needs about a minute on an idle core, and the warm start that the arms of a seed share needs
two to three. Numbers are means over the steps of the metrics of their updates.
"""

import argparse
import warnings
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from gvpo.cli.shipped import find_recipe
from gvpo.config import TrainConfig
from gvpo.config.recipe import read_recipe
from gvpo.errors import GvpoWarning
from gvpo.runfiles import SUMMARY, read_json, read_metrics
from gvpo.training.warm_start import train_recipe

ARMS = {"gspo": "moe", "grpo": "moe/grpo", "grpo-replay": "moe/grpo-replay", "gvpo": "moe/gvpo"}
"""The arm whose runs train the warm start for the others."""
COLUMNS = {
    "changed, last update": ("moe/changed/last",),
    "clipped": ("gspo/clip_fraction", "grpo/clip_fraction"),
    "clipped, last update": ("gspo/clip_fraction/last", "grpo/clip_fraction/last"),
    "fullest expert": ("moe/load_max",),
}
"""Metrics by column of the table; each arm has at most one metric of a column."""


def trained(out: Path, arm: str, seed: int) -> Path:
    """Return the directory of an arm's run on a seed, and train it unless it exists."""
    run = out / f"{arm}-{seed}"
    if not read_json(run / SUMMARY):
        train_recipe(_config(out, arm, seed).replace(run_dir=run), resume=run.exists())
    return run


def _config(out: Path, arm: str, seed: int) -> TrainConfig:
    settings = {**read_recipe(find_recipe(ARMS[arm])), "seed": seed}
    first = next(iter(ARMS))
    if arm == first:
        return TrainConfig(**settings)
    warm = read_json(out / f"{first}-{seed}" / "warm-start" / SUMMARY)["model"]
    fresh = ("model_init", "vocabulary", "warm_start_steps")
    return TrainConfig(**{key: value for key, value in settings.items() if key not in fresh}, model_path=warm)


def row(run: Path) -> dict[str, float]:
    """Return the values of a run in the table, by column."""
    lines = [line for line in read_metrics(run / "metrics.jsonl") if line["step"] > 0]
    summary: dict[str, Any] = read_json(run / SUMMARY)
    found = {"sampled before": summary["accuracy_before"], "sampled after": summary["accuracy_after"]}
    for name, keys in COLUMNS.items():
        values = [line[key] for line in lines for key in keys if key in line]
        if values:
            found[name] = fmean(values)
    return found


def cell(values: list[float]) -> str:
    """Return the mean and standard deviation over the seeds."""
    if not values:
        return ""
    return f"{fmean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")


def main() -> None:
    """Train missing runs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/moe"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    options = parser.parse_args()
    warnings.simplefilter("ignore", GvpoWarning)
    names = ["sampled before", "sampled after", *COLUMNS]
    print("| arm | " + " | ".join(names) + " |\n" + "|---" * (len(names) + 1) + "|")
    for arm in options.arms:
        rows = [row(trained(options.out, arm, seed)) for seed in options.seeds]
        print(f"| {arm} | " + " | ".join(cell([each[name] for each in rows if name in each]) for name in names) + " |")


if __name__ == "__main__":
    main()
