"""Estimated duration of a step: operations and bytes, divided by rates.

    products     2 operations per weight and token; a backward as many for the inputs, and for the weights if trained
    attention    4 operations per element of a query and pair of a query and a key
    the rest     norms, activations, rotations and copies read and write what autograd saves several times

On a CPU the rates are measured when the plan is made, in processor seconds, so that other programs do not matter. On a
GPU they are assumed fractions of the data sheet, and no value was measured.
"""

import math
from dataclasses import dataclass

from gvpo.planning.architecture import Architecture
from gvpo.planning.devices import Device
from gvpo.planning.memory import FLOAT, HALF, activation_bytes, cache_bytes
from gvpo.planning.workload import Rectangle, Workload, rectangles

MATMUL_SHARE = 0.4
"""Fraction of a GPU's peak rate that forwards and backwards reach (assumed)."""

BANDWIDTH_SHARE = 0.6
"""Fraction of the bandwidth that decoding and the optimizer reach: assumed for GPUs, measured on a CPU."""

SECONDS_PER_LAYER = {"cpu": 9e-4, "cuda": 4e-4}
"""Overhead of Python and of small operations per layer and decoded token: measured on a CPU, assumed for GPUs."""

SECONDS_PER_ADAPTER = {"cpu": 9e-4, "cuda": 4e-4}
"""The same for the adapters of a layer."""

FORWARD_TRAFFIC, UPDATE_TRAFFIC = 10, 40
"""Number of times that the bytes that autograd saves are read or written besides products: in a forward, and in a
forward with its backward. Measured on a CPU; on a GPU the share of the peak rate includes them."""

ADAPTER_TRAFFIC = 16
"""The same for inputs and outputs of adapted layers, in an update; a forward needs a third."""

LOGIT_TRAFFIC = 30
"""The same for the float32 logits of a sampled token, which become log-probs with noise. Measured on a CPU."""

OPTIMIZER_BYTES = 40
"""Bytes that are read and written per trained parameter: the norm, the clipping and AdamW."""


@dataclass(frozen=True)
class Rates:
    """Rates of a device, all of its cores or units together.

    Args:
        wide: Operations per second in products of many tokens.
        narrow: Operations per second in products of as many tokens as rows are decoded at once.
        bandwidth: Bytes per second that are read or written.
    """

    wide: float
    narrow: float
    bandwidth: float


@dataclass(frozen=True)
class Seconds:
    """Seconds of a step: sampling, scoring without gradient, and the updates with the optimizer."""

    sampling: float
    scoring: float
    updating: float

    @property
    def total(self) -> float:
        """Seconds of the whole step, without rewards and evaluation."""
        return self.sampling + self.scoring + self.updating


def assumed_rates(device: Device) -> Rates:
    """Return the rates of a GPU by its data sheet."""
    rate = device.rate * device.count * MATMUL_SHARE
    return Rates(rate, rate, device.bandwidth * device.count)


def estimate_seconds(model: Architecture, workload: Workload, device: Device, measured: Rates | None = None) -> Seconds:
    """Estimate the seconds of a step in which every completion has the maximum length.

    Args:
        model: Sizes of the model.
        workload: Sizes of a step.
        device: The device.
        measured: Measured rates of a CPU; by default those of a GPU's data sheet.
    """
    rates = measured or assumed_rates(device)
    shapes = rectangles(workload, shared=model.shares_prompts)
    updates = math.ceil(workload.prompts_per_step / workload.groups)
    forward = updates * sum(_forward(model, workload, device, shape, rates) for shape in shapes)
    again = int(len(shapes) > 1 and (workload.reference or updates > 1))
    backward = sum(_update(model, workload, device, shape, rates) for shape in shapes)
    return Seconds(
        sampling=_sampling(model, workload, device, rates),
        scoring=(int(workload.reference) + again) * forward,
        updating=workload.passes * updates * (backward + _optimizer(model, workload, rates)),
    )


def forward_operations(model: Architecture, shape: Rectangle) -> tuple[float, float]:
    """Return the operations of a forward of a micro-batch: of all layers, and of the head."""
    products = 2.0 * shape.tokens * model.active_layer_parameters
    attention = 4.0 * model.query * shape.pairs
    return model.layers * (products + attention), 2.0 * shape.scored * model.head


