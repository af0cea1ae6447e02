"""How many tokens go through the model at once: asked for or found, and halved where memory runs out.

    auto       measure a micro-batch of S, 2S and 4S tokens ──▶ a + b t + c t^2 ──▶ the largest power of two that fits
    back-off   out of memory ──▶ forget the half-made gradient, halve, do it again

The budget decides memory and speed, never the result: a gradient is the same under every cut but for the order of its
sums. Nothing here knows objectives, optimizers or files; the learner says what is to be tried.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from gvpo.errors import TrainingError
from gvpo.objectives import ObjectiveOutput
from gvpo.planning.devices import GIB, free_memory
from gvpo.planning.search import MOST_TOKENS
from gvpo.system_errors import is_out_of_memory
from gvpo.training.allocator import release
from gvpo.types import Completion, Group

T = TypeVar("T")

UNMEASURED = 8192
"""The budget of "auto" on a device whose memory cannot be measured; the setting's default."""

LEAST_PROBED = 512

USABLE = 0.8
"""Share of the free memory that is planned with: longer rows, the sampler and other processes need some."""

GROWTH = 2.0
"""A micro-batch of twice the tokens is not tried where it would not fit if it took this many times the memory.

On a CPU the system may kill a process that asks for too much, rather than refuse."""


class Budget:
    """The token budget of a run.

    Args:
        asked: `train.tokens_per_microbatch`.

    Attributes:
        asked: the setting.
        tokens: what is used; None until "auto" is resolved.
        notes: what a person should be told, in order; whoever tells it takes the lines away.
    """

    def __init__(self, asked: int | Literal["auto"]) -> None:
        self.asked = asked
        self.tokens: int | None = None if asked == "auto" else asked
        self.notes: list[str] = []

    def resolve(self, find: Callable[[], "MeasuredBudget"]) -> None:
        """Find the budget, if it was left open and is not known yet."""
        if self.tokens is None:
            found = find()
            self.tokens = found.tokens
            self.notes.append(f"train.tokens_per_microbatch = {found.tokens} ({found.why})")

    def attempt(self, work: Callable[[int], T], groups: Sequence[Group], forget: Callable[[], None]) -> T:
        """Do something within the budget, and again within half of it for as long as memory runs out.

        Args:
            work: takes the budget. It must leave nothing behind when it fails but what `forget` undoes.
            groups: what it computes: halving ends where the longest completion fills the budget alone.
            forget: undoes what a failed attempt has left.

        Returns:
            What `work` returned.

        Raises:
            TrainingError: not even single completions fit.
        """
        while True:
            budget = self._known()
            try:
                return work(budget)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                smaller = _halved(budget, groups)
                if smaller is None:
                    raise _nothing_to_halve() from error
            # only here the traceback is gone, and with it the tensors of the passes that failed
            forget()
            release()
            self.tokens = smaller
            self.notes.append(
                f"warning: out of memory in the update; train.tokens_per_microbatch is {smaller} from here on, "
                f"not {budget}, and the update is made again"
            )

    def take_notes(self) -> list[str]:
        """The notes so far, which are then forgotten."""
        notes, self.notes = self.notes, []
        return notes

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that a resumed run cuts as the unbroken one."""
        return {"asked": self.asked, "tokens": self.tokens}

    def restore(self, state: dict[str, Any]) -> None:
        """Take a checkpoint's budget, unless the setting has been changed since."""
        if state.get("asked") == self.asked:
            self.tokens = state["tokens"]

    def _known(self) -> int:
        if self.tokens is None:
            raise TrainingError("the token budget is not resolved; call resolve first")
        return self.tokens


@dataclass(frozen=True)
class MeasuredBudget:
    """A budget, and in words what it rests on."""

    tokens: int
    why: str


def find_budget(
    probe: Callable[[Sequence[Group], int], object], groups: Sequence[Group], device: torch.device, *, owed: float = 0.0
) -> MeasuredBudget:
    """The largest budget that is of use and fits in the memory that is free.

    Args:
        probe: forward and backward of groups within a budget, which leaves gradients behind.
        groups: of the run; synthetic ones with the longest prompt and completion of these are measured.
        device: where the model is.
        owed: bytes that will be taken besides, by the optimizer's state, say.

    Returns:
        A power of two, at least as long as the longest row and 512, at most what is of use on the device.
    """
    shape = _Shape.of(groups)
    smallest = 1 << (max(LEAST_PROBED, shape.width) - 1).bit_length()
    most = max(smallest, MOST_TOKENS.get(device.type, UNMEASURED))
    if not _fits(lambda: probe(shape.filling(smallest), smallest)):  # from here on the gradients exist
        return MeasuredBudget(smallest, "the smallest that takes the longest row; memory ran out already there")
    release()
    room = USABLE * _free(device) - owed
    points: list[_Point] = []
    for tokens in (smallest, 2 * smallest, 4 * smallest):
        if tokens > most or (points and GROWTH * points[-1].peak > room):
            break
        point = _measured(probe, shape, tokens, device)
        if point is None:
            break
        points.append(point)
    if not points or math.isnan(points[-1].peak):
        return MeasuredBudget(max(smallest, UNMEASURED), "memory cannot be measured on this device")
    return _chosen(points, smallest, most, room)


