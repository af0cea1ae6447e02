"""Rates of this machine's processor at the sizes of a model.

They are measured in processor seconds, which do not count the time in which other programs run.
"""

import time
from collections.abc import Callable

import torch

from gvpo.model.matmul import product
from gvpo.planning.seconds import Rates

WIDE_ROWS = 512
"""Rows of a product from which its rate no longer grows."""
WEIGHTS, ROUNDS = 2**25, 3
"""Elements of the weights that a measurement of few rows multiplies by, so that no cache contains them; and its rounds,
of which the fastest counts."""
COPIED = 2**24
"""Elements of the copied tensor, which exceed every cache."""


def measure_rates(inputs: int, outputs: int, rows: int, *, half: bool) -> Rates:
    """Measure for a fraction of a second.

    Args:
        inputs: Inputs of the model's typical linear layer.
        outputs: Its outputs.
        rows: Number of rows that are decoded at once.
        half: Whether products are computed in bfloat16.

    Returns:
        The rates of all threads that torch uses, each as fast as one alone.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        wide, narrow = (_product_rate(count, inputs, outputs, half=half) for count in (WIDE_ROWS, rows))
        return Rates(threads * wide, threads * min(wide, narrow), threads * _copy_rate())
    finally:
        torch.set_num_threads(threads)


def _product_rate(rows: int, inputs: int, outputs: int, *, half: bool) -> float:
    dtype = torch.bfloat16 if half else torch.float32
    count = max(1, WEIGHTS // (inputs * outputs * -(-rows // 64)))  # fewer for more rows, which take longer
    weights = [torch.ones(outputs, inputs, dtype=dtype).T for _ in range(count)]
    x = torch.ones(rows, inputs, dtype=dtype)
    seconds = _fastest(lambda: [product(x, weight) for weight in weights])
    return 2 * count * rows * inputs * outputs / seconds


def _copy_rate() -> float:
    """Return the bytes per second, read and written, of a copy."""
    source, target = torch.ones(COPIED), torch.empty(COPIED)
    return 2 * source.element_size() * COPIED / _fastest(lambda: target.copy_(source))


def _fastest(work: Callable[[], object]) -> float:
    def once() -> float:
        began = time.process_time()
        work()
        return time.process_time() - began

    once()  # new pages and kernels that are made for a shape
    return max(1e-9, min(once() for _ in range(ROUNDS)))