def update_operations(model: Architecture, workload: Workload, shape: Rectangle) -> float:
    """Return the operations of a forward and backward of a micro-batch.

    A backward computes twice the operations of a forward, or as many if the weights are frozen, and with checkpointing
    the forward of the layers again.
    """
    layers, head = forward_operations(model, shape)
    attention = model.layers * 4.0 * model.query * shape.pairs
    frozen = layers - attention + head if workload.lora_rank else 0
    adapter = 6.0 * shape.tokens * model.adapter_parameters(workload.lora_rank)
    return 3 * (layers + head) - frozen + adapter + layers * workload.checkpointing


def _forward(model: Architecture, workload: Workload, device: Device, shape: Rectangle, rates: Rates) -> float:
    """Return the seconds of a forward without gradient; the reference of a LoRA run has no adapter."""
    return sum(forward_operations(model, shape)) / rates.wide + _traffic(model, device, shape, FORWARD_TRAFFIC, rates)


def _update(model: Architecture, workload: Workload, device: Device, shape: Rectangle, rates: Rates) -> float:
    """Return the seconds of a forward and backward."""
    times = UPDATE_TRAFFIC + FORWARD_TRAFFIC * workload.checkpointing
    adapters = bool(workload.lora_rank) * ADAPTER_TRAFFIC * FLOAT * model.adapted_features
    own = shape.tokens * model.layers * adapters / rates.bandwidth
    products = update_operations(model, workload, shape) / rates.wide
    return products + _traffic(model, device, shape, times, rates) + own


def _traffic(model: Architecture, device: Device, shape: Rectangle, times: int, rates: Rates) -> float:
    """Return the seconds of everything besides products in the layers."""
    if device.kind != "cpu":
        return 0.0
    return times * shape.tokens * model.layers * activation_bytes(model, half=False) / rates.bandwidth


def _optimizer(model: Architecture, workload: Workload, rates: Rates) -> float:
    trained = model.adapter_parameters(workload.lora_rank) if workload.lora_rank else model.parameters
    return OPTIMIZER_BYTES * trained / (rates.bandwidth * BANDWIDTH_SHARE)


def _sampling(model: Architecture, workload: Workload, device: Device, rates: Rates) -> float:
    """Return the seconds of sampling: prompts once, then steps of one token per row.

    On a GPU a step is limited by reads or by products. On a CPU the measured rate of narrow products includes the reads
    of the weights.
    """
    sampled = workload.sampled_prompts * workload.group_size
    rows = min(workload.rows_at_once, math.ceil(sampled / device.count))  # each device has a cache of this size
    batches = math.ceil(sampled / (rows * device.count))
    one = Rectangle(rows, 1, rows, rows * workload.width)
    computed = device.count * sum(forward_operations(model, one)) / rates.narrow
    overhead = SECONDS_PER_LAYER[device.kind] + bool(workload.lora_rank) * SECONDS_PER_ADAPTER[device.kind]
    step = _reads(model, workload, device, rows, computed, rates) + model.layers * overhead
    tokens = workload.sampled_prompts * workload.prompt_tokens
    prompts = Rectangle(1, tokens, 0, workload.sampled_prompts * workload.prompt_tokens**2)
    return batches * workload.completion_tokens * step + sum(forward_operations(model, prompts)) / rates.wide


def _reads(model: Architecture, workload: Workload, device: Device, rows: int, computed: float, rates: Rates) -> float:
    """Return the seconds of a decoding step with the reads of weights, cache and logits on one device."""
    bandwidth = rates.bandwidth / device.count * BANDWIDTH_SHARE
    cache = rows * (workload.prompt_tokens + workload.completion_tokens / 2) * cache_bytes(model, half=workload.half)
    copied = 3 * cache / bandwidth  # the cache is copied when it grows, and read
    if device.kind == "cpu":
        return computed + copied + LOGIT_TRAFFIC * FLOAT * rows * model.vocabulary / rates.bandwidth
    weights = (HALF if workload.half else FLOAT) * (model.layers * model.layer_parameters + model.head)
    return max(weights / bandwidth + copied, computed)