def probe_objective(logprobs: Tensor, *, mask: Tensor) -> ObjectiveOutput:
    """Its coefficients depend on the log-probs, so it holds as much as an update can: the graph and a weighing."""
    return ObjectiveOutput(loss=(mask * logprobs.square()).sum(), metrics={})


@dataclass(frozen=True)
class _Shape:
    """The longest prompt and completion of a rollout, and its largest group."""

    prompt: Sequence[int]
    completion: Completion
    rows: int

    @classmethod
    def of(cls, groups: Sequence[Group]) -> "_Shape":
        rows = [row for group in groups for row in group.completions]
        return cls(
            max((group.prompt for group in groups), key=len),
            Completion(max((row.tokens for row in rows), key=len)),
            max(len(group.completions) for group in groups),
        )

    @property
    def width(self) -> int:
        """Tokens of a row."""
        return len(self.prompt) + len(self.completion.tokens)

    def filling(self, tokens: int) -> list[Group]:
        """As many whole groups as a budget holds; the part of one where it does not hold one."""
        rows = min(self.rows, max(1, (tokens - len(self.prompt)) // self._added))
        group = Group(self.prompt, [self.completion] * rows)
        return [group] * max(1, tokens // self.laid_out([group]))

    def laid_out(self, groups: Sequence[Group]) -> int:
        """Tokens of the forward of such groups, prompts shared."""
        return sum(len(self.prompt) + self._added * len(group.completions) for group in groups)

    @property
    def _added(self) -> int:
        """Tokens that a completion adds: its last is only a target."""
        return max(1, len(self.completion.tokens) - 1)


@dataclass(frozen=True)
class _Point:
    """A measured micro-batch: the budget, the tokens that fill it, and bytes at its peak."""

    budget: int
    tokens: int
    peak: float


def _chosen(points: Sequence[_Point], smallest: int, most: int, room: float) -> MeasuredBudget:
    """The largest power of two whose peak, measured or extrapolated, fits."""
    chosen = smallest
    while 2 * chosen <= most and _peak_of(points, 2 * chosen) <= room:
        chosen *= 2
    peak = _peak_of(points, chosen) / GIB
    return MeasuredBudget(
        chosen, f"about {peak:.2f} GiB at its peak, {max(0.0, room) / GIB:.2f} GiB can be planned with"
    )


def _peak_of(points: Sequence[_Point], budget: int) -> float:
    """Bytes at the peak within a budget: measured, or else on the parabola through three measurements.

    Where they bend down, which is noise, it is the steeper of the two lines between them.
    """
    measured = {point.budget: point.peak for point in points}
    if budget in measured:
        return measured[budget]
    if len(points) < 3:
        return math.inf
    first, second, third = points
    slope, later = ((b.peak - a.peak) / (b.tokens - a.tokens) for a, b in ((first, second), (second, third)))
    bend = (later - slope) / (third.tokens - first.tokens)
    beyond = budget - third.tokens
    if bend <= 0:
        return third.peak + max(slope, 0.0) * beyond
    return third.peak + later * beyond + bend * beyond * (budget - second.tokens)


def _measured(
    probe: Callable[[Sequence[Group], int], object], shape: _Shape, tokens: int, device: torch.device
) -> _Point | None:
    """A probe's peak above what was held before; NaN where that cannot be read, None where memory ran out."""
    release()
    peak = _watch(device)
    groups = shape.filling(tokens)
    if not _fits(lambda: probe(groups, tokens)):
        release()
        return None
    return _Point(tokens, shape.laid_out(groups), peak())


def _fits(work: Callable[[], object]) -> bool:
    try:
        work()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True


def _watch(device: torch.device) -> Callable[[], float]:
    """Start watching a device's memory; the answer gives the bytes at the peak since then."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        return lambda: float(torch.cuda.max_memory_allocated(device) - before)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark goes back to what is resident now
        start = _resident("VmRSS")
    except OSError:
        return lambda: math.nan
    return (lambda: _resident("VmHWM") - start) if device.type == "cpu" else (lambda: math.nan)


def _resident(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def _free(device: torch.device) -> float:
    return float(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else free_memory()


def _halved(budget: int, groups: Sequence[Group]) -> int | None:
    """Half of what is used of a budget, but room for the longest row; None where that alone fills it."""
    widths = [len(group.prompt) + len(row.tokens) - 1 for group in groups for row in group.completions]
    longest = max(1, *widths)
    return None if budget <= longest else max(longest, min(budget, sum(widths)) // 2)


def _nothing_to_halve() -> TrainingError:
    return TrainingError(
        "out of memory with one completion a forward, so a lower train.tokens_per_microbatch would not help; set "
        "model.gradient_checkpointing=true, lower sampling.max_tokens, or see `gvpo doctor --plan MODEL`, then go on "
        "with --resume where the setting may change"
    )
