"""Specification of a chart: its title, its unit, and the metrics that it shows."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

LEARNING, OBJECTIVE, HEALTH, OTHER = "Learning", "Objective", "Health and speed", "Other metrics"
"""The headings of a report's charts."""

TRAINER = {
    "age",
    "env",
    "eval",
    "groups",
    "kl",
    "length",
    "offpolicy",
    "reward",
    "rows",
    "sampler",
    "seconds",
    "tokens",
    "train",
}
"""First parts of the trainer's own keys; any other first part names an objective or a part of the model."""


@dataclass(frozen=True)
class Spec:
    """A kind of chart.

    Args:
        title, unit, hint, low, high, stacked, percent: as in `Chart`.
        metrics: name in the legend by metric key. One `*` in a key stands for any text without a slash, and at its
            beginning for an objective; `{}` in the name is replaced by that text.
        section: the heading above the chart.
        at_least: the page shows the chart if the runs have this many of its metrics.
    """

    title: str
    unit: str
    metrics: Mapping[str, str]
    section: str
    hint: str = ""
    low: float | None = None
    high: float | None = None
    stacked: bool = False
    percent: bool = False
    at_least: int = 1

    def last_update(self) -> "Spec":
        """Return the chart of the same metrics at the last update of each step."""
        metrics = {f"{key}/last": name for key, name in self.metrics.items()}
        return replace(self, title=f"{self.title}, last update", metrics=metrics, section=OTHER)

    def matching(self, keys: Iterable[str], taken: frozenset[str]) -> dict[str, str]:
        """Return the name in the legend of each key that the chart shows, in the order of the legend.

        Args:
            keys: metric keys.
            taken: keys that a `*` does not stand for, because a chart names them.
        """
        found = {}
        keys = list(keys)
        for pattern, name in self.metrics.items():
            for key in keys:
                if (text := _text(pattern, key, taken)) is not None:
                    found[key] = name.format(text)
        ambiguous = len(set(found.values())) < len(found)
        return {key: f"{owner(key)}, {name}" for key, name in found.items()} if ambiguous else found


def _text(pattern: str, key: str, taken: frozenset[str]) -> str | None:
    """Return what the `*` of a pattern stands for in a key, "" without a `*`, or None if they do not match."""
    begin, star, end = pattern.partition("*")
    if not star:
        return "" if key == pattern else None
    text = key[len(begin) : len(key) - len(end)]
    matches = key == begin + text + end and text and "/" not in text and key not in taken
    return text if matches and not (begin == "" and text in TRAINER) else None


def owner(key: str) -> str:
    """Return the first part of a key as people write it: GRPO for grpo/kl."""
    name = key.partition("/")[0]
    return name.upper() if len(name) <= 5 else name.replace("_", " ")


def plain(key: str) -> Spec:
    """Return the chart of a metric that no catalogue knows, with the words of its key as the title."""
    *first, name = key.removesuffix("/last").split("/")
    words = name.replace("_", " ").strip() or key
    title = f"{owner(key)}: {words}" if first else words[0].upper() + words[1:]
    section = OBJECTIVE if first and first[0] not in TRAINER else OTHER
    spec = Spec(title, "", {key.removesuffix("/last"): words}, section)
    return spec.last_update() if key.endswith("/last") else spec
