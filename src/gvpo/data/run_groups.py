"""Rollout files of a run as rows of groups: `runs/a`, `runs/a/rollouts` or one `rollouts/step-000010.parquet`.

A prompt and its completions are token IDs, along with their texts. The same problem is a separate group in each step,
so a group's ID consists of the step and the problem's ID: `step-000010/row-3`.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gvpo import notices
from gvpo.errors import DataError
from gvpo.runfiles import METRICS, ROLLOUTS, is_run, read_metrics, rollout_path, rollout_steps, rollout_table, step_name

TURNS = "episode_turns"
"""Column of a group with the turns of its episodes, one list per completion."""

_PER_COMPLETION = {
    "tokens": "completions",
    "text": "texts",
    "reward": "rewards",
    "reward_parts": "reward_parts",
    "reason": "reasons",
    "finish_reason": "finish_reasons",
    "source": "sources",
    "sampler_logprobs": "sampler_logprobs",
}
"""Columns of a rollout file -> columns of a group."""

_IDENTITY = ("step", "group", "row", "prompt", "prompt_tokens")
_READ = (*_IDENTITY, *_PER_COMPLETION, "mask", "turns", "columns")

MOST_RANGES = 3
"""Maximum number of ranges of steps that a notice lists."""


def is_rollout_directory(path: Path) -> bool:
    """Return whether a path is a run, or the directory of its rollout files."""
    return path.is_dir() and (is_run(path) or (path.name == ROLLOUTS and is_run(path.parent)))


def read_run_groups(path: Path) -> list[dict[str, Any]]:
    """Return the groups of a run, step by step.

    Raises:
        DataError: If the run has no rollout files.
        RunError: If a file is corrupt.

    Warns:
        GvpoWarning: If some steps of the run have no rollout file; the message says which.
    """
    run = path if is_run(path) else path.parent
    steps = rollout_steps(run)
    if not steps:
        raise DataError(f"the run {run} has no rollout files; train.rollouts_every sets which steps write one")
    _warn_of_missing(run, steps)
    return [
        group
        for step in steps
        for group in groups_of_rollouts(rollout_table(rollout_path(run, step), _READ).to_pylist())
    ]


def _warn_of_missing(run: Path, steps: Sequence[int]) -> None:
    last = max([steps[-1], *(line["step"] for line in read_metrics(run / METRICS)[-1:])])
    missing = sorted(set(range(1, last + 1)) - set(steps))
    if missing:
        notices.warn(
            f"{len(missing)} of the {last} steps of {run} have no rollout file, so their groups are missing: steps "
            f"{ranges(missing)}; train.rollouts_every=1 writes all"
        )


def ranges(numbers: Sequence[int]) -> str:
    """Return ascending numbers as text, such as "2 to 9, 11, ..."; at most `MOST_RANGES` ranges are listed."""
    known = set(numbers)
    starts = [number for number in numbers if number - 1 not in known]
    ends = [number for number in numbers if number + 1 not in known]
    found = [f"{a} to {b}" if b > a else f"{a}" for a, b in zip(starts, ends, strict=True)]
    return ", ".join(found[:MOST_RANGES] + ["..."] * (len(found) > MOST_RANGES))


def are_rollouts(rows: list[dict[str, Any]]) -> bool:
    """Return whether the rows of a file are the completions of a rollout file."""
    return bool(rows) and all(name in rows[0] for name in (*_IDENTITY, *_PER_COMPLETION))


def groups_of_rollouts(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the completions of rollout files as groups, in the order of the files.

    Rows without tokens are left out: they are episodes that could not begin.
    """
    groups: dict[tuple[int, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        if not row["tokens"] and not row["text"]:
            continue
        groups.setdefault((row["step"], row["group"]), []).append(row)
    return [_group(f"{step_name(step)}/{name}", members) for (step, name), members in groups.items()]


def _group(name: str, rows: list[Mapping[str, Any]]) -> dict[str, Any]:
    rows = sorted(rows, key=lambda row: row["row"])
    first = rows[0]
    values = {column: [row[own] for row in rows] for own, column in _PER_COMPLETION.items()}
    values["completions"] = [row["tokens"] or row["text"] for row in rows]
    values["reward_parts"] = [json.loads(parts) for parts in values["reward_parts"]]
    if any(row.get("mask") is not None for row in rows):
        values["masks"] = [row["mask"] for row in rows]
    turns = [json.loads(row.get("turns") or "[]") for row in rows]
    if any(turns):
        values[TURNS] = turns
    return {
        **json.loads(first.get("columns") or "{}"),
        "id": name,
        "prompt": first["prompt_tokens"],
        "prompt_text": first["prompt"],
        **values,
    }
