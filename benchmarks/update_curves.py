"""The cost of an update against the size of its groups, its prompts and its completions.

    python benchmarks/update_curves.py [--curves C ...] [--repeats N] [--json FILE] [--page FILE]

One value varies, the others are constant. Each row has the seconds and the work, which is the FLOPs of matmul_bound.py:
prompts are shared and siblings do not attend to each other. If seconds per GFLOP do not rise along a curve, the cost
grows no faster than the work. "rows" is the same update with each completion after its own copy of the prompt.
"""

import argparse
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from matmul_bound import Passes, Work, flops
from measure import caption, child, circumstances, in_turns, spread, table, write_json, write_page
from update_cases import LAYERS, Shape

from gvpo import group_backward, keep_freed_memory, load_model
from gvpo.objectives import gvpo

VOCABULARY = 8_000
BUDGET = 8_192
CURVES: dict[str, tuple[str, dict[int, Shape]]] = {
    "group": ("completions per prompt", {k: Shape(256, (64,) * k, VOCABULARY) for k in (2, 4, 8, 16, 32, 64)}),
    "prompt": ("tokens of the prompt", {p: Shape(p, (64,) * 8, VOCABULARY) for p in (64, 256, 1024, 2048, 4096)}),
    "completion": ("tokens per completion", {c: Shape(256, (c,) * 8, VOCABULARY) for c in (16, 64, 256, 512, 1024)}),
}


def main() -> None:
    """Measure the curves, each point in a separate process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--curves", nargs="+", choices=CURVES, default=list(CURVES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path, help="Markdown page with marks between which to put the tables")
    parser.add_argument("--point", nargs=2, metavar=("CURVE", "VALUE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.point:
        import json

        print(json.dumps(_point(options.point[0], int(options.point[1]), options.repeats)))
        return
    results: dict[str, Any] = {"circumstances": circumstances(options.threads), "curves": {}}
    for name in options.curves:
        points = results["curves"][name] = []
        for value in CURVES[name][1]:
            arguments = ("--point", name, str(value), "--repeats", str(options.repeats))
            points.append(child(__file__, *arguments, threads=options.threads))
            write_json(options.json, results)
    write_page(options.page, "curves", markdown(results))
    print(markdown(results))


def markdown(results: dict[str, Any]) -> str:
    """Return the tables, one per curve."""
    tables = [_table(name, points) for name, points in results["curves"].items()]
    return "\n\n".join([caption("update_curves.py", results["circumstances"]), *tables])


def _point(curve: str, value: int, repeats: int) -> dict[str, Any]:
    warnings.simplefilter("ignore")
    keep_freed_memory()  # as the trainer does
    shape = CURVES[curve][1][value]
    model = load_model(init={**LAYERS, "vocab_size": VOCABULARY, "max_position_embeddings": 8192}).train()
    sides = {name: _update(model, shape, name) for name in ("shared", "rows")}
    for run in sides.values():
        run()
    seconds = in_turns(sides, repeats)
    return {"value": value, "seconds": seconds, "gigaflops": flops(model, Work.of(shape.batch(0)), Passes()) / 1e9}


def _update(model: Any, shape: Shape, side: str) -> Callable[[], None]:
    batch, sharing = shape.batch(0), "on" if side == "shared" else "off"
    run = partial(group_backward, model, batch, gvpo, on_policy=True, tokens_per_microbatch=BUDGET)

    def update() -> None:
        model.zero_grad(set_to_none=True)
        run(prefix_sharing=sharing)

    return update


def _table(name: str, points: list[dict[str, Any]]) -> str:
    header = (CURVES[name][0], "GFLOP", "s", "ms per GFLOP (range)", "against the first", "rows s", "rows / shared")
    first = _per_gigaflop(points[0])["median"]
    return table(header, [_cells(point, first) for point in points])


def _per_gigaflop(point: dict[str, Any]) -> dict[str, float]:
    return spread([1e3 * seconds / point["gigaflops"] for seconds in point["seconds"]["shared"]])


def _cells(point: dict[str, Any], first: float) -> tuple[str, ...]:
    each, shared, rows = _per_gigaflop(point), *(spread(point["seconds"][side]) for side in ("shared", "rows"))
    return (
        str(point["value"]),
        f"{point['gigaflops']:.1f}",
        f"{shared['median']:.3f}",
        f"{each['median']:.1f} ({each['min']:.1f} to {each['max']:.1f})",
        f"{each['median'] / first:.2f}",
        f"{rows['median']:.3f}",
        f"{rows['median'] / shared['median']:.1f}",
    )


if __name__ == "__main__":
    main()
