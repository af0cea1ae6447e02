"""Does the warning of `gvpo.collapse` detect a collapse, and how early? Trains many short runs, of which many collapse.

`python benchmarks/collapse.py --out runs/collapse` trains each run of three sets, skips finished runs, and prints two
tables in Markdown. The first compares metrics as detectors, each with the threshold that separates the runs of the
first set best. The second lists the warning of each run. Needs about 15 minutes of CPU time.

Two sets are additions of three digits with different seeds. The third is additions of seven digits, whose answers have
66 to 75 tokens and whose reward is the fraction of correct lines. A run has collapsed if its held-out reward ends at
least .1 below its start.
"""

import argparse
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any

from gvpo.cli.shipped import find_recipe
from gvpo.collapse import UPDATES, CollapseWatch
from gvpo.config import TrainConfig
from gvpo.config.recipe import layer, read_recipe
from gvpo.errors import GvpoWarning
from gvpo.runfiles import METRICS, SUMMARY, read_json, read_metrics
from gvpo.training.warm_start import WARM_START, train_recipe

SETS: dict[str, dict[str, Any]] = {
    "short-0": {"seed": 0},
    "long-0": {
        "seed": 0,
        "task_options": {"digits": 7},
        "max_tokens": 80,
        "reward_weights": [0.0, 1.0],
        "warm_start_steps": 1000,
        "warm_start_batch": 32,
        "warm_start_options": {"digits": 7, "forget_carry": 0.4},
    },
    "short-1": {"seed": 1},
}
REGIMES: dict[str, dict[str, Any]] = {
    "live": {"steps": 48, "prompts_per_step": 8, "eval_every": 8},
    "reuse": {"steps": 4, "prompts_per_step": 24, "groups_per_update": 8, "passes": 4, "eval_every": 1},
    "once": {"sample_groups": 24, "steps": 48, "prompts_per_step": 8, "eval_every": 8},
}
"""48 updates of 8 groups of 8 each: fresh groups; 12 updates per rollout of 24 groups; 16 passes over 24 groups."""

ARMS: dict[str, dict[str, Any]] = {
    "gvpo .1": {"objective": "gvpo", "beta": 0.1, "reference": "initial"},
    "gvpo .3": {"objective": "gvpo", "beta": 0.3, "reference": "initial"},
    "gvpo .3 previous": {"objective": "gvpo", "beta": 0.3, "reference": "previous"},
    "grpo": {"objective": "grpo", "beta": None, "reference": "auto"},
    "gspo": {"objective": "gspo", "beta": None, "reference": "auto", "clip_low": 0.01, "clip_high": 0.01},
}
RATES: dict[tuple[str, str], tuple[float, ...]] = {
    ("live", "gvpo .1"): (1e-4, 3e-4),
    ("live", "grpo"): (3e-4,),
    ("reuse", "gvpo .1"): (1e-4, 3e-4, 1e-3),
    ("reuse", "gvpo .3 previous"): (3e-4, 1e-3),
    ("reuse", "grpo"): (3e-4, 1e-3),
    ("reuse", "gspo"): (3e-4, 1e-3),
    ("once", "gvpo .1"): (1e-4, 3e-4, 1e-3),
    ("once", "gvpo .3"): (3e-4, 1e-3),
    ("once", "grpo"): (1e-4, 3e-4, 1e-3),
}
HIGHER = {
    ("reuse", "gvpo .1"): (3e-3,),
    ("reuse", "grpo"): (3e-3,),
    ("once", "gvpo .1"): (3e-3,),
    ("once", "gvpo .3"): (3e-3,),
}
"""Further learning rates for seven digits, since almost no run of that set collapses at the others."""

FALL = 0.1
KEYS = ("offpolicy/logratio_best", "offpolicy/logratio_mean", "offpolicy/ess", "gvpo/residual_ratio")
QUIET = {
    "schedule": "constant",
    "rollouts_every": 0,
    "checkpoint_every": 0,
    "checkpoint_verify": False,
    "eval_greedy": False,
    "eval_problems": 150,
}


def warm_model(out: Path, name: str) -> str:
    """Return the starting model of a set, and train it unless it exists.

    Both sets of three digits share their model. The set of seven digits continues from it.
    """
    name = f"{name.partition('-')[0]}-0"
    run = out / f"{name}-warm"
    if not (run / SUMMARY).exists():
        settings = demo(SETS[name], {"steps": 1, "eval_problems": 0, "eval_every": 0})
        if name != "short-0":
            settings = {**loaded(settings), "model_path": warm_model(out, "short-0")}
        train_recipe(TrainConfig(**settings, run_dir=run), resume=run.exists())
    return str(read_json(run / WARM_START / SUMMARY)["model"])


def demo(*layers: dict[str, Any]) -> dict[str, Any]:
    """Return the demo's settings without printing, overridden by `layers`."""
    settings = {**read_recipe(find_recipe("demo")), **QUIET}
    for each in layers:
        settings = layer(settings, each)
    return {key: value for key, value in settings.items() if value is not None}


