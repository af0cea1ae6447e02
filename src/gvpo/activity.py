"""Report the current work to a display, such as the rows that are sampled, scored or updated within one step.

with phase("sampling"): count(12, 32, "rows") ──▶ the display of the context, if there is one
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class Activity:
    """Progress within a step.

    Args:
        phases: Names of what is being done, the outer one first.
        done: Number of finished units.
        total: Number of all units; 0 if it is not known.
        unit: Name of what is counted.
        tokens: Number of tokens so far; 0 if they are not counted.
    """

    phases: tuple[str, ...]
    done: int = 0
    total: int = 0
    unit: str = ""
    tokens: int = 0

    @property
    def parts(self) -> list[str]:
        """Return short texts such as `held-out evaluation`, `sampling 12/32 rows`, `1,204 tokens`."""
        counted = f" {self.done}/{self.total} {self.unit}" if self.total else ""
        *outer, inner = self.phases or ("",)
        return [*outer, f"{inner}{counted}", *([f"{self.tokens:,} tokens"] if self.tokens else [])]


Display = Callable[[Activity], None]
"""Function that receives every activity; it has to be fast, because one is reported for each sampled token."""

_display: ContextVar[Display | None] = ContextVar("display", default=None)
_phases: ContextVar[tuple[str, ...]] = ContextVar("phases", default=())


@contextmanager
def shown(display: Display) -> Iterator[None]:
    """Pass the activities of this context to `display`."""
    token = _display.set(display)
    try:
        yield
    finally:
        _display.reset(token)


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Name what is done in this context; phases may be nested."""
    token = _phases.set((*_phases.get(), name))
    try:
        count()
        yield
    finally:
        _phases.reset(token)


def count(done: int = 0, total: int = 0, unit: str = "", tokens: int = 0) -> None:
    """Report the progress of the current phase; see `Activity`."""
    display = _display.get()
    if display is not None:
        display(Activity(_phases.get(), done, total, unit, tokens))
