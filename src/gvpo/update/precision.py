"""Mixed precision: the effect of `model.compute_dtype` on this machine."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gvpo.config import TrainConfig
from gvpo.model.matmul import product
from gvpo.update.distributed import ranks

NARROWEST = 512
"""Fewest inputs and outputs of the largest layer of a model that "auto" computes in bfloat16 on a CPU. In smaller ones,
the products take less time than the casts and everything else."""
PAYS = 1.3
"""Least ratio of the processor times of float32 and bfloat16 at which "auto" chooses bfloat16. Processors with
instructions for bfloat16 reach 2 and more; the others stay below 1."""
ROWS, MOST_WEIGHTS, ROUNDS = 256, 2**20, 5
"""Size of the measurement: rows, weights at most, and rounds of which the fastest counts."""


def is_half(config: TrainConfig) -> bool:
    """Return whether forward passes are computed in bfloat16. Weights are always float32.

    A run replaces "auto" by the result of `choose_dtype`; without it, "auto" is bfloat16 on a GPU only.
    """
    wanted = config.compute_dtype
    return wanted == "bfloat16" or (wanted == "auto" and ranks.device().type == "cuda")


def autocast(config: TrainConfig) -> AbstractContextManager[Any]:
    """Return the autocast context of forward passes."""
    return torch.autocast(ranks.device().type, dtype=torch.bfloat16) if is_half(config) else nullcontext()


def choose_dtype(config: TrainConfig, model: nn.Module) -> tuple[Literal["float32", "bfloat16"], float]:
    """Return the dtype of forward passes, and how many times faster bfloat16 is if that was measured, otherwise 0.

    On a CPU, "auto" is bfloat16 if the processor multiplies a layer of the model clearly faster in it.
    """
    if config.compute_dtype != "auto" or ranks.device().type != "cpu":
        return "bfloat16" if is_half(config) else "float32", 0.0
    weight = _largest_weight(model)
    return ("float32", 0.0) if weight is None else faster_dtype(weight)


def faster_dtype(weight: Tensor) -> tuple[Literal["float32", "bfloat16"], float]:
    """Return the dtype that "auto" means on a CPU for a model's largest weight, and how many times faster bfloat16 is.

    Args:
        weight: [outputs, inputs]; its values do not matter.
    """
    if weight.dtype != torch.float32 or min(weight.shape) < NARROWEST:
        return "float32", 0.0
    faster = ranks.on_first(lambda: _times_faster(weight))
    return "bfloat16" if faster >= PAYS else "float32", faster


def dtype_for_sizes(inputs: int, outputs: int) -> str:
    """Return the dtype that "auto" means on a CPU for a model whose largest weight has these sizes."""
    return faster_dtype(torch.ones(outputs, inputs))[0]


def _largest_weight(model: Any) -> Tensor | None:
    """Return the largest weight of a linear layer, except the head."""
    head = model.get_output_embeddings()
    weights = (layer.weight for layer in model.modules() if isinstance(layer, nn.Linear) and layer is not head)
    return max(weights, key=Tensor.numel, default=None)


@torch.no_grad()
def _times_faster(weight: Tensor) -> float:
    """Return the ratio of the processor times of a layer's product in float32 and in bfloat16, with the casts."""
    part = weight[: max(1, MOST_WEIGHTS // weight.shape[1])].contiguous()
    rows, narrow = torch.ones(ROWS, part.shape[1]), part.bfloat16()

    def seconds(work: Callable[[], object]) -> float:
        started = time.process_time()
        work()
        return time.process_time() - started

    work = (lambda: product(rows, part.T), lambda: F.linear(rows.bfloat16(), narrow).float())
    with _one_thread():  # threads that wait for a busy core would count
        times = [[seconds(each) for each in work] for _ in range(1 + ROUNDS)][1:]  # the first one creates the kernels
    single, half = (min(each) for each in zip(*times, strict=True))
    return float(single / max(half, 1e-9))


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
