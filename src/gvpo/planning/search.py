"""Choice of settings: the largest micro-batch and sampling batch that fit, and whether a reference copy fits."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from gvpo.planning.architecture import Architecture
from gvpo.planning.devices import Device
from gvpo.planning.memory import Memory, estimate_memory
from gvpo.planning.workload import Workload

USABLE = 0.9
"""Fraction of a device's memory that a plan uses; the rest is for the driver, libraries and estimation errors."""

MOST_TOKENS = {"cpu": 8192, "cuda": 32_768}
"""Number of tokens beyond which a larger micro-batch is not faster."""

MOST_CACHED = 262_144
_BUDGETS = ("tokens_per_microbatch", "tokens_per_batch")
COUNTS = (2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Plan:
    """Settings of a run and their memory use.

    Args:
        fits: Whether the run fits on the device.
        workload: Workload with the settings to use.
        memory: Memory use with these settings.
        reference_fits: Whether a frozen reference fits; None if it was not requested.
        enough: If the run does not fit, the smallest number of devices on which sharded training fits, or None.
    """

    fits: bool
    workload: Workload
    memory: Memory
    reference_fits: bool | None
    enough: int | None = None


def make_plan(model: Architecture, workload: Workload, device: Device, *, fixed: frozenset[str] = frozenset()) -> Plan:
    """Choose settings that fit the device.

    Avoid gradient checkpointing if possible, and keep the requested reference if possible. Then choose the largest
    batches that are useful.

    Args:
        model: Sizes of the model.
        workload: The requested workload.
        device: The available device.
        fixed: Fields of the workload that must not change: "tokens_per_microbatch", "tokens_per_batch".
    """
    chosen = next((found for w in _concessions(workload) if (found := _settle(model, w, device, fixed))), None)
    asked = workload.reference
    if chosen is not None:
        return Plan(True, chosen, estimate_memory(model, chosen, device), chosen.reference if asked else None)
    smallest = _smallest(replace(workload, reference=False, checkpointing=True), fixed)
    enough = next((n for n in COUNTS if n > device.count and _fits(model, smallest, replace(device, count=n))), None)
    return Plan(False, smallest, estimate_memory(model, smallest, device), False if asked else None, enough)


def _concessions(workload: Workload) -> Iterator[Workload]:
    """Yield the requested workload, then cheaper ones: with recomputed activations, without the reference, both."""
    for reference in (True, False) if workload.reference else (False,):
        for checkpointing in (True,) if workload.checkpointing else (False, True):
            yield replace(workload, reference=reference, checkpointing=checkpointing)


def _settle(model: Architecture, workload: Workload, device: Device, fixed: frozenset[str]) -> Workload | None:
    """Return the largest batches, each found with the other at its minimum, or None if not even the minima fit."""
    smallest = _smallest(workload, fixed)
    if not _fits(model, smallest, device):
        return None
    found = smallest
    useful = workload.groups * workload.group_size * workload.width, workload.rows * workload.width
    for name, most, all_tokens in zip(_BUDGETS, (MOST_TOKENS[device.kind], MOST_CACHED), useful, strict=True):
        if name not in fixed:
            found = _grow(found, name, min(most, 2 * all_tokens - 1), lambda trial: _fits(model, trial, device))
    return found


def _grow(workload: Workload, name: str, most: int, fits: Callable[[Workload], bool]) -> Workload:
    """Raise a budget to the largest power of two that fits."""
    size = 1 << (getattr(workload, name) - 1).bit_length()
    while size <= most and fits(trial := replace(workload, **{name: size})):
        workload, size = trial, size * 2
    return workload


def _smallest(workload: Workload, fixed: frozenset[str]) -> Workload:
    """Return the workload with batches of one completion and its prompt."""
    sizes = {name: getattr(workload, name) if name in fixed else workload.width for name in _BUDGETS}
    return replace(workload, tokens_per_microbatch=sizes[_BUDGETS[0]], tokens_per_batch=sizes[_BUDGETS[1]])


def _fits(model: Architecture, workload: Workload, device: Device) -> bool:
    return estimate_memory(model, workload, device).peak <= USABLE * device.memory
