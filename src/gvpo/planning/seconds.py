"""Estimated duration of a step: operations divided by rates.

The estimate is rough: the fractions of peak rates are assumptions, and no value was measured on a GPU.
"""

import math
from dataclasses import dataclass

from gvpo.planning.architecture import Architecture
from gvpo.planning.devices import Device
from gvpo.planning.memory import FLOAT, HALF, cache_bytes
from gvpo.planning.workload import Workload, rectangles

MATMUL_SHARE = {"cpu": 0.6, "cuda": 0.4}
"""Fraction of the peak rate that forwards and backwards reach (assumed)."""

BANDWIDTH_SHARE = 0.6
"""Fraction of the peak bandwidth that decoding reaches (assumed)."""

SECONDS_PER_LAYER = {"cpu": 3e-4, "cuda": 4e-4}
"""Overhead of Python and kernel launches per layer and decoded token (assumed)."""


@dataclass(frozen=True)
class Seconds:
    """Seconds of a step: sampling, scoring without gradient, and the updates."""

    sampling: float
    scoring: float
    updating: float

    @property
    def total(self) -> float:
        """Seconds of the whole step, without rewards and evaluation."""
        return self.sampling + self.scoring + self.updating


def estimate_seconds(model: Architecture, workload: Workload, device: Device) -> Seconds:
    """Estimate the seconds of a step in which every completion has the maximum length."""
    shapes = rectangles(workload, shared=model.shares_prompts)
    updates = math.ceil(workload.prompts_per_step / workload.groups)
    layers = updates * sum(_layers(model, shape.tokens, shape.length) for shape in shapes)
    head = updates * sum(2.0 * shape.scored * model.head for shape in shapes)
    rate = device.rate * device.count * MATMUL_SHARE[device.kind]
    passes = int(workload.reference) + int(len(shapes) > 1 and (workload.reference or updates > 1))
    again = 4 if workload.checkpointing else 3  # forward, and a backward of twice its cost
    return Seconds(
        sampling=_sampling(model, workload, device),
        scoring=passes * (layers + head) / rate,
        updating=(again * layers + 3 * head) / rate,
    )


def _layers(model: Architecture, tokens: float, keys: float) -> float:
    """Return the operations of a forward of all layers: two per weight and token, plus attention over the keys."""
    return tokens * model.layers * (2.0 * model.active_layer_parameters + 4.0 * model.query * keys)


def _sampling(model: Architecture, workload: Workload, device: Device) -> float:
    """Return the seconds of sampling: prompts once, then steps of one token per row, limited by reads or by math."""
    rows = min(workload.rows_at_once, math.ceil(workload.rows / device.count))  # each device has a cache of this size
    batches = math.ceil(workload.rows / (rows * device.count))
    width = HALF if workload.half else FLOAT
    weights = width * (model.layers * model.layer_parameters + model.head)
    cache = rows * (workload.prompt_tokens + workload.completion_tokens / 2) * cache_bytes(model, half=workload.half)
    read = (weights + 3 * cache) / (device.bandwidth * BANDWIDTH_SHARE)  # the cache is copied when it grows, and read
    rate = device.rate * MATMUL_SHARE[device.kind]
    computed = (_layers(model, rows, workload.width) + 2.0 * rows * model.head) / rate
    step = max(read, computed) + model.layers * SECONDS_PER_LAYER[device.kind]
    prompts = _layers(model, workload.prompts_per_step * workload.prompt_tokens, workload.prompt_tokens)
    return batches * workload.completion_tokens * step + prompts / (rate * device.count)
