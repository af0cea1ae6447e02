"""Write one result file from the summaries of finished runs: `python result.py DIRECTORY` writes DIRECTORY/result.json.

It contains only measurements: held-out accuracy during training, and the benchmarks' results, which are null until the
benchmarks have been run.
"""

import json
import sys
from pathlib import Path
from typing import Any

KEYS = ("accuracy_before", "accuracy_after", "best_accuracy", "best_step", "steps", "seconds", "model")


def result(directory: Path) -> dict[str, Any]:
    """Return the runs `ARM-seed-N` of a directory by arm and seed, with the names of unfinished runs."""
    arms: dict[str, dict[str, Any]] = {}
    unfinished = []
    for run in sorted(directory.glob("*-seed-*")):
        summary = run / "summary.json"
        if not summary.is_file():
            unfinished.append(run.name)
            continue
        arm, _, seed = run.name.rpartition("-seed-")
        values = json.loads(summary.read_text(encoding="utf-8"))
        arms.setdefault(arm, {})[seed] = {key: values.get(key) for key in KEYS}
    return {"held_out": arms, "unfinished": unfinished, "benchmarks": _benchmarks(directory / "eval" / "summary.json")}


def _benchmarks(summary: Path) -> dict[str, Any] | None:
    """Return the results of `gvpo eval`, or None if there are none."""
    return json.loads(summary.read_text(encoding="utf-8")) if summary.is_file() else None


def main() -> None:
    """Write the file, and print how many results it contains."""
    directory = Path(sys.argv[1])
    found = result(directory)
    (directory / "result.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    benchmarks = "benchmarks" if found["benchmarks"] else "no benchmark"
    print(f"{directory / 'result.json'}: {sum(map(len, found['held_out'].values()))} finished runs, {benchmarks}")


if __name__ == "__main__":
    main()
