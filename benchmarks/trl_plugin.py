"""gvpo's update inside TRL against TRL's own, in the same trainer: one update, and whole steps of training.

    python benchmarks/trl_plugin.py [--cells C ...] [--tasks T ...] [--repeats N] [--steps N] [--page FILE]

Every side is TRL's GRPOTrainer with its default loss, the same model, completions and settings:

    trl        unchanged TRL with the allocator's defaults
    trl-parts  the same with 2 completions per forward, as with gradient accumulation
    ...-kept   the same in a process that keeps freed memory, as gvpo does
    gvpo       FastGRPOTrainer, which runs gvpo's update; its time includes the conversion of TRL's tensors

The sides of an update take turns in two processes; their gradients are compared before. Memory is measured in a
separate process for each side. The sides of whole steps take turns too, each run in its own process. Steps after the
first count.
"""

import argparse
import json
import os
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import trl_side
from measure import (
    CLOCKS,
    Worker,
    caption,
    child,
    circumstances,
    in_turns,
    peak_above,
    peak_of_process,
    ratio,
    serve,
    spread,
    table,
    write_json,
    write_page,
)
from step_tasks import GROUP_SIZE, TASKS
from update_cases import LAYERS, PART, SHAPES, Shape

from gvpo import keep_freed_memory, load_model, load_tokenizer
from gvpo.integrations.trl import FastGRPOTrainer

SMOLLM2 = "smollm2"
CELLS = {**SHAPES, SMOLLM2: Shape(64, (64,) * 8, vocabulary=49_152)}
"""Shapes of an update; the last one runs on SmolLM2-135M."""

ROWS = {"demo": 128, "ragged": 16, SMOLLM2: 32}
"""Rows per forward in whole steps: the fastest for TRL in docs/internals/benchmarks.md."""

AS_IS, KEPT = "as-is", "kept"
SIDES = {"trl": AS_IS, "trl-parts": AS_IS, "trl-kept": KEPT, "trl-parts-kept": KEPT, "gvpo": KEPT}
"""Sides of an update, with the process in which they run."""
STEP_SIDES = ("trl", "trl-kept", "gvpo")


