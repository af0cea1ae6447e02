"""Peak memory of each phase of a step, computed from sizes.

Persistent memory: weights 4N, AdamW's moments 8N and the reference copy 4N bytes, and 4N or 2N bytes for a copy of the
sampler; gradients 4N from the first backward to the optimizer step. Temporary memory: the sampler's cache and logits,
activations of one micro-batch, head chunks.

    sample     weights + moments + reference + cache + logits of the rows (+ all weights, gathered from their shards)
    score      weights + moments + reference + one layer + head chunks                     (reference log-probs)
    update     the larger of: at the head, all layers' activations + head;  at the end, gradients + embedding gradient
    optimizer  weights + moments + reference + gradients + temporaries

An adapter has weights, gradients and moments of its own; the weights below it have only their 4N or, in bfloat16, 2N
bytes, and the reference is the model without the adapter.

Activations are counted as the tensors that autograd saves (`activation_bytes`). `benchmarks/plan_check.py` compares
these estimates with measured peaks.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from gvpo.planning.architecture import Architecture
from gvpo.planning.devices import Device
from gvpo.planning.workload import Rectangle, Workload, rectangles

FLOAT = 4
HALF = 2

CHUNK_BYTES = {"cpu": 2**26}
"""Bytes per chunk of logits; this and the next three constants match `gvpo.update.head`."""

DEFAULT_CHUNK_BYTES = 2**28
BLOCK_ELEMENTS = {"cpu": 2**20}
FEWEST_ROWS = 128

ROOM = 64
"""Number of tokens by which the sampler's cache grows, as in `gvpo.sampling.cache`."""

KEPT_BY_ALLOCATOR = 0.2
"""Size of the freed blocks that the allocator cannot reuse at the peak, as a fraction of the temporary memory.

glibc keeps freed blocks below 32 MiB; CUDA's caching allocator rounds and splits. The value was measured on a CPU and
is assumed for GPUs.
"""


@dataclass(frozen=True)
class Memory:
    """Bytes on each device.

    Args:
        phases: Bytes of each item at the peak of each phase; items of 0 bytes are omitted.
    """

    phases: Mapping[str, Mapping[str, float]]

    @property
    def largest(self) -> str:
        """Name of the phase with the highest peak."""
        return max(self.phases, key=lambda phase: self.peak_of(phase))

    @property
    def peak(self) -> float:
        """Highest peak over the phases, in bytes."""
        return self.peak_of(self.largest)

    def peak_of(self, phase: str) -> float:
        """Return the bytes at a phase's peak."""
        return sum(self.phases[phase].values())


def estimate_memory(model: Architecture, workload: Workload, device: Device) -> Memory:
    """Estimate the peak memory of a training step.

    Args:
        model: Sizes of the model.
        workload: Sizes of a step.
        device: The device; its kind determines the size of the head's chunks, and its count the number of shards.

    Returns:
        Bytes per device, by phase and item.
    """
    shapes = rectangles(workload, shared=model.shares_prompts)
    lasting = _lasting(model, workload, device)
    phases = {
        **({"sampling": {**lasting, **_sampling(model, workload, device)}} if workload.samples else {}),
        "update": max(_update(model, workload, device, shapes, lasting), key=lambda items: sum(items.values())),
        "optimizer": {
            **lasting,
            "gradients": _shard(_trained(model, workload), device),
            **_optimizer(model, workload, device),
        },
    }
    if workload.reference:
        phases["scoring"] = {**lasting, **_scoring(model, workload, device, shapes[0])}
    return Memory({name: _with_allocator(items, lasting) for name, items in phases.items()})


def activation_bytes(model: Architecture, *, half: bool) -> int:
    """Return the bytes that autograd saves per layer and token.

    Without autocast, it saves these float32 elements:

    - per norm: its input, the normalized input and its output (3H);
    - attention: its queries, keys, values and output, where keys and values are repeated for every head unless prompts
      are shared (4AD, or 2AD + 2KD); norms on the heads add their inputs and normalized inputs (2AD + 2KD);
    - a gated MLP: gate, activated gate, up and their product (4I);
    - per expert of a token: its gathered input and its output (2H);
    - per norm beyond the usual two, whose output is only added: its input and the normalized input (2H).

    Under autocast, norms stay float32, each linear layer saves a bfloat16 copy of its input, and attention over shared
    prompts saves its inputs and output in float32 (as on a CPU; a GPU saves half of that).
    """
    mlp = _mlp_elements(model)
    attention = 2 * model.query + 2 * (model.key if model.shares_prompts else model.query)
    heads = 2 * (model.query + model.key) if model.head_norm else 0
    copies = 5 if model.gated else 4
    norms = 2 * model.norms * model.hidden
    if not half:
        return FLOAT * (norms + 2 * model.hidden + attention + heads + mlp)
    seen = (FLOAT if model.shares_prompts else HALF) * attention
    return FLOAT * (norms + heads) + seen + HALF * (copies * model.hidden + mlp)


