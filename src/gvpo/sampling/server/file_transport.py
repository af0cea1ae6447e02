"""Weights for servers as files in a directory that trainer and servers share.

DIR/gvpo-weights-HOST-PID-.../weights-3.safetensors    deleted when the servers have the next one
"""

import os
import shutil
import socket
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gvpo.errors import EngineError, one_line
from gvpo.sampling.server.client import Client
from gvpo.sampling.server.transfer import update_from

if TYPE_CHECKING:
    from torch import Tensor

PREFIX = "gvpo-weights-"


class FileTransport:
    """Writes each publication into one safetensors file, which vLLM's workers read with the backend `gvpo_file`.

    Directories of programs on this machine that no longer run are deleted.

    Args:
        parent: Directory that trainer and servers share.

    Raises:
        EngineError: If nothing can be written there.
    """

    momentary = False

    def __init__(self, parent: Path) -> None:
        _remove_abandoned(parent)
        try:
            self.directory = Path(tempfile.mkdtemp(prefix=f"{_own_prefix()}{os.getpid()}-", dir=parent))
            self.directory.chmod(0o755)  # the servers may run as another user
        except OSError as error:
            raise EngineError(
                f"weights for the servers cannot be written to {parent} ({one_line(error)}); set sampling.transfer_dir"
            ) from None
        self._number, self._path = 0, self.directory

    def store(self, weights: "Iterable[tuple[str, Tensor]]") -> None:
        """Write weights into a new file. Older files stay until `forget`.

        Raises:
            EngineError: If they do not fit, or cannot be written.
        """
        from safetensors.torch import save_file

        found = dict(_written_out(weights))
        self._check_room(sum(tensor.nbytes for tensor in found.values()))
        self._number += 1
        self._path = self.directory / f"weights-{self._number}.safetensors"
        partial = self._path.with_suffix(".part")
        try:
            save_file(found, partial)
            partial.chmod(0o644)
            partial.replace(self._path)
        except Exception as error:  # safetensors has its own class for a full disk
            partial.unlink(missing_ok=True)
            raise EngineError(
                f"the weights cannot be written to {self.directory} ({one_line(error)}); set sampling.transfer_dir"
            ) from error

    async def send(self, client: Client, label: str, seconds: float) -> None:
        """Implement `Transport.send`."""
        await update_from(client, {"path": str(self._path)}, label, seconds)

    def forget(self) -> None:
        """Delete all files except for the latest."""
        for path in self.directory.iterdir():
            if path != self._path:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Delete all files."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def _check_room(self, size: int) -> None:
        free = shutil.disk_usage(self.directory).free
        if free < size:
            raise EngineError(
                f"{self.directory.parent} has {free / 2**30:.1f} GiB of room, and the weights take {size / 2**30:.1f}; "
                "set sampling.transfer_dir to a directory with room for them twice"
            )


def _written_out(weights: "Iterable[tuple[str, Tensor]]") -> "Iterator[tuple[str, Tensor]]":
    """Yield the entries as tensors on the CPU that share no memory, because safetensors refuses shared memory."""
    seen: set[int] = set()
    for name, tensor in weights:
        plain = tensor.detach().cpu().contiguous()
        place = plain.untyped_storage().data_ptr()
        yield name, plain.clone() if place in seen else plain
        seen.add(place)


def _own_prefix() -> str:
    return f"{PREFIX}{socket.gethostname()}-"


def _remove_abandoned(parent: Path) -> None:
    """Delete directories of programs on this machine that were killed."""
    for path in parent.glob(f"{_own_prefix()}*"):
        number = path.name.removeprefix(_own_prefix()).partition("-")[0]
        if number.isdecimal() and not _runs(int(number)):
            shutil.rmtree(path, ignore_errors=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # it belongs to another user
    return True
