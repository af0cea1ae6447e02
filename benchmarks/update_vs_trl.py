"""One update, scoring and backward, against TRL's GRPOTrainer: time, memory, gradient, fraction of the matmul bound.

    python benchmarks/update_vs_trl.py [--shapes S ...] [--cases C ...] [--dtype D ...] [--repeats N] [--json FILE]

update_cases.py describes the cases. The sides and the bound take turns in two processes. One runs TRL with the
allocator's defaults, as TRL does. The other runs gvpo with freed memory kept, as its trainer does, and also TRL, which
becomes faster if page faults are expensive. The memory of each side is measured in a separate process.
"""

import argparse
import json
import warnings
from dataclasses import asdict, astuple, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from measure import (
    CLOCKS,
    Worker,
    caption,
    child,
    circumstances,
    in_turns,
    peak_above,
    ratio,
    serve,
    table,
    write_json,
    write_page,
)
from update_cases import CASES, DTYPES, SHAPES, Bench, Shape

from gvpo import keep_freed_memory


def main() -> None:
    """Measure and print the tables, or (in a child) one part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument(
        "--repeats", type=int, default=5, help="Number of rounds after the one that compares the gradients"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path, help="Page for the tables, such as docs/internals/benchmarks.md")
    parser.add_argument("--peak", nargs=4, metavar=("SIDE", "SHAPE", "CASE", "DTYPE"), help=argparse.SUPPRESS)
    parser.add_argument("--serve", nargs=4, metavar=("MEMORY", "SHAPE", "CASE", "DTYPE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.peak:
        print(json.dumps(_peak(*options.peak)))
        return
    if options.serve:
        _serve(*options.serve)
        return
    results = {"circumstances": circumstances(options.threads, options.clock), "measurements": []}
    for dtype, case, name in ((d, c, s) for d in options.dtype for c in options.cases for s in options.shapes):
        found = _measured(Cell(name, case, dtype), options.repeats, options.threads, options.clock)
        results["measurements"].append(found)
        write_json(options.json, results)
        print(_line(found), flush=True)
    write_page(options.page, "update", markdown(results))
    print(markdown(results))


@dataclass(frozen=True)
class Cell:
    """A row of the tables: a shape, a case and a dtype of update_cases.py."""

    shape: str
    case: str
    dtype: str


def markdown(results: dict[str, Any]) -> str:
    """Return the tables, one for each dtype and case, and one of TRL in parts."""
    made = [caption("update_vs_trl.py", results["circumstances"])]
    found = results["measurements"]
    for dtype, case in dict.fromkeys((part["dtype"], part["case"]) for part in found):
        cells = [part for part in found if (part["dtype"], part["case"]) == (dtype, case)]
        header = (*HEADER, *(HALF_HEADER if dtype == "bfloat16" else ()))
        made.append(f"**{case}, {dtype}**\n\n{table(header, list(map(_cells, cells)))}")
        if case == "known":
            made.append(f"**{case}, {dtype}, TRL in parts**\n\n{table(PARTS_HEADER, list(map(_parts_cells, cells)))}")
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
"""Goals: times faster and times less memory, or 85% of the bound if that is reached first."""

HEADER = (
    "G, prompt, completion, vocabulary",
    "TRL s",
    "gvpo s",
    "times faster (range)",
    "goal",
    "TRL s, memory kept",
    "times faster",
    "TRL MiB",
    "gvpo MiB",
    "times less",
    "goal",
    "gradient differs",
    "share of bound",
)
HALF_HEADER = ("TRL's gradient differs", "times faster than gvpo's float32")
"""Columns for bfloat16, in which gradients are compared with gvpo's in float32."""
PARTS_HEADER = ("shape", "s", "times faster", "s, memory kept", "times faster", "MiB", "times less")
"""Columns for TRL with fewer completions per forward than the whole batch, at its fastest."""


