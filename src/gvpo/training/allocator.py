"""Settings of the CPU allocator: keep freed memory for the next tensors, or return it to the system.

By default glibc returns freed blocks soon, and the next tensor gets new pages, each of which causes a page fault at its
first access. For activations of some MiB the faults often cost more than the computation. On a GPU torch itself keeps
freed memory.
"""

import contextlib
import ctypes
import gc
import os

import torch

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
"""Parameters of glibc's mallopt (malloc.h)."""

NEVER = -1
"""Number of free bytes at the end of the heap above which they are returned; -1 means never."""

GROWTH = 2**26
"""Minimum number of bytes by which the heap grows."""


def keep_freed_memory() -> bool:
    """Let glibc keep the memory that this process frees, for its next tensors.

    The process then stays as large as its peak. Do nothing if the environment configures the allocator (MALLOC_...,
    GLIBC_TUNABLES, LD_PRELOAD), or if the C library is not glibc.

    Returns:
        True if glibc accepted the settings.
    """
    if any(name.startswith("MALLOC_") or name in ("GLIBC_TUNABLES", "LD_PRELOAD") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library or another system
        return False
    # no separate mapping for a block of any size, because such a mapping is returned as soon as it is freed
    wanted = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, NEVER), (_TOP_PAD, GROWTH))
    return all(mallopt(name, value) == 1 for name, value in wanted)


def release() -> None:
    """Return unused memory: to the device, and from glibc's heap to the system."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