def main() -> None:
    """Measure and print the tables, or (in a child) one part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", nargs="*", choices=CELLS, default=list(CELLS))
    parser.add_argument("--tasks", nargs="*", choices=TASKS, default=list(TASKS))
    parser.add_argument("--repeats", type=int, default=3, help="Number of rounds of each update after a warm-up")
    parser.add_argument("--steps", type=int, default=6, help="Number of steps per run of a task")
    parser.add_argument("--rounds", type=int, default=2, help="Number of runs per side and task")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--models", type=Path, help="Directory for the starting models of the tasks")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path, help="Page for the tables, such as docs/internals/benchmarks.md")
    parser.add_argument("--serve", nargs=2, metavar=("MEMORY", "CELL"), help=argparse.SUPPRESS)
    parser.add_argument("--peak", nargs=2, metavar=("SIDE", "CELL"), help=argparse.SUPPRESS)
    parser.add_argument("--part", nargs=2, metavar=("SIDE", "TASK"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.serve:
        _serve(*options.serve)
    elif options.peak:
        print(json.dumps(_peak(*options.peak)))
    elif options.part:
        print(json.dumps(_run(*options.part, options.models, options.steps)))
    else:
        _measure(options)


def _measure(options: argparse.Namespace) -> None:
    results = {"circumstances": circumstances(options.threads, options.clock), "updates": {}, "steps": {}}
    models = options.models or Path(tempfile.mkdtemp())
    for name in options.cells:
        results["updates"][name] = _compared(name, options.repeats, options.threads, options.clock)
        _write(options, results)
    for name in options.tasks:
        results["steps"][name] = _trained(name, models, options)
        _write(options, results)
    print(markdown(results))


def _write(options: argparse.Namespace, results: dict[str, Any]) -> None:
    """Write what was measured so far."""
    results["circumstances"]["load_after"] = round(os.getloadavg()[0], 2)
    write_json(options.json, results)
    write_page(options.page, "trl-plugin", markdown(results))


def markdown(results: dict[str, Any]) -> str:
    """Return both tables with a caption."""
    facts = results["circumstances"]
    made = [f"{caption('trl_plugin.py', facts)} Load {facts.get('load_after', 0)} at the end."]
    if results["updates"]:
        made += [
            "**One update: loss and backward**",
            table(HEADER, [_cells(*each) for each in results["updates"].items()]),
        ]
    if results["steps"]:
        rows = [_step_cells(name, side, found) for name, found in results["steps"].items() for side in STEP_SIDES]
        made += ["**Whole steps**", table(STEP_HEADER, rows)]
    return "\n\n".join(made)


HEADER = (
    "G, prompt, completion, vocabulary",
    "TRL s",
    "TRL in parts s",
    "TRL, memory kept s",
    "in parts, memory kept s",
    "gvpo s",
    "faster than TRL (range)",
    "than its fastest, memory kept",
    "TRL MiB",
    "in parts MiB",
    "gvpo MiB",
    "gradient differs",
)
STEP_HEADER = (
    "task, side",
    "s per step (range)",
    "sampling",
    "update",
    "peak MiB",
    "update, times TRL's",
    "step, times TRL's",
)


def _cells(name: str, found: dict[str, Any]) -> tuple[str, ...]:
    seconds, memory, shape = found["seconds"], found["memory"], CELLS[name]
    faster = ratio(seconds, "trl", "gvpo")
    fastest = min(("trl-kept", "trl-parts-kept"), key=lambda side: median(seconds[side]))
    lengths = sorted({*shape.lengths})
    described = f"{len(shape.lengths)}, {shape.prompt}, {' to '.join(map(str, lengths[:: max(1, len(lengths) - 1)]))}"
    described += f", {shape.vocabulary}" + (f", {shape.groups} groups" if shape.groups > 1 else "")
    return (
        f"SmolLM2-135M: {described}" if name == SMOLLM2 else described,
        *(f"{median(seconds[side]):.2f}" for side in SIDES),
        f"{faster['median']:.1f} ({faster['min']:.1f} to {faster['max']:.1f})",
        f"{ratio(seconds, fastest, 'gvpo')['median']:.1f}",
        *(f"{memory[side]:.0f}" for side in ("trl", "trl-parts", "gvpo")),
        f"{found['difference']:.0e}",
    )


def _step_cells(name: str, side: str, found: dict[str, Any]) -> tuple[str, ...]:
    steps = {each: [step for run in runs for step in run["steps"][1:]] for each, runs in found.items()}
    seconds = spread([step["seconds"] for step in steps[side]])
    typical = {(each, part): median(step[part] for step in steps[each]) for each in steps for part in PHASES}
    times = [
        f"{typical['trl', part] / typical[side, part]:.1f}" if side != "trl" else "" for part in ("update", "seconds")
    ]
    return (
        f"{name}, {side}",
        f"{seconds['median']:.2f} ({seconds['min']:.2f} to {seconds['max']:.2f})",
        f"{typical[side, 'sampling']:.2f}",
        f"{typical[side, 'update']:.2f}",
        f"{median(run['peak'] for run in found[side]):.0f}",
        *times,
    )


PHASES = ("seconds", "sampling", "update")


def _compared(name: str, repeats: int, threads: int, clock: str) -> dict[str, Any]:
    """Return an update's seconds in turns, the distance of the gradients, and the memory of each side."""

    def worker(memory: str) -> Worker:
        return Worker(__file__, "--serve", memory, name, threads=threads, clock=clock)

    with worker(AS_IS) as as_is, worker(KEPT) as kept:
        difference = kept("difference")
        processes = {AS_IS: as_is, KEPT: kept}
        sides = {side: partial(processes[memory], side) for side, memory in SIDES.items()}
        sides["trl"]()  # warms up the other process
        seconds = in_turns(sides, repeats)
    peaks = ("trl", "trl-parts", "gvpo")
    memory = {side: child(__file__, "--peak", side, name, threads=threads, exact_memory=True) for side in peaks}
    return {"seconds": seconds, "difference": difference, "memory": memory}


