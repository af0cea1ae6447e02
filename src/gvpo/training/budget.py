"""The number of tokens per forward: set or measured, and halved when memory runs out.

    auto       measure a micro-batch of S, 2S and 4S tokens ──▶ a + b t + c t^2 ──▶ the largest power of two that fits
    back-off   out of memory ──▶ discard the partial gradient, halve, try again

The budget affects memory and speed, never the result: however the groups are split, the gradient is the same up to the
order of its sums. This module does not depend on objectives, optimizers or files; the learner passes the work to try.
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
"""Budget for "auto" on a device whose memory cannot be measured; also the setting's default."""

LEAST_PROBED = 512

USABLE = 0.8
"""Fraction of the free memory that is used for planning. Longer rows, the sampler and other processes need the rest."""

GROWTH = 2.0
"""Growth of the memory that is assumed for a micro-batch with twice the tokens; if that would not fit, it is not tried.

On a CPU the system may kill a process that asks for too much memory instead of raising an error.
"""


class Budget:
    """The token budget of a run.

    Args:
        asked: `train.tokens_per_microbatch`.

    Attributes:
        asked: The setting.
        tokens: The current budget; None until "auto" is resolved.
        notes: Messages for the user, in order; `take_notes` returns and clears them.
    """

    def __init__(self, asked: int | Literal["auto"]) -> None:
        self.asked = asked
        self.tokens: int | None = None if asked == "auto" else asked
        self.notes: list[str] = []

    def resolve(self, find: Callable[[], "MeasuredBudget"]) -> None:
        """Find the budget if the setting is "auto" and it is not known yet."""
        if self.tokens is None:
            found = find()
            self.tokens = found.tokens
            self.notes.append(f"train.tokens_per_microbatch = {found.tokens} ({found.why})")

    def attempt(self, work: Callable[[int], T], groups: Sequence[Group], forget: Callable[[], None]) -> T:
        """Run `work` within the budget, and again within half of it while memory runs out.

        Args:
            work: Function of the budget. If it fails, `forget` must be able to undo all its effects.
            groups: Groups that `work` computes; halving ends when the longest completion fills the budget by itself.
            forget: Function that undoes the effects of a failed attempt.

        Returns:
            The result of `work`.

        Raises:
            TrainingError: If even single completions do not fit.
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
            # outside the handler the traceback is gone, and with it the tensors of the failed passes
            forget()
            release()
            self.tokens = smaller
            self.notes.append(
                f"warning: out of memory in the update; train.tokens_per_microbatch is now {smaller}, "
                f"not {budget}, and the update is repeated"
            )

    def take_notes(self) -> list[str]:
        """Return the notes so far and clear them."""
        notes, self.notes = self.notes, []
        return notes

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint, so that a resumed run splits its batches as an unbroken one does."""
        return {"asked": self.asked, "tokens": self.tokens}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore the budget of a checkpoint, unless the setting has changed since."""
        if state.get("asked") == self.asked:
            self.tokens = state["tokens"]

    def _known(self) -> int:
        if self.tokens is None:
            raise TrainingError("the token budget is not resolved; call resolve first")
        return self.tokens


@dataclass(frozen=True)
class MeasuredBudget:
    """A budget, and the reason for it in words."""

    tokens: int
    why: str


def find_budget(
    probe: Callable[[Sequence[Group], int], object], groups: Sequence[Group], device: torch.device, *, owed: float = 0.0
) -> MeasuredBudget:
    """Return the largest useful budget that fits into the free memory.

    Args:
        probe: Forward and backward of groups within a budget; it leaves gradients in place.
        groups: Groups of the run. The measured groups are synthetic, with the longest prompt and completion of these.
        device: Device of the model.
        owed: Bytes that will be allocated in addition, for example by the optimizer's state.

    Returns:
        A power of two, at least 512 and the length of the longest row, at most the largest useful budget of the device.
    """
    shape = _Shape.of(groups)
    smallest = 1 << (max(LEAST_PROBED, shape.width) - 1).bit_length()
    most = max(smallest, MOST_TOKENS.get(device.type, UNMEASURED))
    if not _fits(lambda: probe(shape.filling(smallest), smallest)):  # the gradients exist after this probe
        return MeasuredBudget(smallest, "the smallest that fits the longest row; memory already ran out with it")
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
    """Return coefficients that depend on the log-probs, so that the memory use is as high as in any update."""
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
        """Return the number of tokens of a row."""
        return len(self.prompt) + len(self.completion.tokens)

    def filling(self, tokens: int) -> list[Group]:
        """Return as many whole groups as fit into a budget, or the part of one group that fits."""
        rows = min(self.rows, max(1, (tokens - len(self.prompt)) // self._added))
        group = Group(self.prompt, [self.completion] * rows)
        return [group] * max(1, tokens // self.laid_out([group]))

    def laid_out(self, groups: Sequence[Group]) -> int:
        """Return the number of tokens in the forward of such groups, with shared prompts."""
        return sum(len(self.prompt) + self._added * len(group.completions) for group in groups)

    @property
    def _added(self) -> int:
        """Return the number of tokens that a completion adds; its last token is only a target."""
        return max(1, len(self.completion.tokens) - 1)


@dataclass(frozen=True)
class _Point:
    """A measured micro-batch: the budget, the tokens that fill it, and its peak memory in bytes."""

    budget: int
    tokens: int
    peak: float


def _chosen(points: Sequence[_Point], smallest: int, most: int, room: float) -> MeasuredBudget:
    """Return the largest power of two whose peak, measured or extrapolated, fits."""
    chosen = smallest
    while 2 * chosen <= most and _peak_of(points, 2 * chosen) <= room:
        chosen *= 2
    peak = _peak_of(points, chosen) / GIB
    return MeasuredBudget(chosen, f"about {peak:.2f} GiB at its peak, {max(0.0, room) / GIB:.2f} GiB are available")


def _peak_of(points: Sequence[_Point], budget: int) -> float:
    """Return the peak memory within a budget in bytes: measured, or on the parabola through three measurements.

    If the measurements bend down, which is noise, return the steeper of the two lines between them.
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
    """Return a probe's peak memory above the level before it; NaN if it cannot be read, None if memory ran out."""
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
    """Start to watch a device's memory. Return a function that returns the peak in bytes since then."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        return lambda: float(torch.cuda.max_memory_allocated(device) - before)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # reset the high-water mark to the current resident size
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
    """Return half of the used part of a budget, at least the longest row; None if the longest row already fills it."""
    widths = [len(group.prompt) + len(row.tokens) - 1 for group in groups for row in group.completions]
    longest = max(1, *widths)
    return None if budget <= longest else max(longest, min(budget, sum(widths)) // 2)


def _nothing_to_halve() -> TrainingError:
    return TrainingError(
        "out of memory with one completion per forward, so a lower train.tokens_per_microbatch would not help; set "
        "model.gradient_checkpointing=true, lower sampling.max_tokens, or see `gvpo doctor --plan MODEL`, then resume "
        "with --resume where the setting may change"
    )
