"""Store of features on disk, so that each text is embedded only once.

    <directory>/<name's digest>/name.json  chunk-<digest>.npy ...

A chunk is written to a temporary file, renamed and never changed, so several processes can share a directory, and a
crash loses only the current chunk. Chunks are memory-mapped, so a batch reads only its own rows. A mapped file counts
as an open file, so only the most recently read chunks stay mapped.
"""

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from gvpo.errors import DataError, RunError
from gvpo.runfiles import write_bytes, write_json
from gvpo.types import Prompt

Array = NDArray[np.float32]
KEY_BYTES = 16

MAPPED = 128
"""Maximum number of mapped chunks; some systems let a process open only 256 files."""


class Features(Protocol):
    """Rows of features: a numpy array [N, D], or rows on disk that read like one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, D)."""
        ...

    def __getitem__(self, rows: Any, /) -> Any:
        """Return float32 [n, D] features of n row numbers."""
        ...


class StoredFeatures:
    """Rows of a store, in the requested order.

    Args:
        chunk_at: Function that returns a chunk, a structured array, by its number.
        chunk: [N] chunk of each row.
        place: [N] place of each row in its chunk.
        width: D.
    """

    def __init__(
        self, chunk_at: Callable[[int], Any], chunk: NDArray[np.int64], place: NDArray[np.int64], width: int
    ) -> None:
        self._chunk_at, self._chunk, self._place = chunk_at, chunk, place
        self.shape = (len(place), width)

    def __getitem__(self, rows: NDArray[np.int64]) -> Array:
        chunk, place = self._chunk[rows], self._place[rows]
        found = np.empty((len(place), self.shape[1]), dtype=np.float32)
        for number in np.unique(chunk):
            here = chunk == number
            found[here] = self._chunk_at(int(number))["features"][place[here]]
        return found


class FeatureStore:
    """Features by prompt and completion, from one source.

    Args:
        directory: Directory, created if needed; it may contain features of other sources.
        name: Name of the source: model, layer, token. Features of another name are not used.

    Raises:
        DataError: If a chunk is corrupt.
        RunError: If the directory cannot be written, or a chunk cannot be opened.
    """

    def __init__(self, directory: str | Path, name: str) -> None:
        self._directory = Path(directory) / hashlib.blake2b(name.encode(), digest_size=8).hexdigest()
        self._paths: list[Path] = []
        self._width = 0
        self._chunk_at = lru_cache(maxsize=MAPPED)(lambda number: _mapped(self._paths[number]))
        self._places: dict[bytes, tuple[int, int]] = {}
        for path in sorted(self._directory.glob("chunk-*.npy")):
            self._enter(path)
        if not self._paths:
            write_json(self._directory / "name.json", {"features": name})

    def __contains__(self, key: bytes) -> bool:
        return key in self._places

    def add(self, keys: Sequence[bytes], features: Array) -> None:
        """Write a chunk.

        Args:
            keys: n different keys.
            features: [n, D].

        Raises:
            DataError: If D differs from that of earlier chunks.
            RunError: If the disk is full or not writable.
        """
        if self._paths and self._width != features.shape[1]:
            raise DataError(
                f"features have {features.shape[1]} numbers and those in {self._directory} {self._width}; "
                "use another cache directory"
            )
        rows = np.empty(len(keys), dtype=[("key", f"V{KEY_BYTES}"), ("features", "<f4", (features.shape[1],))])
        rows["key"], rows["features"] = np.frombuffer(b"".join(keys), dtype=f"V{KEY_BYTES}"), features
        buffer = io.BytesIO()
        np.save(buffer, rows)
        digest = hashlib.blake2b(b"".join(keys), digest_size=16).hexdigest()
        path = self._directory / f"chunk-{digest}.npy"
        write_bytes(path, buffer.getvalue())
        self._enter(path)

    def rows(self, keys: Sequence[bytes]) -> StoredFeatures:
        """Return the features of keys that are in the store, as rows that can be read a few at a time."""
        places = np.array([self._places[key] for key in keys], dtype=np.int64).reshape(-1, 2)
        return StoredFeatures(self._chunk_at, places[:, 0], places[:, 1], self._width)

    def _enter(self, path: Path) -> None:
        chunk = _mapped(path)
        self._places |= {bytes(key): (len(self._paths), place) for place, key in enumerate(np.array(chunk["key"]))}
        self._paths.append(path)
        self._width = int(chunk["features"].shape[1])

    @classmethod
    def at(cls, directory: str | Path | None, name: str) -> Self | None:
        """Return a store, or None without a directory."""
        return None if directory is None else cls(directory, name)


def _mapped(path: Path) -> Any:
    """Map a chunk, [n] of `key` and `features`."""
    try:
        chunk = np.load(path, mmap_mode="r", allow_pickle=False)
        if not {"key", "features"} <= set(chunk.dtype.names or ()):
            raise ValueError("it has no keys")
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, EOFError) as error:
        raise DataError(f"{path} is corrupt; remove it to compute its features again") from error
    return chunk


def key_of(prompt: Prompt, completion: str) -> bytes:
    """Return the key of a prompt and a completion."""
    text = json.dumps([prompt, completion], ensure_ascii=True, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=KEY_BYTES).digest()


def distinct(keys: Iterable[bytes]) -> list[bytes]:
    """Return each key once, in order."""
    return list(dict.fromkeys(keys))