def _update(side: str, name: str, shape: Shape) -> tuple[Any, Callable[[], None]]:
    """Return a side's model, and the function that adds a batch's gradient to it."""
    model = _model(name, shape)
    kind = FastGRPOTrainer if side == "gvpo" else trl_side.GRPOTrainer
    trainer = trl_side.grpo_trainer(model, shape.rows, len(shape.lengths), half=False, kind=kind)
    batch = trl_side.inputs_of(shape.batch(0))
    rows = PART if side.startswith("trl-parts") else shape.rows

    def run() -> None:
        trainer.model.zero_grad(set_to_none=True)
        if side == "gvpo":
            trl_side.fast_backward(trainer, batch, len(shape.lengths))
        else:
            trl_side.backward(trainer, batch, rows)

    return trainer.model, run


def _model(name: str, shape: Shape) -> Any:
    if name == SMOLLM2 and shape is CELLS[SMOLLM2]:
        return load_model(_smollm2()).train()
    return load_model(init={**LAYERS, "vocab_size": shape.vocabulary}).train()


def _smollm2() -> str:
    if (source := os.environ.get("GVPO_TEST_SMOLLM2")) is None:
        raise SystemExit("set GVPO_TEST_SMOLLM2 to the directory that recipes/smollm2/weights.py makes")
    return source


def _serve(memory: str, name: str) -> None:
    """Time sides by name; "difference" compares the gradients of TRL and gvpo, and warms both up."""
    if memory == KEPT:
        keep_freed_memory()
    made = {side: _update(side, name, CELLS[name]) for side, where in SIDES.items() if where == memory}

    def answer(wanted: str) -> Any:
        if wanted == "difference":
            return _difference(*made["trl-kept"], *made["gvpo"])
        return in_turns({wanted: made[wanted][1]}, 1)[wanted][0]

    serve(answer)


def _difference(theirs: Any, run_theirs: Callable[[], None], ours: Any, run_ours: Callable[[], None]) -> float:
    """Return the relative L2 distance of the gradients."""
    run_theirs()
    run_ours()
    pairs = zip(theirs.parameters(), ours.parameters(), strict=True)
    gaps = [((one.grad - other.grad).double().square().sum(), one.grad.double().square().sum()) for one, other in pairs]
    return float((sum(gap for gap, _ in gaps) / sum(size for _, size in gaps)) ** 0.5)


def _peak(side: str, name: str) -> float:
    """Return the MiB of an update; one on a tiny batch before it loads all code."""
    for shape in (Shape(8, (6, 4), vocabulary=512), CELLS[name]):
        peak = peak_above(_update(side, name, shape)[1])
    return peak


def _trained(name: str, models: Path, options: argparse.Namespace) -> dict[str, list[Any]]:
    """Return the runs of each side on a task, in turns."""
    if not (models / name / "config.json").exists():
        TASKS[name].make_model(models / name)
    runs: dict[str, list[Any]] = {side: [] for side in STEP_SIDES}
    for _ in range(options.rounds):
        for side, found in runs.items():
            arguments = ("--part", side, name, "--models", str(models), "--steps", str(options.steps))
            found.append(child(__file__, *arguments, threads=options.threads, clock=options.clock))
    return runs


def _run(side: str, name: str, models: Path, steps: int) -> dict[str, Any]:
    """Train, and return the measurements of each step with the peak memory of the process in MiB."""
    if side != "trl":
        keep_freed_memory()
    task, rows = TASKS[name], ROWS[name]
    found = trl_side.train(
        load_model(str(models / name)),
        load_tokenizer(models / name),
        task.rows(),
        task.reward,
        kind=FastGRPOTrainer if side == "gvpo" else trl_side.GRPOTrainer,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=max(1, task.prompts * GROUP_SIZE // rows),
        num_generations=GROUP_SIZE,
        max_completion_length=task.max_tokens,
        max_steps=steps,
        learning_rate=task.learning_rate,
    )
    return {"steps": found, "peak": peak_of_process()}


if __name__ == "__main__":
    main()
