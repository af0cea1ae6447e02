"""Train every online objective on the demo's task, from the same warm starts, and print its held-out accuracy.

`python benchmarks/demo_arms.py --out runs/arms` trains each arm (an objective with its settings) on each seed, skips
finished runs, and prints a table. A run needs about a minute on 2 idle cores. All arms have the demo's settings, so the
table shows that each arm works, not which one is best.
"""

import argparse
import json
import warnings
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from gvpo.cli.shipped import find_recipe
from gvpo.config import TrainConfig
from gvpo.config.recipe import layer, read_recipe
from gvpo.errors import GvpoWarning
from gvpo.runfiles import SUMMARY, read_json
from gvpo.training.warm_start import train_recipe

ARMS: dict[str, dict[str, Any]] = {
    "gvpo": {},
    "rloo": {"objective": "rloo", "reference": "previous"},
    "rloo, KL in reward": {"objective": "rloo", "reference": "initial", "kl_in_reward": 0.1},
    "grpo": {"objective": "grpo", "reference": "previous"},
    "dr_grpo": {"objective": "dr_grpo", "reference": "previous"},
    "dapo": {"objective": "dapo", "reference": "previous"},
    "gspo": {"objective": "gspo", "reference": "previous"},
    "gspo_token": {"objective": "gspo_token", "reference": "previous"},
}
"""The arm whose runs train the warm start for the others."""


def summary_of(out: Path, arm: str, seed: int) -> dict[str, Any]:
    """Return the summary of an arm's run on a seed, and train it unless it exists."""
    run = out / f"{arm.replace(', ', '-').replace(' ', '-')}-{seed}"
    done = read_json(run / SUMMARY)
    return done or train_recipe(config_of(out, arm, seed).replace(run_dir=run), resume=run.exists())


def config_of(out: Path, arm: str, seed: int) -> TrainConfig:
    """Return the demo's settings, overridden by the arm's."""
    settings = layer(read_recipe(find_recipe("demo")), {**ARMS[arm], "seed": seed})
    if arm == next(iter(ARMS)):
        return TrainConfig(**settings)
    warm = read_json(out / f"{next(iter(ARMS))}-{seed}" / "warm-start" / SUMMARY)["model"]
    fresh = ("model_init", "vocabulary", "warm_start_steps")
    return TrainConfig(**{key: value for key, value in settings.items() if key not in fresh}, model_path=warm)


def row(summaries: list[dict[str, Any]], key: str) -> str:
    """Return the mean and the range over the seeds."""
    values = [summary[key] for summary in summaries]
    spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{fmean(values):.3f}{spread} ({min(values):.3f} to {max(values):.3f})"


def main() -> None:
    """Train missing runs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/arms"))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    warnings.simplefilter("ignore", GvpoWarning)
    results = {arm: [summary_of(options.out, arm, seed) for seed in range(options.seeds)] for arm in ARMS}
    print(f"{'arm':20} {'sampled before':32} {'sampled after':32} greedy after")
    for arm, summaries in results.items():
        cells = [row(summaries, key) for key in ("accuracy_before", "accuracy_after", "accuracy_greedy_after")]
        print(f"{arm:20} {cells[0]:32} {cells[1]:32} {cells[2]}")
    (options.out / "arms.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
