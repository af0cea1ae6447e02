"""The rules of the section [rollout]: which sources of groups work together, and which need other settings.

docs/guides/off-policy.md has the same rules as a table.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from gvpo.config.settings import FIELDS, TrainConfig

if TYPE_CHECKING:
    from gvpo.config.plan import RunPlan

Broken = Iterator[tuple[bool, str]]
"""Pairs of whether a rule is broken and the message in that case."""

PENDING: tuple[str, ...] = tuple(key for key in FIELDS if key.startswith("rollout."))
"""Settings that this version does not implement yet."""


def impossible_sources(plan: "RunPlan") -> Broken:
    """Yield the rules between settings of [rollout], and between them and other sections."""
    c = plan.settings
    for key in PENDING:
        default = TrainConfig.model_fields[FIELDS[key]].default
        yield getattr(c, FIELDS[key]) != default, f"{key} is not implemented yet; remove it"
