"""Rollout files as the data of the report's group viewer: plain JSON values, no markup."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from gvpo.report.data import Run
from gvpo.runfiles import RolloutRow, read_rollouts, rollout_path

MAX_GROUPS = 64
"""Of a larger step, this many groups are shown, evenly spaced."""

_COLUMNS = (
    "reward",
    "reward_parts",
    "reason",
    "weight",
    "implicit_reward",
    "finish_reason",
    "source",
    "version",
    "columns",
)


def chosen_steps(steps: Sequence[int]) -> list[int]:
    """The first, the middle and the last step."""
    return sorted({steps[0], steps[len(steps) // 2], steps[-1]}) if steps else []


def viewer_data(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """For each run its name and the groups of the chosen steps.

    Raises:
        RunError: a rollout file is damaged.
    """
    return [{"name": run.name, "steps": [_step(run, step) for step in chosen_steps(run.rollout_steps)]} for run in runs]


def _step(run: Run, step: int) -> dict[str, Any]:
    rows = read_rollouts(rollout_path(run.path, step), _COLUMNS)
    groups = [list(members) for _, members in groupby(rows, key=lambda row: row.group)]
    stride = -(-len(groups) // MAX_GROUPS) or 1
    return {"step": step, "total": len(groups), "groups": [_group(members) for members in groups[::stride]]}


def _group(rows: Sequence[RolloutRow]) -> dict[str, Any]:
    return {
        "id": rows[0].group,
        "prompt": rows[0].prompt,
        "columns": {str(name): _short(value) for name, value in rows[0].columns.items()},
        "rows": [_completion(row) for row in rows],
    }


def _completion(row: RolloutRow) -> Mapping[str, Any]:
    return {
        "row": row.row,
        "text": row.text,
        "reward": row.reward,
        "parts": row.reward_parts,
        "reason": row.reason,
        "weight": row.weight,
        "implicit": row.implicit_reward,
        "length": len(row.tokens),
        "finish": row.finish_reason,
        "source": row.source,
        "version": row.version,
    }


def _short(value: Any, limit: int = 200) -> str:
    text = str(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
