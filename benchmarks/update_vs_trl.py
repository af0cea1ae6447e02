"""One update, scoring and backward, against TRL's GRPOTrainer: time, memory, gradient, share of the matmul bound.

    python benchmarks/update_vs_trl.py [--shapes S ...] [--cases C ...] [--dtype D ...] [--repeats N] [--json FILE]

What is compared is in update_cases.py. Times and gradients of a cell come from one process, in which the sides and the
bound take turns; the memory of each side comes from a process of its own.
"""

import argparse
import json
import warnings
from pathlib import Path
from statistics import median
from typing import Any

from measure import CLOCKS, caption, child, circumstances, in_turns, peak_above, ratio, table, write_json, write_page
from update_cases import CASES, DTYPES, SHAPES, Bench, Shape

from gvpo import keep_freed_memory


def main() -> None:
    """Measure and print the tables, or (in a child) one part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--repeats", type=int, default=5, help="rounds after the one that compares the gradients")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path, help="put the tables into this page, docs/benchmarks.md say")
    parser.add_argument("--part", nargs=4, metavar=("WHAT", "SHAPE", "CASE", "DTYPE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(_part(*options.part, options.repeats)))
        return
    results = {"circumstances": circumstances(options.threads, options.clock), "measurements": []}
    for dtype, case, name in ((d, c, s) for d in options.dtype for c in options.cases for s in options.shapes):
        found = _measured(name, case, dtype, options.repeats, options.threads)
        results["measurements"].append(found)
        write_json(options.json, results)
        print(_line(found), flush=True)
    write_page(options.page, "update", markdown(results))
    print(markdown(results))


def markdown(results: dict[str, Any]) -> str:
    """The tables, one for each dtype and case."""
    made = [caption("update_vs_trl.py", results["circumstances"])]
    found = results["measurements"]
    for dtype, case in dict.fromkeys((part["dtype"], part["case"]) for part in found):
        rows = [_cells(part) for part in found if (part["dtype"], part["case"]) == (dtype, case)]
        header = (*HEADER, *(HALF_HEADER if dtype == "bfloat16" else ()), *(PARTS_HEADER if case == "known" else ()))
        made.append(f"**{case}, {dtype}**\n\n{table(header, rows)}")
    return "\n\n".join(made)


MEASURED = ("trl", "trl-parts", "gvpo")
"""Sides whose memory is measured."""

GOALS = {
    (shape, "known", "float32"): goals
    for shape, goals in {
        "base": ("10", "10"),
        "long-prompt": ("30", "15"),
        "long-answers": ("4", "7"),
        "vocabulary": ("18", "8"),
    }.items()
}
"""What was set out for: times faster and times less memory, or 85% of the bound where that comes first."""

HEADER = (
    "G, prompt, completion, vocabulary",
    "TRL s",
    "gvpo s",
    "times faster (range)",
    "goal",
    "TRL MiB",
    "gvpo MiB",
    "times less",
    "goal",
    "gradient differs",
    "share of bound",
)
HALF_HEADER = ("TRL's gradient differs", "times faster than gvpo's float32")
"""In bfloat16 gradients are compared with gvpo's in float32."""
PARTS_HEADER = ("TRL in parts s", "times faster", "MiB", "times less")
"""TRL with fewer completions a forward than the whole batch, at its fastest."""


def _cells(found: dict[str, Any]) -> tuple[str, ...]:
    faster, memory = found["faster"], found["memory"]
    goal = GOALS.get((found["shape"], found["case"], found["dtype"]), ("", ""))
    return (
        _described(SHAPES[found["shape"]]),
        f"{median(found['seconds']['trl']):.2f}",
        f"{median(found['seconds']['gvpo']):.3f}",
        f"{faster['median']:.1f} ({faster['min']:.1f} to {faster['max']:.1f})",
        goal[0],
        f"{memory['trl']:.0f}",
        f"{memory['gvpo']:.0f}",
        f"{memory['trl'] / memory['gvpo']:.1f}",
        goal[1],
        f"{found['difference']:.1e}",
        f"{found['share_of_bound']:.0%}",
        *_half_cells(found),
        *_parts_cells(found),
    )


def _half_cells(found: dict[str, Any]) -> tuple[str, ...]:
    if found["dtype"] != "bfloat16":
        return ()
    faster = ratio(found["seconds"], "gvpo-float32", "gvpo")["median"]
    return f"{found['difference_of_trl']:.1e}", f"{faster:.1f}"


def _parts_cells(found: dict[str, Any]) -> tuple[str, ...]:
    if found["case"] != "known":
        return ()
    memory = found["memory"]
    return (
        f"{median(found['seconds']['trl-parts']):.2f}",
        f"{ratio(found['seconds'], 'trl-parts', 'gvpo')['median']:.1f}",
        f"{memory['trl-parts']:.0f}",
        f"{memory['trl-parts'] / memory['gvpo']:.1f}",
    )


def _described(shape: Shape) -> str:
    lengths = sorted(set(shape.lengths))
    answers = f"{lengths[0]}" if len(lengths) == 1 else f"{lengths[0]} to {lengths[-1]}"
    groups = f", {shape.groups} groups" if shape.groups > 1 else ""
    return f"{len(shape.lengths)}, {shape.prompt}, {answers}, {shape.vocabulary}{groups}"


def _line(found: dict[str, Any]) -> str:
    return " ".join((f"{found['dtype']} {found['case']}:", *(f"{cell:>16}" for cell in _cells(found))))


def _measured(name: str, case: str, dtype: str, repeats: int, threads: int) -> dict[str, Any]:
    """One cell of the tables: times in one process, memory of each side in its own."""

    def part(what: str, *, exact_memory: bool = False) -> Any:
        arguments = ("--part", what, name, case, dtype, "--repeats", str(repeats))
        return child(__file__, *arguments, threads=threads, exact_memory=exact_memory)

    timed = part("time")
    seconds = timed["seconds"]
    return {
        "shape": name,
        "case": case,
        "dtype": dtype,
        **timed,
        "faster": ratio(seconds, "trl", "gvpo"),
        "share_of_bound": ratio(seconds, "bound", "gvpo")["median"],
        "memory": {side: part(side, exact_memory=True) for side in seconds if side in MEASURED},
    }


def _part(what: str, name: str, case: str, dtype: str, repeats: int) -> Any:
    warnings.simplefilter("ignore")
    if what == "time":
        keep_freed_memory()  # as the trainer does; it holds for both sides
        return _timed(Bench.of(SHAPES[name], case, dtype), repeats)
    tiny = Shape(8, (6, 4), vocabulary=512, groups=SHAPES[name].groups)
    for side in (Bench.of(tiny, case, dtype).sides()[what], Bench.of(SHAPES[name], case, dtype).sides()[what]):
        peak = peak_above(side)  # the tiny one loads all code
    return peak


def _timed(bench: Bench, repeats: int) -> dict[str, Any]:
    differences = bench.differences()  # runs each side once, which warms it up
    seconds = in_turns({**bench.sides(), "bound": bench.bound}, repeats)
    return {"seconds": seconds, **differences, "gigaflops": bench.flops() / 1e9}


if __name__ == "__main__":
    main()
