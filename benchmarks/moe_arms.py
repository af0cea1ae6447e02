"""GSPO, GRPO with free and with replayed experts, and GVPO on a mixture of experts: the recipes `moe`, several seeds.

`python benchmarks/moe_arms.py --out runs/moe` trains each arm on each seed (about a minute apiece on an idle core, and
two to three for a seed's warm start, which its arms share), skips what is there already, and prints a table. Numbers
are means over the steps of what each line of metrics says of its updates.
"""

import argparse
import warnings
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from gvpo.cli.train import find_recipe
from gvpo.config import TrainConfig
from gvpo.config.recipe import read_recipe
from gvpo.errors import GvpoWarning
from gvpo.runfiles import SUMMARY, read_json, read_metrics
from gvpo.training.warm_start import train_recipe

ARMS = {"gspo": "moe", "grpo": "moe/grpo", "grpo-replay": "moe/grpo-replay", "gvpo": "moe/gvpo"}
"""The first arm makes the warm start that the others train from."""
COLUMNS = {
    "changed, last update": ("moe/changed/last",),
    "clipped": ("gspo/clip_fraction", "grpo/clip_fraction"),
    "clipped, last update": ("gspo/clip_fraction/last", "grpo/clip_fraction/last"),
    "fullest expert": ("moe/load_max",),
}
"""Metrics by what the table calls them; each arm has one of a column's at most."""


def trained(out: Path, arm: str, seed: int) -> Path:
    """The directory of an arm's run on a seed, trained now unless it is there."""
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
    """What the table says of a run."""
    lines = [line for line in read_metrics(run / "metrics.jsonl") if line["step"] > 0]
    summary: dict[str, Any] = read_json(run / SUMMARY)
    found = {"sampled before": summary["accuracy_before"], "sampled after": summary["accuracy_after"]}
    for name, keys in COLUMNS.items():
        values = [line[key] for line in lines for key in keys if key in line]
        if values:
            found[name] = fmean(values)
    return found


def cell(values: list[float]) -> str:
    """Mean and standard deviation over the seeds."""
    if not values:
        return ""
    return f"{fmean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")


def main() -> None:
    """Train what is missing and print the table."""
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
