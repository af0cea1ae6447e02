"""A warning if the log-probs of all rows fall together, computed from the metrics of a run.

Rows of the highest reward should become more likely. If they become less likely over several updates, the probability
moves to answers that were never sampled, and accuracy falls. Metrics that compare the rows of a group cannot detect
this (docs/guides/troubleshooting.md#all-log-probs-fall).
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

LOWEST = -0.75
"""Nats per completion. Among runs with a known outcome the healthy ones stayed above -0.20, and nine of eleven that
collapsed fell below -1.40; for other runs see docs/internals/lab-log.md, 2026-11-30."""

UPDATES = 8
"""Minimum number of updates in the mean; with fewer updates the mean is over all of them."""

_SAMPLER, _REFERENCE = "offpolicy/logratio_best", "gvpo/logratio_mean_better"
_OPTIMUM = "gvpo/logratio_optimum"
_ADVICE = (
    "train fewer times on the same rows (train.passes, train.epochs) or with a lower train.learning_rate"
    "{gvpo}; see `gvpo docs troubleshooting`"
)
_GVPO_ADVICE = (
    ", and use a larger objective.beta or, if the run samples all completions, the nearer objective.reference='sampler'"
)


class CollapseWatch:
    """Reader of a run's metrics lines, in order, that warns once.

    Attributes:
        warning: Text for the user; "" as long as there is no reason to warn.
    """

    def __init__(self) -> None:
        self.warning = ""
        self._recent: list[tuple[float, float]] = []
        self._key: str | None = None

    def note(self, line: Mapping[str, Any]) -> str:
        """Read the next line.

        Returns:
            The warning if this line is the first to cause it; "" otherwise.
        """
        value = self._value(line)
        if self.warning or value is None:
            return ""
        self._recent.append((float(line.get("train/updates", 1)), value))
        while sum(updates for updates, _ in self._recent[1:]) >= UPDATES:
            del self._recent[0]
        mean = self._mean()
        if mean < LOWEST:
            self.warning = _warning(line, mean, self._key or "")
        return self.warning

    def _value(self, line: Mapping[str, Any]) -> float | None:
        """Return the log-ratio of the best rows to the policy that sampled them, or to the reference otherwise."""
        if self._key is None:
            self._key = _key(line)
        value = line.get(self._key) if self._key is not None else None
        return value if isinstance(value, int | float) and math.isfinite(value) else None

    def _mean(self) -> float:
        weights = sum(updates for updates, _ in self._recent)
        return sum(updates * value for updates, value in self._recent) / max(weights, 1.0)


def collapse_warning(lines: Iterable[Mapping[str, Any]]) -> str:
    """Return the warning that a run's metrics lines cause; "" if they cause none."""
    watch = CollapseWatch()
    for line in lines:
        watch.note(line)
    return watch.warning


def _key(line: Mapping[str, Any]) -> str | None:
    """Return the key to watch, according to the first line that has one.

    Logged rows may come from another policy than the one that training starts from. Their log-ratios to it are far
    below 0 from the start and carry no information, so those to the reference are used.
    """
    start = line.get(_SAMPLER)
    is_logged = "seconds/sampling" not in line or line.get("rows/logged", 0) > 0
    if start is not None and not (is_logged and start < LOWEST):
        return _SAMPLER
    return _REFERENCE if is_logged and _REFERENCE in line else None


def _warning(line: Mapping[str, Any], mean: float, key: str) -> str:
    to = "the policy that sampled them" if key == _SAMPLER else "the reference"
    return (
        f"step {line.get('step')}: the best answers become less likely: their mean log-ratio to {to} is {mean:.1f} "
        f"nats and should not stay below 0{_beside(line)}. Accuracy falls with them, while the loss looks better: "
        + _ADVICE.format(gvpo=_GVPO_ADVICE if _OPTIMUM in line else "")
    )


def _beside(line: Mapping[str, Any]) -> str:
    """Return the distance of GVPO's rows from their log-ratio at the optimum."""
    found, optimum = line.get("gvpo/logratio_mean"), line.get(_OPTIMUM)
    if found is None or optimum is None:
        return ""
    return f" (all rows to the reference: {found:.1f} nats, at GVPO's optimum {optimum:.1f})"
