"""The charts that reports know, in the order of the page, and the chart of any metric."""

from collections.abc import Iterable, Iterator

from gvpo.report.catalogue import health, learning, objective
from gvpo.report.catalogue.spec import HEALTH, LEARNING, OBJECTIVE, OTHER, Spec, plain

_KNOWN: tuple[Spec, ...] = (*learning.SPECS, *objective.SPECS, *health.SPECS)

SPECS: tuple[Spec, ...] = (*_KNOWN, *(spec.last_update() for spec in _KNOWN))

SECTIONS = (LEARNING, OBJECTIVE, HEALTH, OTHER)

_NOT_DRAWN = frozenset({"step", "groups/total", "seconds/total"})

QUIET = frozenset({"rows/history", "rows/logged", "rows/expert", "age/mean", "age/max", "groups/evicted"})
"""Metrics that say nothing while they are 0, and are then not drawn."""

_NAMED = frozenset(key for spec in SPECS for key in spec.metrics if "*" not in key)


def spec_for(metric: str) -> Spec:
    """Return the chart that shows a metric; a plain one for a metric that reports do not know."""
    return next((spec for spec in SPECS if metrics_of(spec, [metric])), plain(metric))


def metrics_of(spec: Spec, keys: Iterable[str]) -> dict[str, str]:
    """Return the name in the legend of each key that a chart shows."""
    return spec.matching(keys, _NAMED)


def specs_of(keys: Iterable[str]) -> Iterator[Spec]:
    """Yield the charts of a page: the known ones that have a metric among `keys`, then the plain ones of the others."""
    keys = [key for key in keys if key not in _NOT_DRAWN]
    shown: set[str] = set()
    for spec in SPECS:
        metrics = metrics_of(spec, keys)
        shown |= metrics.keys()
        if len(metrics) >= spec.at_least:
            yield spec
    yield from (plain(key) for key in keys if key not in shown)


__all__ = ["OTHER", "QUIET", "SECTIONS", "SPECS", "Spec", "metrics_of", "spec_for", "specs_of"]