def cache_bytes(model: Architecture, *, half: bool) -> int:
    """Return the bytes of the key-value cache per token. Under autocast, rotary positions convert keys to float32."""
    return model.layers * model.key * (FLOAT + (HALF if half else FLOAT))


def _mlp_elements(model: Architecture) -> int:
    per_unit = 4 if model.gated else 3
    if model.experts == 0:
        return per_unit * model.intermediate
    routed = model.active_experts * (2 * model.hidden + per_unit * model.expert_intermediate)
    return routed + per_unit * model.shared_intermediate


def _shard(elements: float, device: Device) -> float:
    """Return the bytes per device of float32 elements that are sharded over the devices."""
    return FLOAT * elements / device.count


def _trained(model: Architecture, workload: Workload) -> int:
    """Return the number of parameters that are trained."""
    return model.adapter_parameters(workload.lora_rank) if workload.lora_rank else model.parameters


def _lasting(model: Architecture, workload: Workload, device: Device) -> dict[str, float]:
    trained = _shard(_trained(model, workload), device)
    items = {"weights": trained, "optimizer": 2 * trained}
    if workload.lora_rank:
        frozen = _shard(model.parameters, device) * (HALF / FLOAT if workload.narrow_base else 1)
        items = {"weights": frozen, "adapter": trained, "optimizer": 2 * trained}
    elif workload.reference:
        items["reference"] = trained
    if workload.copy_width:
        copied = _trained(model, workload) + (model.parameters if workload.lora_rank and workload.copies_base else 0)
        items["sampler's copy"] = workload.copy_width * copied
    if device.count > 1:  # two layers and the head are gathered at a time
        width = HALF if workload.half else FLOAT
        items["gathered weights"] = width * (2 * model.layer_parameters + model.head)
    return items


def _with_allocator(items: Mapping[str, float], lasting: Mapping[str, float]) -> dict[str, float]:
    passing = sum(size for name, size in items.items() if name not in lasting and name != "gradients")
    return {name: size for name, size in (*items.items(), ("allocator", KEPT_BY_ALLOCATOR * passing)) if size}


def _cast(model: Architecture, workload: Workload, device: Device) -> float:
    """Return the bytes of bfloat16 weights that autocast keeps during a micro-batch; the head has a separate copy."""
    if not workload.half or workload.narrow_base or device.count > 1:
        return 0
    return HALF * model.layers * model.layer_parameters


def _update(
    model: Architecture, workload: Workload, device: Device, shapes: list[Rectangle], lasting: Mapping[str, float]
) -> Iterator[dict[str, float]]:
    """Yield the items at the peak of each micro-batch at the head, and at the end of the last micro-batch."""
    gradients = _shard(_trained(model, workload), device)
    cast = _cast(model, workload, device)
    for number, shape in enumerate(shapes[:1] + shapes[1:2]):
        yield {
            **lasting,
            "gradients": gradients if number else 0,
            "weights in bfloat16": cast,
            "activations": _activations(model, workload, shape),
            "adapter's activations": _adapter_activations(model, workload, shape),
            "attention mask": _mask(model, shape),
            "head": max(_head(model, workload, device, shape), _top_layer(model, workload, shape)),
        }
    yield {
        **lasting,
        "gradients": gradients,
        "weights in bfloat16": cast,
        "activations": shapes[-1].tokens * activation_bytes(model, half=workload.half),
        "embedding": _embedding(model, workload),
    }


def _embedding(model: Architecture, workload: Workload) -> float:
    """Return the bytes of the embedding's dense gradient, and of the head's gradient if it is added to it."""
    return 0 if workload.lora_rank else FLOAT * model.head * (2 if model.tied else 1)


def _activations(model: Architecture, workload: Workload, shape: Rectangle) -> float:
    """Return the bytes of all layers' activations (with checkpointing only their inputs) and of the last norm."""
    layer = FLOAT * model.hidden if workload.checkpointing else activation_bytes(model, half=workload.half)
    return shape.tokens * (model.layers * layer + 3 * FLOAT * model.hidden)


def _adapter_activations(model: Architecture, workload: Workload, shape: Rectangle) -> float:
    """Return the bytes of the inputs of an adapter's second matrices, [tokens, rank] per linear layer."""
    linears = 7 if model.gated else 6
    return FLOAT * shape.tokens * linears * workload.lora_rank * (1 if workload.checkpointing else model.layers)


