"""Errors of the machine as one line with a remedy: memory, disk, a missing directory."""

import contextlib
from collections.abc import Callable, Iterator

from gvpo.errors import RunError, TrainingError

_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "bad_alloc",
    "alloc_failed",
)
"""Phrases in torch's RuntimeErrors that memory has run out: on GPUs, in CUDA's libraries, on CPUs, in C++."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory has run out: Python's own, or torch's on any device."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _OUT_OF_MEMORY)


def system_error(error: BaseException | None) -> OSError | None:
    """Return the system's error that led to `error`, which may be that error itself, or None if there is none."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def refusal(error: BaseException) -> str | None:
    """Return a short description of what the system rejected, or None if the error has another cause."""
    if is_out_of_memory(error):
        return "out of memory"
    if not isinstance(error, OSError):
        return None
    at = f" ({error.filename})" if error.filename else ""
    return f"the system says {' '.join((error.strerror or str(error)).split())!r}{at}"


@contextlib.contextmanager
def explained(where: Callable[[], str]) -> Iterator[None]:
    """Convert the system's errors within this context into those of gvpo.

    Args:
        where: Function that returns the current activity, such as "step 12"; it is called after a failure.

    Raises:
        TrainingError: If memory has run out.
        RunError: If the system rejected a file or a process.
    """
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        refused = refusal(error)
        if refused is None:
            raise
        if is_out_of_memory(error):
            raise TrainingError(
                f"{where()}: {refused}; lower train.tokens_per_microbatch (updates) or sampling.tokens_per_batch "
                "(sampling), then use --resume (train(resume=True))"
            ) from error
        raise RunError(
            f"{where()}: {refused}; make room or restore the directory, then use --resume (train(resume=True))"
        ) from error
