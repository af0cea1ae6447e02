"""Progress of a run: a live bar on a terminal, occasional lines elsewhere."""

import itertools
import time
from collections import deque
from collections.abc import Mapping
from statistics import median
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from gvpo.terminal import lasting_error

LINE_SECONDS = 10.0
PACE_STEPS = 20


def error_console(*, quiet: bool = False) -> Console:
    """Return a console on standard error that survives the loss of its terminal or pipe."""
    return Console(file=lasting_error(), stderr=True, quiet=quiet)


class StepProgress:
    """Progress over the steps of a run.

    Args:
        title: Name of the run or task.
        total: Total number of steps.
        done: Number of steps that earlier sessions completed.
        console: Console for output (default: standard error).
        unit: Name of what is counted.
    """

    def __init__(
        self, title: str, total: int, done: int = 0, console: Console | None = None, *, unit: str = "step"
    ) -> None:
        self._console = console or error_console()
        self._title, self._total, self._unit = title, total, unit
        self._times: deque[tuple[int, float]] = deque([(done, time.perf_counter())], maxlen=PACE_STEPS)
        self._last_line = -LINE_SECONDS
        self._accuracy: float | None = None
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            console=self._console,
            transient=True,
        )
        self._task = self._bar.add_task(title, total=total, completed=done, facts="")

    def __enter__(self) -> Self:
        """Show the bar if there is a terminal."""
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Restore the terminal."""
        if self._console.is_terminal:
            self._bar.stop()

    def say(self, message: str) -> None:
        """Print a line that remains."""
        self._console.print(f"{self._title}: {message}", highlight=False, markup=False, soft_wrap=True)

    def update(self, step: int, line: Mapping[str, float]) -> None:
        """Show a step's metrics line."""
        self._times.append((step, time.perf_counter()))
        self._accuracy = line.get("eval/accuracy", self._accuracy)
        facts = "  ".join(self._facts(line))
        self._bar.update(self._task, completed=step, facts=facts)
        due = time.perf_counter() - self._last_line >= LINE_SECONDS or step == self._total
        if not self._console.is_terminal and due:
            self._last_line = time.perf_counter()
            self.say(f"{self._unit} {step}/{self._total}  {facts}")

    def _facts(self, line: Mapping[str, float]) -> list[str]:
        shown = [f"{name} {line[key]:{form}}" for key, name, form in _SHOWN if key in line]
        if self._accuracy is not None:
            shown.append(f"held-out {self._accuracy:.2f}")
        return [*shown, f"{self._time_left()} left"]

    def _time_left(self) -> str:
        """Return the remaining time at the median pace of the last steps, so that one evaluation has no effect."""
        pace = median(
            (later - earlier) / max(1, now - before)
            for (before, earlier), (now, later) in itertools.pairwise(self._times)
        )
        done, _ = self._times[-1]
        minutes, seconds = divmod(round(pace * (self._total - done)), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


_SHOWN = (
    ("train/loss", "loss", ".3f"),
    ("reward/mean", "reward", ".2f"),
    ("accuracy", "accuracy", ".2f"),
    ("kl/reference", "KL", ".3f"),
    ("length/mean", "length", ".0f"),
    ("tokens/per_second", "tok/s", ",.0f"),
)
