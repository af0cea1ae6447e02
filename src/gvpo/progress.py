"""Progress of a run: one live line on a terminal, occasional lines elsewhere.

The line never wraps. If it is too long for the terminal, its least important parts are left out.
"""

import contextlib
import itertools
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from statistics import median
from types import TracebackType
from typing import Self

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from gvpo import activity
from gvpo.activity import Activity
from gvpo.terminal import lasting_error

LINE_SECONDS = 10.0
"""Time without output after which a line is printed elsewhere than on a terminal."""
PACE_STEPS = 20
"""Number of steps whose median duration predicts the remaining time."""
GAP = "  "
BAR = 10
NAME = 0.3
"""Fraction of a terminal's width to which a name is shortened."""


def error_console(*, quiet: bool = False) -> Console:
    """Return a console on standard error that survives the loss of its terminal or pipe."""
    return Console(file=lasting_error(), stderr=True, quiet=quiet)


def print_sentence(console: Console, text: str) -> None:
    """Print a text that ends lines between words on a terminal, and is one line elsewhere."""
    console.print(text, highlight=False, markup=False, soft_wrap=not console.is_terminal)


class StepProgress:
    """Progress over the steps of a run.

    While it is entered, it also shows what is done within a step (`gvpo.activity`).

    Args:
        title: Name of the run or task.
        total: Total number of steps.
        done: Number of steps that earlier sessions completed.
        console: Console for output (default: standard error).
        unit: Name of what is counted.
        steady: Whether the last steps predict the time of the others; otherwise all steps do.
    """

    def __init__(
        self,
        title: str,
        total: int,
        done: int = 0,
        console: Console | None = None,
        *,
        unit: str = "step",
        steady: bool = True,
    ) -> None:
        self._console = console or error_console()
        self._title, self._total, self._done, self._unit = title, total, done, unit
        self._pace = Pace(done, steady=steady)
        self._last_line, self._is_first = time.perf_counter(), True
        self._line: Mapping[str, float] = {}
        self._accuracy: float | None = None
        self._activity: Activity | None = None
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Show the line if there is a terminal."""
        stop_preparing()
        self._open.enter_context(activity.shown(self._note))
        if self._console.is_terminal:
            self._open.enter_context(Live(_Line(self), console=self._console, transient=True))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Restore the terminal."""
        self._open.close()

    def say(self, message: str) -> None:
        """Print a line that remains."""
        self._console.print(f"{self._title}: {message}", highlight=False, markup=False, soft_wrap=True)

    def warn(self, message: str) -> None:
        """Print a warning that remains."""
        print_sentence(self._console, f"{self._title}: warning: {message}")

    def update(self, step: int, line: Mapping[str, float]) -> None:
        """Show a step's metrics line."""
        self._pace.note(step)
        self._done, self._line, self._activity = step, line, None
        self._accuracy = line.get("eval/accuracy", self._accuracy)
        if not self._console.is_terminal and (self._is_first or self._is_due() or step == self._total):
            self._is_first = False
            self._say_line([*self._facts()])

    def fitted(self, width: int) -> str:
        """Return the line of a terminal of this width."""
        return fit([(shortened(self._title, int(NAME * width)), 0), *self._parts()], width)

    def _note(self, doing: Activity) -> None:
        """Show what is done within a step."""
        self._activity = doing
        if not self._console.is_terminal and self._is_due():
            self._say_line(doing.parts)

    def _is_due(self) -> bool:
        return time.perf_counter() - self._last_line >= LINE_SECONDS

    def _say_line(self, facts: list[str]) -> None:
        self._last_line = time.perf_counter()
        self.say(GAP.join([*self._place(), *facts]))

    def _place(self) -> list[str]:
        """Return the step and the time left."""
        left = self._pace.left(self._total - self._done)
        return [f"{self._unit} {self._done}/{self._total}", *([f"{left} left"] if left else [])]

    def _facts(self) -> Iterator[str]:
        """Yield the numbers of the last step, in order of importance."""
        for key, name, form in _SHOWN:
            value = self._accuracy if key == "eval/accuracy" else self._line.get(key)
            if value is not None:
                yield f"{name} {value:{form}}"

    def _parts(self) -> Iterator[tuple[str, int]]:
        """Yield the parts of the line in their order on the screen, with their importance; 0 is never left out."""
        yield from ((text, 0) for text in self._place())
        if self._activity is not None:
            yield from ((text, place + 1) for place, text in enumerate(self._activity.parts))
        yield self._bar(), 5
        yield from ((fact, 2 * place + 2) for place, fact in enumerate(self._facts()))

    def _bar(self) -> str:
        full = round(BAR * self._done / max(1, self._total))
        return "━" * full + "╌" * (BAR - full)


