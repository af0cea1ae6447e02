"""What the machine refuses, in one line that says what to do: memory, disk, a directory that is gone."""

import contextlib
from collections.abc import Callable, Iterator

from gvpo.errors import RunError, TrainingError
from gvpo.policy.facts import is_out_of_memory


@contextlib.contextmanager
def explained(where: Callable[[], str]) -> Iterator[None]:
    """Turns the system's errors inside into ours.

    Args:
        where: what was being done, asked when it fails: "step 12".

    Raises:
        TrainingError: memory has run out.
        RunError: the system refused a file or a process.
    """
    try:
        yield
    except MemoryError as error:
        raise _out_of_memory(where()) from error
    except OSError as error:
        reason = error.strerror or str(error)
        at = f" ({error.filename})" if error.filename else ""
        raise RunError(
            f"{where()}: the system says {reason!r}{at}; make room or bring the directory back, then go on with "
            "--resume (train(resume=True))"
        ) from error
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise _out_of_memory(where()) from error


def _out_of_memory(where: str) -> TrainingError:
    return TrainingError(
        f"{where}: out of memory; lower train.tokens_per_microbatch (updates) or sampling.tokens_per_batch (sampling), "
        "then go on with --resume (train(resume=True))"
    )
