"""Metrics under the names that callbacks of transformers and TRL read, in addition to gvpo's own."""

import math
from collections.abc import Mapping
from typing import Any

_NAMES = {
    "train/loss": "loss",
    "train/lr": "learning_rate",
    "train/grad_norm": "grad_norm",
    "reward/mean": "reward",
    "length/mean": "completions/mean_length",
    "rows/truncated": "completions/clipped_ratio",
}
"""Names of transformers and TRL for metrics that mean exactly the same."""
_EVALUATION = ("eval/", "seconds/evaluating")
_ABOUT_STEP = ("step", "nonfinite")
"""Keys of a line of metrics.jsonl that are not metrics."""


def split(line: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, float]]:
    """Return the metrics of training and those of the evaluation in a line of metrics.jsonl; null becomes NaN."""
    metrics = {key: math.nan if value is None else value for key, value in line.items() if key not in _ABOUT_STEP}
    evaluated = {key: value for key, value in metrics.items() if key.startswith(_EVALUATION)}
    return {key: value for key, value in metrics.items() if key not in evaluated}, evaluated


def with_known_names(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return metrics with copies under the names of transformers and TRL: `loss`, `reward`, `eval_accuracy`, ..."""
    return {**metrics, **{known: value for key, value in metrics.items() if (known := _known(key)) is not None}}


def _known(key: str) -> str | None:
    section, _, name = key.partition("/")
    if section == "eval":
        return f"eval_{name}"
    if section == "reward" and name not in ("mean", "std"):
        return f"rewards/{name}/mean"
    return _NAMES.get(key)
