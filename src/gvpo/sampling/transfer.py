"""The directory through which trainer and engines share weights and adapters. This module does not import torch.

DIR/gvpo-weights-HOST-.../    locked by its program, and deleted at its end, or by the next program if it was killed
"""

import os
import shutil
import socket
import tempfile
from pathlib import Path

from gvpo.errors import EngineError, one_line

SHARED_MEMORY = Path("/dev/shm")
LOCK = "lock"
"""File in a directory that its program keeps locked."""


class TransferDirectory:
    """A new directory for the files of one program, which other users may read.

    Directories of programs on this machine that were killed are deleted.

    Args:
        parent: Directory that trainer and engines share, which is created if needed; None is shared memory, or the
            directory of temporary files.
        kind: Name of what it contains.

    Raises:
        EngineError: If it cannot be written.
    """

    def __init__(self, parent: Path | None, kind: str) -> None:
        self.parent = _parent(parent)
        prefix = f"gvpo-{kind}-{socket.gethostname()}-"
        try:
            self.parent.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(self.parent, prefix)
            self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=self.parent))
            self.path.chmod(0o755)  # the engine may run as another user
            self._lock = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise self.failed(error) from None
        _try_lock(self._lock)

    def failed(self, error: Exception) -> EngineError:
        """Return the error of a file that could not be written."""
        return EngineError(
            f"weights for the engine cannot be written to {self.parent} ({one_line(error)}); set sampling.transfer_dir"
        )

    def close(self) -> None:
        """Delete the directory. A second call does nothing."""
        if self._lock >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1


def _parent(given: Path | None) -> Path:
    """Return an absolute path, because engines have another working directory."""
    if given is not None:
        return given.absolute()
    return SHARED_MEMORY if SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir())


def _remove_abandoned(parent: Path, prefix: str) -> None:
    """Delete directories that no program has locked. One without a lock is about to be locked, or cannot be."""
    for path in parent.glob(f"{prefix}*"):
        try:
            descriptor = os.open(path / LOCK, os.O_RDWR)
        except OSError:  # also one of another user
            continue
        try:
            if _try_lock(descriptor):
                shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    """Lock a file if nobody has locked it. The system releases the lock when the process ends in any way."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):  # another program has it, or the system has no locks
        return False
    return True
