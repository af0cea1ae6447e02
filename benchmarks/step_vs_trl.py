"""Whole training steps against TRL's GRPOTrainer.train(): seconds per step by phase, and reward against wall-clock.

    python benchmarks/step_vs_trl.py [--tasks ...] [--steps N] [--rounds N] [--json FILE] [--svg FILE]

Both sides run GRPO with TRL's defaults (a mean over all tokens, clip 0.2, no KL), AdamW and one update per rollout,
with the same model, prompts, group size, limits and reward (step_tasks.py). TRL computes in float32, and in bfloat16 on
the side of that name; gvpo chooses (model.compute_dtype = auto). Each side first tries its batch settings for some
steps and keeps the fastest. Then they take turns; each run is a process with N steps. The time of a step is a median of
the steps after the first, which has its own column.
"""

import argparse
import json
import tempfile
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from measure import caption, child, circumstances, spread, table, write_json, write_page
from step_tasks import GROUP_SIZE, TASKS, StepTask


def main() -> None:
    """Measure and print the table, or (in a child) one run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=["demo", "ragged"])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--models", type=Path, help="Directory for the starting models (default: a temporary directory)"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--svg", type=Path, help="Output file of the chart of reward against seconds")
    parser.add_argument("--page", type=Path, help="Page for the table, such as docs/internals/benchmarks.md")
    parser.add_argument("--part", nargs=3, metavar=("SIDE", "TASK", "SETTING"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.part:
        side, name, setting = options.part
        print(json.dumps(SIDES[side](TASKS[name], options.models / name, int(setting), options.steps)))
        return
    models = options.models or Path(tempfile.mkdtemp())
    results = {"circumstances": circumstances(options.threads), "tasks": {}}
    for name in options.tasks:
        results["tasks"][name] = _compared(name, models, options.steps, options.rounds, options.threads)
        write_json(options.json, results)
    if options.svg:
        options.svg.write_text(drawing(results))
    write_page(options.page, "smollm2" if options.tasks == ["smollm2"] else "step", markdown(results))
    print(markdown(results))


def markdown(results: dict[str, Any]) -> str:
    """Return the table with its caption."""
    rows = [_cells(name, side, found) for name, found in results["tasks"].items() for side in found["sides"]]
    return f"{caption('step_vs_trl.py', results['circumstances'])}\n\n{table(HEADER, rows)}"


HEADER = (
    "task, side",
    "batch setting",
    "s per step (range)",
    "first step",
    "sampling",
    "update",
    "tokens per step",
    "steps/s, times TRL's",
)


def _cells(name: str, side: str, found: dict[str, Any]) -> tuple[str, ...]:
    found, faster = found["sides"], found["faster"]
    steps = [step for run in found[side]["runs"] for step in _later(run)]
    seconds = spread([step["seconds"] for step in steps])
    unit = "tokens per micro-batch" if side == "gvpo" else "rows per forward"
    return (
        f"{name}, {side}",
        f"{found[side]['setting']} {unit}",
        f"{seconds['median']:.2f} ({seconds['min']:.2f} to {seconds['max']:.2f})",
        f"{median(run[0]['seconds'] for run in found[side]['runs']):.2f}",
        f"{median(step['sampling'] for step in steps):.2f}",
        f"{median(step['update'] for step in steps):.2f}",
        f"{median(step['tokens'] for step in steps):.0f}",
        ", ".join(f"{ratio['median']:.1f} ({other})" for other, ratio in faster.items()) if side == "gvpo" else "",
    )


def drawing(results: dict[str, Any]) -> str:
    """Return a chart of reward against seconds of training, with a panel for each task, as SVG."""
    from gvpo.report.figure import figure
    from gvpo.report.svg import Chart, Series

    def series(side: str, number: int, run: Sequence[dict[str, float]]) -> Series:
        ends = [sum(step["seconds"] for step in run[: place + 1]) for place in range(len(run))]
        return Series(side, [(end, step["reward"]) for end, step in zip(ends, run, strict=True)], color=number)

    charts = [
        Chart(
            f"{name}: reward",
            "",
            [series(side, i, one["runs"][0]) for i, (side, one) in enumerate(found["sides"].items())],
        )
        for name, found in results["tasks"].items()
    ]
    return figure(charts).replace(">step<", ">s<")  # the x axis of the report's charts is steps, here it is seconds


def _compared(name: str, models: Path, steps: int, rounds: int, threads: int) -> dict[str, Any]:
    """Return a task's best settings and its runs, with the sides in turn."""
    path, task = models / name, TASKS[name]
    if not (path / "config.json").exists():
        task.make_model(path)

    def run(side: str, setting: int, count: int) -> Any:
        arguments = ("--part", side, name, str(setting), "--steps", str(count), "--models", str(models))
        return child(__file__, *arguments, threads=threads)

    sides: dict[str, Any] = {}
    for side, possible in task.settings.items():
        settings = [s for s in possible if side == "gvpo" or s <= task.prompts * GROUP_SIZE]
        trials = {s: _typical(run(side, s, task.trial)) for s in settings} if len(settings) > 1 else {settings[0]: 0.0}
        sides[side] = {"setting": min(trials, key=trials.__getitem__), "trials": trials, "runs": []}
    for _ in range(rounds):
        for side, found in sides.items():
            found["runs"].append(run(side, found["setting"], steps))
    return {"sides": sides, "faster": {side: _times_faster(sides, side) for side in sides if side != "gvpo"}}