class Preparing:
    """Display of the time before a run's first step: a live line on a terminal, a line after some silence elsewhere.

    Args:
        title: Name of the run.
        console: Console for output.
    """

    def __init__(self, title: str, console: Console) -> None:
        self._title, self._console, self._began = title, console, time.perf_counter()
        self._doing = "preparing"
        self._live = Live(_Line(self), console=console, transient=True) if console.is_terminal else None
        self._timer = threading.Timer(LINE_SECONDS, self._say)
        self._timer.daemon = True

    def start(self) -> None:
        """Begin the display."""
        if self._live is not None:
            self._live.start()
        else:
            self._timer.start()

    def stop(self) -> None:
        """End the display."""
        self._timer.cancel()
        if self._live is not None:
            self._live.stop()

    def note(self, doing: Activity) -> None:
        """Show what is done."""
        self._doing = GAP.join(doing.parts) if doing.phases else self._doing

    def fitted(self, width: int) -> str:
        """Return the line of a terminal of this width."""
        seconds = _clock(time.perf_counter() - self._began)
        return fit([(shortened(self._title, int(NAME * width)), 0), (self._doing, 0), (seconds, 1)], width)

    def _say(self) -> None:
        self._console.print(f"{self._title}: {self._doing}", highlight=False, markup=False, soft_wrap=True)


_preparing: ContextVar[Preparing | None] = ContextVar("preparing", default=None)


@contextlib.contextmanager
def preparing(title: str, *, quiet: bool = False) -> Iterator[None]:
    """Show that a run is being prepared, until this context ends or the first `StepProgress` begins.

    An inner context within an outer one that still shows something does nothing.
    """
    if _preparing.get() is not None:
        yield
        return
    shown = Preparing(title, error_console(quiet=quiet))
    token = _preparing.set(shown)
    shown.start()
    try:
        with activity.shown(shown.note):
            yield
    finally:
        stop_preparing()
        _preparing.reset(token)


def stop_preparing() -> None:
    """End the display of a preparation, if there is one."""
    if (shown := _preparing.get()) is not None:
        shown.stop()
        _preparing.set(None)


class Pace:
    """Prediction of the remaining time from the durations of the steps of this session.

    The first step is left out as soon as there is another one, because it includes start-up and work that is done once.

    Args:
        done: Number of steps before the first one that is timed.
        steady: Whether to take the median of the last steps, so that one evaluation or checkpoint does not change it;
            otherwise the mean of all steps, for work whose steps finish in bursts.
    """

    def __init__(self, done: int, *, steady: bool) -> None:
        self._began, self._is_steady = (done, time.perf_counter()), steady
        self._first: tuple[int, float] | None = None
        self._times: deque[tuple[int, float]] = deque(maxlen=PACE_STEPS)

    def note(self, done: int) -> None:
        """Note that this many steps are now done."""
        self._times.append((done, time.perf_counter()))
        self._first = self._first or self._times[0]

    def left(self, steps: int) -> str:
        """Return the time that `steps` steps need, such as `1:23`; "" before the first step."""
        if self._first is None:
            return ""
        if steps == 0:
            return _clock(0)
        if len(self._times) == 1:
            return f"under {_clock(steps * _pace(self._began, self._first))}"
        if not self._is_steady:
            return _clock(steps * _pace(self._first, self._times[-1]))
        return _clock(steps * median(itertools.starmap(_pace, itertools.pairwise(self._times))))


def fit(parts: list[tuple[str, int]], width: int) -> str:
    """Join texts, and leave out the least important ones until the line fits; those of importance 0 are cut instead.

    Args:
        parts: Texts in their order on the screen, each with its importance; larger numbers are left out first.
        width: Number of columns.
    """
    kept = list(parts)
    while cell_len(line := GAP.join(text for text, _ in kept)) > width:
        least = max(kept, key=lambda part: part[1])
        if least[1] == 0:
            return set_cell_size(line, width)
        kept.remove(least)
    return line


def shortened(name: str, width: int) -> str:
    """Return a name without its middle if it is long; the end often distinguishes the runs of a series."""
    if cell_len(name) <= width:
        return name
    half = max(1, (width - 1) // 2)
    return f"{name[:half]}…{name[-half:]}"


class _Line:
    """The line of a progress at the width of its terminal, as rich draws it."""

    def __init__(self, progress: "StepProgress | Preparing") -> None:
        self._progress = progress

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the line; the last column stays free, because some terminals wrap when it is filled."""
        yield Text(self._progress.fitted(options.max_width - 1), no_wrap=True, overflow="crop")


def _pace(before: tuple[int, float], after: tuple[int, float]) -> float:
    """Return seconds per step between two times."""
    return (after[1] - before[1]) / max(1, after[0] - before[0])


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


_SHOWN = (
    ("reward/mean", "reward", ".2f"),
    ("eval/accuracy", "held-out", ".2f"),
    ("accuracy", "accuracy", ".2f"),
    ("kl/reference", "KL", ".3f"),
    ("train/loss", "loss", ".3f"),
    ("length/mean", "length", ".0f"),
    ("tokens/per_second", "tok/s", ",.0f"),
)
"""Numbers of a metrics line that are shown: key, name and format, the most important ones first."""
