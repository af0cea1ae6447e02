"""Train on completions of an engine whose weights differ from the trainer's: the demo's task, paired seeds.

`python benchmarks/mismatch.py cells` trains the objectives with each engine and prints the tables; `table` prints what
there is. `broken` trains GVPO with engines that have wrong weights. All runs begin with one warm start of
`off_policy.py`; those of a seed have the same problems and the same sampling noise. A finished run is a line of
results.jsonl and is not repeated.

The trainer computes in float32. The engine samples only the training completions. Held-out answers are sampled from the
trainer's own weights, so the tables compare what was learned.
"""

import argparse
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import measure
import off_policy
import torch
from mismatch_levels import rounded
from off_policy import GROUPS, Missing, Study, interval, spread
from off_policy_arms import REGIMES, Settings
from torch import Tensor

from gvpo.config import defaults
from gvpo.errors import GvpoWarning
from gvpo.sampling.base import Request, SamplingParams
from gvpo.sampling.copied import CopiedSampler
from gvpo.training.engine import open as opening
from gvpo.types import Completion

ENGINES = ("bfloat16", "0 bits")
"""Engines of the study. One with n bits has weights that are rounded to n bits of mantissa (bfloat16 has 7)."""
BROKEN = ("frozen", "late", "part", "swapped")
"""Engines with wrong weights: never updated, one step late, without one matrix, or with two exchanged heads."""
TRAINER, SAMPLER = {"rollout_old_logprobs": "trainer"}, {"rollout_old_logprobs": "sampler"}
ARMS: dict[str, Settings] = {
    "gvpo": {"objective": "gvpo", "reference": "initial", "beta": 0.1},
    "grpo, old trainer": {"objective": "grpo", **TRAINER},
    "grpo, old trainer, is_cap 2": {"objective": "grpo", **TRAINER, "is_cap": 2.0},
    "grpo, old sampler": {"objective": "grpo", **SAMPLER},
    "gspo, old trainer": {"objective": "gspo", **TRAINER},
    "gspo, old sampler": {"objective": "gspo", **SAMPLER},
}
"""Arms with their settings; GVPO reads no old log-probs."""
SAME = {"grpo, old sampler": "grpo, old trainer", "grpo, old trainer, is_cap 2": "grpo, old trainer",
        "gspo, old sampler": "gspo, old trainer"}  # fmt: skip