def loaded(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings that load an existing model."""
    return {key: value for key, value in settings.items() if key not in ("model_init", "vocabulary")}


def trained(out: Path, name: str, regime: str, arm: str, rate: float) -> list[dict[str, Any]]:
    """Return the metrics of a run, and train it unless it exists."""
    run = out / f"{name}-{regime}-{arm.replace(' ', '-')}-{rate:g}"
    if not (run / SUMMARY).exists():
        settings = loaded(demo(SETS[name], REGIMES[regime], ARMS[arm], {"warm_start_steps": 0}))
        settings |= {"learning_rate": rate, "model_path": warm_model(out, name), "run_dir": run}
        train_recipe(TrainConfig(**settings), resume=run.exists())
    return read_metrics(run / METRICS)


@dataclass(frozen=True)
class Outcome:
    """A finished run: its name, its metrics, and whether it has collapsed."""

    name: tuple[str, str, str, float]
    lines: list[dict[str, Any]]

    @property
    def rewards(self) -> list[float]:
        """Held-out rewards, from before training to the end."""
        return [line["eval/reward"] for line in self.lines if "eval/reward" in line]

    @property
    def collapsed(self) -> bool:
        """True if the last reward is at least .1 below the first."""
        return self.rewards[-1] <= self.rewards[0] - FALL

    def lowest(self, key: str) -> float:
        """Return the lowest mean of a metric over at least as many updates as the warning needs; inf without any."""
        steps = [(line["train/updates"], line[key]) for line in self.lines if line.get(key) is not None]
        count = next((n for n in range(1, len(steps) + 1) if sum(u for u, _ in steps[:n]) >= UPDATES), len(steps))
        windows = [steps[i : i + count] for i in range(len(steps) - count + 1)]
        return min((sum(u * v for u, v in each) / max(1, sum(u for u, _ in each)) for each in windows), default=inf)

    def warned_after(self) -> int | None:
        """Return the number of updates before the warning, or None if there was no warning."""
        watch, updates = CollapseWatch(), 0
        for line in self.lines:
            updates += int(line.get("train/updates", 0))
            if watch.note(line):
                return updates
        return None

    def fallen_after(self) -> int | None:
        """Return the number of updates before the first evaluation that is at least .1 below the start."""
        updates = 0
        for line in self.lines:
            updates += int(line.get("train/updates", 0))
            if line.get("eval/reward", 1.0) <= self.rewards[0] - FALL:
                return updates
        return None


def threshold(outcomes: list[Outcome], key: str) -> float:
    """Return the threshold with the fewest errors, halfway between the two nearest runs."""
    values = sorted({lowest for outcome in outcomes if (lowest := outcome.lowest(key)) < inf})
    cuts = [(low + high) / 2 for low, high in pairwise(values)]
    return min(cuts, key=lambda cut: sum((o.lowest(key) < cut) != o.collapsed for o in outcomes), default=-inf)


def detectors(outcomes: list[Outcome]) -> Iterator[str]:
    """Yield the table of metrics: detected runs among those that collapsed, and false alarms among the others."""
    sets = list(dict.fromkeys(outcome.name[0] for outcome in outcomes))
    parts = [[outcome for outcome in outcomes if outcome.name[0] == name] for name in sets]
    yield f"| detector | {' | '.join(sets)} |"
    yield "|---|" + "---|" * len(sets)
    for key in KEYS:
        cut = threshold(parts[0], key)
        cells = [_verdicts(part, [outcome.lowest(key) < cut for outcome in part]) for part in parts]
        yield f"| lowest `{key}` below {cut:.2f} | {' | '.join(cells)} |"
    cells = [_verdicts(part, [outcome.warned_after() is not None for outcome in part]) for part in parts]
    yield f"| the warning | {' | '.join(cells)} |"


def _verdicts(outcomes: list[Outcome], seen: list[bool]) -> str:
    pairs = list(zip(outcomes, seen, strict=True))
    collapsed, others = ([saw for outcome, saw in pairs if outcome.collapsed is which] for which in (True, False))
    return f"{sum(collapsed)} of {len(collapsed)}, false {sum(others)} of {len(others)}"


def runs(outcomes: list[Outcome]) -> Iterator[str]:
    """Yield the table of runs."""
    heads = ("run", "held-out reward: start, best, end", "lowest best", "lowest ESS", "fallen after", "warned after")
    yield f"| {' | '.join(heads)} |"
    yield "|---|---|---|---|---|---|"
    for o in outcomes:
        name, regime, arm, rate = o.name
        rewards = f"{o.rewards[0]:.2f} {max(o.rewards):.2f} {o.rewards[-1]:.2f}"
        best, ess = o.lowest("offpolicy/logratio_best"), o.lowest("offpolicy/ess")
        ends = f"**{rewards}**" if o.collapsed else rewards
        cells = (
            f"{name} {regime}, {arm}, {rate:g}",
            ends,
            f"{best:.2f}",
            f"{ess:.2f}",
            o.fallen_after(),
            o.warned_after(),
        )
        yield f"| {' | '.join('' if cell is None else str(cell) for cell in cells)} |"


def plan(name: str) -> Iterator[tuple[str, str, float]]:
    """Yield the regime, arm and learning rate of each run of a set."""
    for (regime, arm), rates in RATES.items():
        further = HIGHER.get((regime, arm), ()) if name.startswith("long") else ()
        yield from ((regime, arm, rate) for rate in (*rates, *further))


def main() -> None:
    """Train missing runs, set by set, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/collapse"))
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    options = parser.parse_args()
    warnings.simplefilter("ignore", GvpoWarning)
    outcomes = [Outcome((name, *run), trained(options.out, name, *run)) for name in options.sets for run in plan(name)]
    print("\n".join([*detectors(outcomes), "", *runs(outcomes)]))


if __name__ == "__main__":
    main()
