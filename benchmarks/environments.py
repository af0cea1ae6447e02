"""Environments: the cost of a turn of many episodes, and of steps that hang.

    python benchmarks/environments.py [--episodes 128] [--hangs 2 4 12] [--timeout 2] [--workers 2] [--json FILE]

A trivial step counts its turns and repeats the text, so that the turn's time is that of the pool. Hanging steps are
those of the first episodes of one worker, or are spread over all; the bound is ceil(hangs / workers) timeouts.
"""

import argparse
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measure import caption, circumstances, spread, table, write_json, write_page

from gvpo.environments import EnvironmentPool, EnvironmentSpec, Start

HANG = "hang"
PLACES = ("together", "spread")


class Counter:
    """Counts its turns; hangs if it is told to."""

    def reset(self, *, seed: int) -> None:
        """Begin an episode."""
        self.turns = 0

    def step(self, text: str) -> tuple[str, float, bool]:
        """Return the number of the turn with the text."""
        if text == HANG:
            time.sleep(3600)
        self.turns += 1
        return f"{self.turns}: {text}", 1.0, False


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=128)
    parser.add_argument("--turns", type=int, default=200, help="Number of timed turns")
    parser.add_argument("--hangs", type=int, nargs="+", default=[2, 4, 12], help="Numbers of steps that hang")
    parser.add_argument("--timeout", type=float, default=2.0, help="Maximum seconds per step")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help="Number of times that each case of hangs is measured")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path, help="Page for the tables, such as docs/internals/benchmarks.md")
    options = parser.parse_args()
    results: dict[str, Any] = {"circumstances": circumstances(1), "workers": options.workers}
    results["turns"] = {str(count): turns(options, count) for count in (1, options.episodes)}
    results["hangs"] = [hangs(options, count, place) for count in options.hangs for place in PLACES]
    write_json(options.json, results)
    write_page(options.page, "environments", markdown(results))
    print(markdown(results))


def begun(options: argparse.Namespace, episodes: int) -> EnvironmentPool:
    """Return a pool with episodes that have had a turn."""
    spec = EnvironmentSpec("counter", Counter)
    pool = EnvironmentPool(spec, workers=options.workers, timeout=options.timeout)
    pool.reset([Start(name, 0) for name in names(episodes)])
    pool.step(dict.fromkeys(names(episodes), "word"))
    return pool


def names(count: int) -> list[str]:
    """Return the IDs of episodes."""
    return [str(number) for number in range(count)]


def turns(options: argparse.Namespace, episodes: int) -> list[float]:
    """Return the seconds of each turn in which all episodes take a trivial step."""
    texts, found = dict.fromkeys(names(episodes), "word"), []
    with begun(options, episodes) as pool:
        for _ in range(options.turns):
            started = time.perf_counter()
            pool.step(texts)
            found.append(time.perf_counter() - started)
    print(f"{episodes} episodes: {spread(found)}", file=sys.stderr, flush=True)
    return found


def hangs(options: argparse.Namespace, count: int, place: str) -> dict[str, Any]:
    """Return the seconds of turns in which some steps hang."""
    all_names = names(options.episodes)
    hanging = all_names[:count] if place == "together" else all_names[:: options.episodes // count][:count]
    texts = {name: HANG if name in hanging else "word" for name in all_names}
    seconds = []
    for _ in range(options.repeats):
        with begun(options, options.episodes) as pool:
            started = time.perf_counter()
            answers = pool.step(texts)
            seconds.append(time.perf_counter() - started)
        if [name for name, answer in answers.items() if answer.outcome == "timeout"] != hanging:
            raise SystemExit("other steps than those that hang had no answer; give a longer --timeout")
    bound = math.ceil(count / options.workers) * options.timeout
    print(f"{count} hangs, {place}: {seconds}, bound {bound}", file=sys.stderr, flush=True)
    return {"hangs": count, "place": place, "seconds": seconds, "bound": bound}


def markdown(results: dict[str, Any]) -> str:
    """Return the tables with their caption."""
    turn_rows = [(count, _range([1000 * each for each in found], 1)) for count, found in results["turns"].items()]
    hang_rows = [
        (
            f"{case['hangs']}, {case['place']}",
            _range(case["seconds"], 2),
            f"{case['bound']:g}",
            _range([each / case["bound"] for each in case["seconds"]], 2),
        )
        for case in results["hangs"]
    ]
    return "\n\n".join(
        [
            caption("environments.py", results["circumstances"]) + f" {results['workers']} workers.",
            table(("episodes", "ms per turn (range)"), turn_rows),
            table(("hanging steps", "s (range)", "bound, s", "times the bound"), hang_rows),
        ]
    )


def _range(values: Sequence[float], digits: int) -> str:
    found = spread(values)
    low, middle, high = (f"{found[name]:.{digits}f}" for name in ("min", "median", "max"))
    return f"{middle} ({low} to {high})"


if __name__ == "__main__":
    main()