"""Arms that equal another one if the trainer's own model samples, where all ratios to the sampler are 1."""
UPDATES, WARM_SEED, OWN, RATIOS = 64, 10, "own", ("grpo", "gspo")
LOOPS: dict[str, Settings] = {
    "one": {"steps": UPDATES},
    "four": {"prompts_per_step": 4 * GROUPS, "groups_per_update": GROUPS, "steps": UPDATES // 4},
}
"""Loops with one or four updates per rollout."""


class Engine:
    """A sampler with its own weights for training, and with the trainer's for evaluation.

    Args:
        policy: The policy.
        tokenizer: Its tokenizer.
        ending: Tokens that end a completion.
        options: Options of the engine; `engine_options["kind"]` is one of `ENGINES` or `BROKEN`.
    """

    shares_model = False

    def __init__(self, policy: Any, tokenizer: Any, ending: Any, options: Any) -> None:
        self.kind = options.engine_options["kind"]
        dtype = torch.bfloat16 if self.kind == "bfloat16" else None
        self.exact = CopiedSampler(policy, tokenizer, ending=ending)
        self.other = CopiedSampler(policy, tokenizer, ending=ending, dtype=dtype)
        self._before: dict[str, Tensor] = {}

    def sample(
        self, requests: Sequence[Request], params: SamplingParams, *, seed: int, step: int
    ) -> list[list[Completion]]:
        """Sample training groups from the engine's weights, and all others from the trainer's."""
        sampler = self.other if params.group_size == GROUP_SIZE else self.exact
        return sampler.sample(requests, params, seed=seed, step=step)

    def update(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Receive the trainer's weights, and change them as the kind of this engine does."""
        given = dict(weights)
        self.exact.update(given.items(), version)
        changed = {name: self._changed(name, tensor) for name, tensor in given.items()}
        self._before = {name: tensor.clone() for name, tensor in given.items()}
        self.other.update(changed.items(), version)

    def _changed(self, name: str, tensor: Tensor) -> Tensor:
        if self.kind.endswith(("bit", "bits")):
            return rounded(tensor, int(self.kind.split()[0]))
        stays = self.kind == "frozen" or (self.kind == "part" and name == PART)
        if self.kind == "swapped" and name == QUERY and self._before:
            return tensor.roll(tensor.shape[0] // 4, 0)
        if self.kind == "late" and self._before:
            return self._before[name]
        return self.other.model.state_dict()[name].clone() if stays and self._before else tensor


GROUP_SIZE = 8
PART, QUERY = "model.layers.1.mlp.down_proj.weight", "model.layers.0.self_attn.q_proj.weight"


class OneStart(Study):
    """Runs that all begin with the same warm start."""

    def start(self, seed: int) -> Path:
        """Return the run with the warm start."""
        return super().start(WARM_SEED)


def measured(summary: Any, lines: Sequence[Any]) -> dict[str, Any]:
    """Return the numbers of a finished run: accuracy at its end, and means of metrics in quarters of its steps."""
    steps = lines[1:]  # the first line is that of the evaluation before training
    keys = (
        "sampler/mismatch",
        "sampler/mismatch_max",
        "sampler/kl",
        "accuracy",
        *(f"{each}/clip_fraction" for each in RATIOS),
    )
    size = len(steps) // 4
    return {
        "sampled": summary["accuracy_after"],
        "greedy": summary["accuracy_greedy_after"],
        "quarters": {
            key: [fmean(line[key] for line in steps[size * n : size * (n + 1)]) for n in range(4)]
            for key in keys
            if key in steps[0]
        },
        "kl": [line["sampler/kl"] for line in steps],
        "warnings": list(summary.get("warnings", ())),
    }


def settings_of(loop: str, arm: str, engine: str) -> Settings:
    """Return the settings of a cell."""
    own: Settings = {} if engine == OWN else {"sampling_engine": "vllm", "sampling_engine_options": {"kind": engine}}
    used = ARMS[SAME.get(arm, arm) if engine == OWN else arm]
    return {
        "reference": "auto",
        "beta": None,
        "sampling_check": False,
        "learning_rate": 3e-4,
        **own,
        **LOOPS[loop],
        **used,
    }


SHOWN = (("sampler/mismatch", 0), ("sampler/mismatch", 3), ("sampler/kl", 3), ("accuracy", 3))
"""Metrics in the table, and the quarters of a run over which they are averaged."""


def mean_of(found: Sequence[Any], key: str, quarter: int) -> float:
    """Return the mean of a metric over the runs, in a quarter of their steps."""
    return fmean(each["quarters"][key][quarter] for each in found)


def table(study: Study, loop: str, arms: Sequence[str], engines: Sequence[str], seeds: Sequence[int]) -> str:
    """Return a table of the finished cells of a loop; differences are to the same arm with the trainer's own model."""
    lines = []
    for engine in (OWN, *engines):
        for arm in [each for each in arms if engine != OWN or each not in SAME]:
            try:
                found, own = (
                    [study.result("on-policy", settings_of(loop, arm, each), seed) for seed in seeds]
                    for each in (engine, OWN)
                )
            except Missing:
                continue
            differences = [one["sampled"] - other["sampled"] for one, other in zip(found, own, strict=True)]
            low, high = interval(differences)
            lines.append([engine, arm, *(spread([one[key] for one in found]) for key in ("sampled", "greedy")),
                          f"{fmean(differences):+.3f} ({low:+.3f} to {high:+.3f})",
                          *(f"{mean_of(found, key, place):.2g}" for key, place in SHOWN)])  # fmt: skip
    header = [
        "engine",
        "arm",
        "sampled",
        "greedy",
        "minus own",
        "mismatch, first and",
        "last quarter",
        "KL",
        "training accuracy",
    ]
    return f"\n{loop}, {len(seeds)} seeds\n\n" + measure.table(header, lines)


def main() -> None:
    """Train what is missing, or print the tables of what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("cells", "table", "broken"))
    parser.add_argument("--out", type=Path, default=Path("runs/mismatch"))
    parser.add_argument("--loops", nargs="+", default=["four"])
    parser.add_argument("--arms", nargs="+", default=list(ARMS))
    parser.add_argument("--engines", nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=range(20, 23))
    given = parser.parse_args()
    warnings.simplefilter("ignore", GvpoWarning)
    torch.set_num_threads(1)
    opening.OPENERS["vllm"] = f"{__name__}:Engine"
    off_policy.measured = measured
    defaults.IS_CAP = None  # no weights unless an arm sets them
    REGIMES.setdefault("on-policy", ({}, {}))
    study = OneStart(given.out, trains=given.what != "table")
    engines = given.engines or (BROKEN if given.what == "broken" else ENGINES)
    arms = ["gvpo"] if given.what == "broken" else given.arms
    for seed in given.seeds:
        for loop in given.loops:
            for engine in (OWN, *engines):
                for arm in [each for each in arms if engine != OWN or each not in SAME]:
                    if study.trains:
                        study.result("on-policy", settings_of(loop, arm, engine), seed)
    for loop in given.loops:
        print(table(study, loop, arms, engines, given.seeds))


if __name__ == "__main__":
    main()
