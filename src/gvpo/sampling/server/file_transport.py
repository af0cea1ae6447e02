"""Weights for servers as files in a directory that trainer and servers share.

DIR/gvpo-weights-HOST-.../weights-3.safetensors    deleted when the servers have the next one
"""

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gvpo.errors import EngineError
from gvpo.sampling.server.client import Client
from gvpo.sampling.server.transfer import update_from
from gvpo.sampling.transfer import TransferDirectory

if TYPE_CHECKING:
    from torch import Tensor


class FileTransport:
    """Writes each publication into one safetensors file, which vLLM's workers read with the backend `gvpo_file`.

    Args:
        parent: Directory that trainer and servers share; see `TransferDirectory`.

    Raises:
        EngineError: If nothing can be written there.
    """

    momentary = False

    def __init__(self, parent: Path | None) -> None:
        self._shared = TransferDirectory(parent, "weights")
        self.directory = self._shared.path
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
            raise self._shared.failed(error) from error

    async def send(self, client: Client, label: str, seconds: float) -> None:
        """Implement `Transport.send`."""
        await update_from(client, {"path": str(self._path)}, label, seconds)

    def forget(self) -> None:
        """Delete all files except for the latest."""
        for path in self.directory.glob("weights-*"):
            if path != self._path:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Delete all files."""
        self._shared.close()

    def _check_room(self, size: int) -> None:
        free = shutil.disk_usage(self.directory).free
        if free < size:
            raise EngineError(
                f"{self._shared.parent} has {free / 2**30:.1f} GiB of room, and the weights take {size / 2**30:.1f}; "
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
