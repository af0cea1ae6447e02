"""The directory through which trainer and engines share weights. This module does not import torch."""

import tempfile
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")


def transfer_directory(given: Path | None) -> Path:
    """Return the directory for weights and adapters: the given one, shared memory, or that of temporary files."""
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        return given
    return SHARED_MEMORY if SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir())
