"""Train objectives on dialogues with the calculator, from the same warm starts, and print their held-out accuracy.

`python benchmarks/calculator.py --out runs/calculator` trains each arm (an objective with its settings) of
`gvpo train calculator` on each seed, and `--recipe calculator/long` does it with five operations, with and without
credit to turns. Finished runs are lines of results.jsonl and are not repeated. All arms of a seed begin with the same
warm start, and have the recipe's settings, so the table shows whether each arm works, not which one is best. Seconds
are those of one run after its warm start.
"""

import argparse
import json
import resource
import shutil
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from gvpo.cli.shipped import find_recipe
from gvpo.config import TrainConfig
from gvpo.config.recipe import layer, read_recipe
from gvpo.errors import GvpoWarning
from gvpo.evaluation.metrics import interval
from gvpo.runfiles import HELD_OUT, SUMMARY, read_json, read_rollouts, rollout_path, rollout_steps
from gvpo.training.warm_start import train_recipe

ARMS: dict[str, dict[str, dict[str, Any]]] = {
    "calculator": {name: {"objective": name} for name in ("gvpo", "grpo", "gspo_token", "gsspo")},
    "calculator/long": {
        "gvpo": {},
        "grpo": {"objective": "grpo"},
        "grpo, credit to turns": {"objective": "grpo", "environment_turn_credit": "to_go"},
    },
}
"""Settings of each arm, by recipe."""
JUDGE = "calculator"


class Study:
    """Runs of a recipe in a directory.

    Args:
        recipe: Name of the recipe.
        out: Directory of the results.
    """

    def __init__(self, recipe: str, out: Path) -> None:
        self.recipe, self.out = recipe, out / recipe.replace("/", "-")
        self.out.mkdir(parents=True, exist_ok=True)
        self._results = self.out / "results.jsonl"

    def results(self) -> list[dict[str, Any]]:
        """Return the finished runs."""
        return [json.loads(line) for line in self._results.read_text().splitlines()] if self._results.exists() else []

    def train(self, arm: str, seed: int) -> None:
        """Train an arm on a seed, unless that was done before."""
        if any((each["arm"], each["seed"]) == (arm, seed) for each in self.results()):
            return
        settings = {**ARMS[self.recipe][arm], "rollouts_every": 0, "eval_every": 0, "eval_greedy": False}
        layered = layer(read_recipe(find_recipe(self.recipe)), {**settings, "seed": seed})
        for key in ("model_init", "vocabulary", "warm_start_steps"):
            layered.pop(key)
        run = self.out / f"{arm.replace(', ', '-').replace(' ', '-')}-{seed}"
        shutil.rmtree(run, ignore_errors=True)  # what was broken off
        layered["model_path"] = self._warm_start(seed)
        began, used = time.perf_counter(), processor_seconds()
        train_recipe(TrainConfig(**layered, run_dir=run))
        spent = {"seconds": time.perf_counter() - began, "processor_seconds": processor_seconds() - used}
        first, *_, last = rollout_steps(run, HELD_OUT)
        scores = {"before": held_out_scores(run, first), "after": held_out_scores(run, last)}
        with self._results.open("a") as file:
            file.write(json.dumps({"arm": arm, "seed": seed, **spent, **scores}) + "\n")

    def _warm_start(self, seed: int) -> str:
        """Return the directory of a seed's starting model, which is trained unless it exists."""
        run = self.out / f"start-{seed}"
        stage = run / "warm-start"
        if "model" not in read_json(stage / SUMMARY):
            shutil.rmtree(run, ignore_errors=True)
            settings = layer(read_recipe(find_recipe(self.recipe)), {"seed": seed, "steps": 1, "eval_problems": 0})
            train_recipe(TrainConfig(**settings, run_dir=run))
        return str(read_json(stage / SUMMARY)["model"])


def held_out_scores(run: Path, step: int) -> list[float]:
    """Return 1 for each held-out problem whose last line is right, else 0."""
    return [float(row.reward_parts[JUDGE] or 0.0) for row in read_rollouts(rollout_path(run, step, HELD_OUT))]


def processor_seconds() -> float:
    """Return the processor time of this process and its finished children."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


def table(results: Sequence[dict[str, Any]], arms: Sequence[str]) -> Iterator[str]:
    """Yield the lines of a table with one row per arm; the interval is that of the mean over all problems."""
    yield "| objective | seeds | before | after, by seed | after, mean | 95 % interval | processor s | s |"
    yield "|---|--:|---|---|--:|---|--:|--:|"
    for arm in arms:
        runs = sorted((each for each in results if each["arm"] == arm), key=lambda each: each["seed"])
        if not runs:
            continue
        before, after = (", ".join(f"{fmean(run[key]):.3f}" for run in runs) for key in ("before", "after"))
        scores = [score for run in runs for score in run["after"]]
        low, high = interval(scores)
        spent = " | ".join(f"{median(run[key] for run in runs):.0f}" for key in ("processor_seconds", "seconds"))
        yield f"| {arm} | {len(runs)} | {before} | {after} | {fmean(scores):.3f} | {low:.3f} to {high:.3f} | {spent} |"


def main() -> None:
    """Train missing runs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", choices=list(ARMS), default="calculator")
    parser.add_argument("--out", type=Path, default=Path("runs/calculator"))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    warnings.simplefilter("ignore", GvpoWarning)
    study = Study(options.recipe, options.out)
    for seed in range(options.seeds):
        for arm in ARMS[options.recipe]:
            study.train(arm, seed)
    print("\n".join(table(study.results(), list(ARMS[options.recipe]))))


if __name__ == "__main__":
    main()
