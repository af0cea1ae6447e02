"""Memory that tensors on a CPU give back: kept for the next ones, or returned to the system.

glibc returns freed blocks soon, and the next tensor gets new pages, each of which costs a fault at its first touch: for
activations of some MiB often more than what is computed on them. On a GPU torch keeps freed memory itself.
"""

import contextlib
import ctypes
import gc
import os

import torch

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
"""Parameters of glibc's mallopt (malloc.h)."""

NEVER = -1
"""Free bytes at the heap's end above which they are returned: at no size."""

GROWTH = 2**26
"""Bytes that the heap grows by at least."""


def keep_freed_memory() -> bool:
    """Let glibc keep what this process frees, for its next tensors.

    A process then stays as large as it was at its peak. Does nothing where the environment sets the allocator
    (MALLOC_..., GLIBC_TUNABLES, LD_PRELOAD), or where there is no glibc.

    Returns:
        Whether it does.
    """
    if any(name.startswith("MALLOC_") or name in ("GLIBC_TUNABLES", "LD_PRELOAD") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library, another system
        return False
    # no mapping of its own for a block of any size: such a one is returned as soon as it is freed
    wanted = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, NEVER), (_TOP_PAD, GROWTH))
    return all(mallopt(name, value) == 1 for name, value in wanted)


def release() -> None:
    """Give back what is no longer used: to the device, and from glibc's heap to the system."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
