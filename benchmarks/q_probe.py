"""Fit probes on the groups of a recipe of recipes/probe, and compare losses by the reward of the chosen completion.

`python benchmarks/q_probe.py runs/words-0 runs/words-1 runs/words-2` fits a probe with each loss on each directory's
`train.jsonl` and evaluates it on its `held-out.jsonl`. It prints the expected reward of the choice among all k
completions (mean and range over the directories), compared with choices that need no probe. Features are computed once
and stored in the directory, as are the results (`q_probe.json`).
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from gvpo.probe.curve import ScoredCandidates, reward_curves
from gvpo.probe.data import Candidates, read_candidates
from gvpo.probe.fit import FitSettings
from gvpo.probe.losses import LOSSES
from gvpo.probe.run import evaluate_candidates, fit_candidates
from gvpo.probe.sources import FeatureSource, Source
from gvpo.runfiles import read_json, write_json

WAYS: dict[str, dict[str, Any]] = {
    "paper's settings": {},
    "standardized, lr 1e-3": {"standardize": True, "learning_rate": 1e-3},
}


def likeliest(held_out: Sequence[Candidates]) -> list[ScoredCandidates]:
    """Return completions scored by their log-prob under the sampler if the rows have it; no probe is needed."""
    return [
        ScoredCandidates(
            np.array([sum(own) for own in one.row["sampler_logprobs"]]), np.array(one.rewards, dtype=np.float64)
        )
        for one in held_out
        if one.row.get("sampler_logprobs") and None not in one.rewards
    ]


def result_of(place: Path, layer: int | None, token: str, seed: int) -> dict[str, float]:
    """Return the results for a directory with these settings, and measure them unless they exist."""
    file, settings = place / "q_probe.json", f"layer {layer}, token {token}, seed {seed}"
    known = read_json(file)
    if settings not in known:
        source = FeatureSource(str(place / "model"), layer=layer, token=token).open()
        known[settings] = measured(place, source, seed)
        write_json(file, known)
    found: dict[str, float] = known[settings]
    return found


def measured(place: Path, source: Source, seed: int) -> dict[str, float]:
    """Return the expected reward of the choice among all completions, by arm (a loss with its settings)."""
    train, held_out = (read_candidates(place / f"{name}.jsonl") for name in ("train", "held-out"))
    cache = place / "features"
    found: dict[str, float] = {}
    for way, settings in WAYS.items():
        for loss in LOSSES:
            fitted = fit_candidates(train, source, FitSettings(loss=loss, seed=seed, **settings), cache=cache)
            result = evaluate_candidates(fitted.probe, held_out, source, betas=[0.0, 0.1], cache=cache)
            found |= {
                f"{loss}, {way}, {name}": arm["mean"][-1] for name, arm in result["arms"].items() if "beta" in name
            }
            found |= {name: result["arms"][name]["mean"][-1] for name in ("random", "best")}
            found["k"] = result["ks"][-1]
    if free := likeliest(held_out):
        found["likeliest"] = reward_curves(free, betas=[0.0])["arms"]["beta 0"]["mean"][-1]
    return found


def main() -> None:
    """Measure each directory and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("places", nargs="+", type=Path, help="Directories with model, train.jsonl and held-out.jsonl")
    parser.add_argument("--layer", type=int)
    parser.add_argument("--token", default="last")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    runs = [result_of(place, options.layer, options.token, options.seed) for place in options.places]
    print(f"| arm | reward at k = {runs[0].pop('k'):g} |\n|---|---|")
    for name in runs[0]:
        values = [run[name] for run in runs]
        spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
        print(f"| {name} | {fmean(values):.3f}{spread} ({min(values):.3f} to {max(values):.3f}) |")


if __name__ == "__main__":
    main()