def _mask(model: Architecture, shape: Rectangle) -> float:
    """Return the bytes of the attention mask: [n, 1, L, L] booleans, or 0 if prompts are shared."""
    return 0 if model.shares_prompts else shape.lanes * shape.length**2


def _chunks(model: Architecture, workload: Workload, device: Device, scored: int) -> float:
    """Return the bytes of the buffers for a chunk of logits and a block of it (two blocks for bfloat16 matmuls)."""
    width = HALF if workload.half else FLOAT
    size = CHUNK_BYTES.get(device.kind, DEFAULT_CHUNK_BYTES)
    chunk = min(max(FEWEST_ROWS, size // (width * model.vocabulary)), scored)
    blocks = FLOAT * (2 if workload.half else 1)
    block = min(max(1, BLOCK_ELEMENTS[device.kind] // model.vocabulary), chunk) if device.kind == "cpu" else chunk
    return model.vocabulary * (width * chunk + blocks * block)


def _head(model: Architecture, workload: Workload, device: Device, shape: Rectangle) -> float:
    """Return the bytes of the scored hidden states and their gradient, the head's gradient and chunks of logits.

    On a CPU, oneDNN keeps its own copy of the head's weight.
    """
    hidden = 2 * FLOAT * shape.scored * model.hidden
    weight = (FLOAT * (not workload.lora_rank) + HALF * workload.half) * model.head  # narrow: the weight itself
    if not model.fused_head:
        return hidden + _logits(model, shape, copies=2 if model.softcapped else 1)  # a tanh saves its output
    copy = (HALF if workload.half else FLOAT) * model.head * (device.kind == "cpu")
    return hidden + weight + copy + _chunks(model, workload, device, shape.scored)


def _logits(model: Architecture, shape: Rectangle, *, copies: int) -> float:
    """Return the bytes of the plain path: `copies` of all logits, and five tensors from scored logits to log-probs."""
    return FLOAT * model.vocabulary * (copies * shape.tokens + 5 * shape.scored)


def _top_layer(model: Architecture, workload: Workload, shape: Rectangle) -> float:
    """Return the bytes at the start of the last MLP's backward: the gradients of head, product and residual.

    With checkpointing, add the recomputed activations of the layer.
    """
    inner = model.active_experts * model.expert_intermediate if model.experts else model.intermediate
    again = activation_bytes(model, half=workload.half) if workload.checkpointing else 0
    head = 0 if workload.lora_rank else model.head
    return FLOAT * (head + shape.tokens * (inner + 2 * model.hidden)) + shape.tokens * again


def _scoring(model: Architecture, workload: Workload, device: Device, shape: Rectangle) -> dict[str, float]:
    """Return the items of a pass without gradients: the working set of one layer, or the head's chunks."""
    head = FLOAT * shape.scored * model.hidden + _chunks(model, workload, device, shape.scored)
    if not model.fused_head:
        head = _logits(model, shape, copies=1)
    layer = shape.tokens * activation_bytes(model, half=workload.half) / 2  # the two halves of a layer do not coexist
    return {
        "weights in bfloat16": _cast(model, workload, device),
        "attention mask": _mask(model, shape),
        "working set": max(head, layer) + FLOAT * shape.tokens * model.hidden,
    }


def _sampling(model: Architecture, workload: Workload, device: Device) -> dict[str, float]:
    """Return the items of sampling: the cache with room to grow, a copy of one layer while it grows, and logits."""
    rows = max(1, workload.rows_at_once)
    width = HALF if workload.half else FLOAT
    others = model.parameters - 2 * model.layer_parameters - model.head  # parameters that are not already gathered
    cache = rows * (workload.width + ROOM) * cache_bytes(model, half=workload.half)
    return {
        "all weights gathered": width * others if device.count > 1 else 0,
        "cache": cache,
        "cache of a layer": cache / model.layers,
        "logits": 4 * FLOAT * rows * model.vocabulary,
        "weights in bfloat16": _cast(model, workload, device) + (HALF * model.head if workload.half else 0),
    }


def _optimizer(model: Architecture, workload: Workload, device: Device) -> dict[str, float]:
    """Return AdamW's temporaries: two of the largest parameter on a CPU, one of all parameters on a GPU (foreach)."""
    if device.kind == "cpu":
        largest = workload.lora_rank * max(model.hidden, model.intermediate) if workload.lora_rank else model.largest
        return {"temporaries": 2 * FLOAT * largest}
    return {"temporaries": _shard(_trained(model, workload), device)}