def _times_faster(sides: dict[str, Any], side: str) -> dict[str, float]:
    """Return the spread over rounds of another side's time per step, divided by gvpo's."""
    rounds = zip(sides[side]["runs"], sides["gvpo"]["runs"], strict=True)
    return spread([_typical(other) / _typical(own) for other, own in rounds])


def _later(run: Sequence[dict[str, float]]) -> Sequence[dict[str, float]]:
    """Return the steps after the first, if there are any."""
    return run[1:] or run


def _typical(run: Sequence[dict[str, float]]) -> float:
    """Return the median seconds of a run's steps after the first."""
    return median(step["seconds"] for step in _later(run))


def run_gvpo(task: StepTask, model: Path, setting: int, steps: int) -> list[dict[str, float]]:
    """Train with gvpo; return the measurements of each step."""
    from datasets import Dataset

    from gvpo import TrainConfig, Trainer
    from gvpo.runfiles import METRICS, read_metrics

    run_dir = Path(tempfile.mkdtemp()) / "run"
    config = TrainConfig(
        run_dir=run_dir,
        objective="grpo",
        reduction="token_mean",
        steps=steps,
        prompts_per_step=task.prompts,
        group_size=GROUP_SIZE,
        max_tokens=task.max_tokens,
        learning_rate=task.learning_rate,
        tokens_per_microbatch=setting,
        eval_problems=0,
        rollouts_every=0,
        checkpoint_verify=False,
    )
    Trainer(str(model), task.reward, config, Dataset.from_list(task.rows())).train()
    return [
        {
            "seconds": line["seconds/total"],
            "sampling": line["seconds/sampling"],
            "update": line["seconds/scoring"] + line["seconds/updating"],
            "tokens": line["tokens/sampled"],
            "reward": line["reward/mean"],
        }
        for line in read_metrics(run_dir / METRICS)
        if line["step"] > 0
    ]


def run_trl(task: StepTask, model: Path, setting: int, steps: int, *, half: bool = False) -> list[dict[str, float]]:
    """Train with TRL; return the measurements of each step."""
    import trl_side

    from gvpo import load_model, load_tokenizer

    return trl_side.train(
        load_model(str(model)),
        load_tokenizer(model),
        task.rows(),
        task.reward,
        bf16=half,
        per_device_train_batch_size=setting,
        gradient_accumulation_steps=task.prompts * GROUP_SIZE // setting,
        num_generations=GROUP_SIZE,
        max_completion_length=task.max_tokens,
        max_steps=steps,
        learning_rate=task.learning_rate,
    )


SIDES = {"trl": run_trl, "trl-bfloat16": partial(run_trl, half=True), "gvpo": run_gvpo}


if __name__ == "__main__":
    main()
