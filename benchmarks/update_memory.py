"""Measure the peak memory of an update: against the batch at one token budget, and against the budget.

    python benchmarks/update_memory.py [--json FILE]

Each point is a separate process on the CPU of a Linux machine: a randomly initialized Qwen2 of 4 layers, 256 wide,
32,000 tokens, in float32; groups with a prompt of 64 tokens and 8 completions of 32. Reference log-probs are given, so
several micro-batches are scored and then pushed. A small update comes first, so that all code is loaded. The peak is
the kernel's high-water mark above the memory of the process with its model; the gradients (4 bytes per parameter) are
part of it. With MALLOC_MMAP_THRESHOLD_ glibc returns freed blocks to the system immediately, so they do not count.
"""

import argparse
import functools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from plan_check import Peaks, make_groups

from gvpo.planning import Workload

MODEL: dict[str, Any] = {
    "architecture": "qwen2",
    "num_hidden_layers": 4,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 32_000,
    "tie_word_embeddings": True,
    "max_position_embeddings": 8192,
}
WORK = Workload(group_size=8, prompt_tokens=64, completion_tokens=32, half=False)
RELEASE = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "OMP_NUM_THREADS": "1"}
BUDGET, GROUPS = 2048, 16
BATCHES = (1, 2, 4, 8, 16, 32, 64)
BUDGETS = (256, 512, 1024, 2048, 4096)
BAR = 40


@dataclass(frozen=True)
class Point:
    """A measurement: number of groups, budget, and gradient checkpointing."""

    groups: int
    budget: int
    checkpointing: bool = False


@dataclass(frozen=True)
class Result:
    """MiB at the peak above the model: all repetitions, in order."""

    point: Point
    mib: list[float]


def main() -> None:
    """Measure and print all points, or (in the child) one."""
    parser = argparse.ArgumentParser(description="Peak memory of an update against batch and token budget")
    parser.add_argument("--json", type=Path, metavar="FILE", help="Also write the numbers to this file")
    parser.add_argument("--repeats", type=int, default=2, metavar="N", help="Number of processes per point (default 2)")
    parser.add_argument("--measure", metavar="POINT", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(_measure(Point(**json.loads(options.measure)))))
        return
    results = []
    for title, points in _series():
        found = [_repeated(point, options.repeats) for point in points]
        _print(title, found)
        results += [{"series": title, **asdict(result)} for result in found]
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


def _series() -> list[tuple[str, list[Point]]]:
    return [
        (f"groups, at {BUDGET} tokens per micro-batch", [Point(groups, BUDGET) for groups in BATCHES]),
        (f"tokens per micro-batch, at {GROUPS} groups", [Point(GROUPS, budget) for budget in BUDGETS]),
        (
            f"tokens per micro-batch, at {GROUPS} groups, gradient checkpointing",
            [Point(GROUPS, budget, checkpointing=True) for budget in BUDGETS],
        ),
    ]


def _repeated(point: Point, repeats: int) -> Result:
    with ThreadPoolExecutor(max_workers=2) as pool:
        return Result(point, list(pool.map(_in_a_process, [point] * repeats)))


def _in_a_process(point: Point) -> float:
    finished = subprocess.run(
        [sys.executable, __file__, "--measure", json.dumps(asdict(point))],
        env={**os.environ, **RELEASE},
        capture_output=True,
        text=True,
        check=False,
    )
    if finished.returncode:
        raise SystemExit(f"{point} failed:\n{finished.stderr}")
    return float(finished.stdout.splitlines()[-1])


def _print(title: str, results: Sequence[Result]) -> None:
    """Print a line per point, with its range and a bar."""
    by_budget = len({result.point.budget for result in results}) > 1
    largest = max(median(result.mib) for result in results)
    print(f"\n{title}\n")
    for result in results:
        key = result.point.budget if by_budget else result.point.groups
        middle = median(result.mib)
        bar = "#" * round(BAR * middle / largest)
        print(f"{key:6} {middle:7.0f} MiB ({min(result.mib):.0f} to {max(result.mib):.0f})  {bar}", flush=True)


def _measure(point: Point) -> float:
    """Return MiB at the peak of one update, above the model."""
    import torch

    from gvpo.model.model import checkpoint_activations, load_model

    torch.set_num_threads(1)
    tiny = load_model(init={**MODEL, "num_hidden_layers": 1, "vocab_size": 512})
    _update(tiny, replace(point, groups=2, budget=256))
    del tiny
    model = load_model(init=MODEL)
    model.train()
    if point.checkpointing:
        checkpoint_activations(model)
    groups = make_groups(replace(WORK, prompts_per_step=1, group_size=2), MODEL["vocab_size"])
    _backward(model, groups, point.budget)  # checks the fast paths
    model.zero_grad(set_to_none=True)
    peaks = Peaks()
    peaks.start()
    _update(model, point)
    peaks.mark("update")
    return peaks.found["update"]


def _update(model: Any, point: Point) -> None:
    groups = make_groups(replace(WORK, prompts_per_step=point.groups), model.config.vocab_size)
    _backward(model, groups, point.budget)


def _backward(model: Any, groups: Sequence[Any], budget: int) -> None:
    """Run an update whose coefficients depend on its log-probs: the reference is slightly different."""
    from gvpo.objectives import gvpo
    from gvpo.update.group_backward import group_backward

    referred = [
        replace(group, completions=[replace(row, ref_logprobs=[-10.0] * len(row.tokens)) for row in group.completions])
        for group in groups
    ]
    group_backward(model, referred, functools.partial(gvpo, beta=0.1), tokens_per_microbatch=budget)


if __name__ == "__main__":
    main()