def _cells(found: dict[str, Any]) -> tuple[str, ...]:
    faster, memory = found["faster"], found["memory"]
    goal = GOALS.get((found["shape"], found["case"], found["dtype"]), ("", ""))
    return (
        _described(SHAPES[found["shape"]]),
        f"{median(found['seconds']['trl']):.2f}",
        f"{median(found['seconds']['gvpo']):.3f}",
        f"{faster['median']:.1f} ({faster['min']:.1f} to {faster['max']:.1f})",
        goal[0],
        *_slower(found, "trl-kept"),
        f"{memory['trl']:.0f}",
        f"{memory['gvpo']:.0f}",
        f"{memory['trl'] / memory['gvpo']:.1f}",
        goal[1],
        f"{found['difference']:.1e}",
        f"{found['share_of_bound']:.0%}",
        *_half_cells(found),
    )


def _slower(found: dict[str, Any], side: str) -> tuple[str, str]:
    """Return the seconds of a side, and how many times faster gvpo is."""
    return f"{median(found['seconds'][side]):.2f}", f"{ratio(found['seconds'], side, 'gvpo')['median']:.1f}"


def _half_cells(found: dict[str, Any]) -> tuple[str, ...]:
    if found["dtype"] != "bfloat16":
        return ()
    faster = ratio(found["seconds"], "gvpo-float32", "gvpo")["median"]
    return f"{found['difference_of_trl']:.1e}", f"{faster:.1f}"


def _parts_cells(found: dict[str, Any]) -> tuple[str, ...]:
    memory = found["memory"]
    return (
        _described(SHAPES[found["shape"]]),
        *_slower(found, "trl-parts"),
        *_slower(found, "trl-parts-kept"),
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


def _measured(cell: Cell, repeats: int, threads: int, clock: str) -> dict[str, Any]:
    """Return one row of the tables."""
    timed = _timed(cell, repeats, threads, clock)
    seconds = timed["seconds"]
    return {
        **asdict(cell),
        **timed,
        "faster": ratio(seconds, "trl", "gvpo"),
        "share_of_bound": ratio(seconds, "bound", "gvpo")["median"],
        "memory": {
            side: child(__file__, "--peak", side, *astuple(cell), threads=threads, exact_memory=True)
            for side in seconds
            if side in MEASURED
        },
    }


def _timed(cell: Cell, repeats: int, threads: int, clock: str) -> dict[str, Any]:
    """Return the seconds of the sides and the bound, measured in turn, and the distances between gradients."""

    def worker(memory: str) -> Worker:
        return Worker(__file__, "--serve", memory, *astuple(cell), threads=threads, clock=clock)

    with worker(AS_IS) as as_is, worker(KEPT) as kept:
        found = kept(COMPARED)  # runs each side once, which warms it up
        names = found.pop("sides")
        theirs = [name for name in names if name.startswith("trl")]
        sides = {side: partial(as_is, side) for side in theirs}
        if cell.case != "rollout":  # a rollout takes minutes, so that a warm-up is not needed
            for warm_up in sides.values():
                warm_up()
        sides |= {f"{side}-kept": partial(kept, side) for side in theirs}
        sides |= {side: partial(kept, side) for side in (*(name for name in names if name not in theirs), "bound")}
        return {"seconds": in_turns(sides, repeats), **found}


AS_IS, KEPT = "as-is", "kept"
"""Handling of freed memory in a process: the system's default, or that of gvpo's trainer."""

COMPARED = "compared"


def _serve(memory: str, shape: str, case: str, dtype: str) -> None:
    """Time sides by name; `COMPARED` runs each once and returns their differences."""
    if memory == KEPT:
        keep_freed_memory()
    bench = Bench.of(SHAPES[shape], case, dtype)
    sides = bench.sides()

    def answer(name: str) -> Any:
        if name == COMPARED:
            return {"sides": list(sides), **bench.differences(), "gigaflops": bench.flops() / 1e9}
        if name == "bound":
            return bench.bound()
        return in_turns({name: sides[name]}, 1)[name][0]

    serve(answer)


def _peak(side: str, name: str, case: str, dtype: str) -> float:
    """Return the MiB of a side; a tiny batch before it loads all code."""
    tiny = Shape(8, (6, 4), vocabulary=512, groups=SHAPES[name].groups)
    for run in (Bench.of(tiny, case, dtype).sides()[side], Bench.of(SHAPES[name], case, dtype).sides()[side]):
        peak = peak_above(run)
    return peak


if __name__ == "__main__":
    main()
