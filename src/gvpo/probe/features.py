"""Features phi(x, y) of prompts and completions, computed by any function in chunks and cached on disk.

    texts ──chunks──▶ embed ──▶ store ──▶ rows that a fit reads a batch at a time

This module does not depend on models, servers or probes.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gvpo.errors import DataError
from gvpo.probe.store import Array, Features, FeatureStore, distinct, key_of
from gvpo.types import Prompt

CHUNK = 256
"""Number of texts between two writes to disk, and the most that a crash can lose."""

Progress = Callable[[int, int], None]
"""Function that is called with the number of finished items and the total."""


class Embed(Protocol):
    """Any function with this signature that computes features."""

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[str], /) -> ArrayLike:
        """Return the [n, D] features of n prompts with one completion each."""
        ...


def embed_all(
    embed: Embed,
    prompts: Sequence[Prompt],
    completions: Sequence[str],
    *,
    store: FeatureStore | None = None,
    chunk: int = CHUNK,
    progress: Progress | None = None,
) -> Features:
    """Compute the features of many texts, each text once.

    Args:
        embed: Function that is called with at most `chunk` texts at a time.
        prompts: N prompts.
        completions: N completions.
        store: Store of the features; None keeps them in memory.
        chunk: Number of texts per call, and per chunk on disk.
        progress: Function that is called with the number of finished texts, of those that were not in the store.

    Returns:
        [N, D], in order.

    Raises:
        DataError: If there is no text, or features have a wrong shape or are not finite.
    """
    if not prompts:
        raise DataError("there is nothing to embed; give at least one prompt with a completion")
    keys = [key_of(*pair) for pair in zip(prompts, completions, strict=True)]
    texts = dict(zip(keys, zip(prompts, completions, strict=True), strict=True))
    kept = store if store is not None else _Memory()
    wanted = [key for key in distinct(keys) if key not in kept]
    for start in range(0, len(wanted), chunk):
        part = wanted[start : start + chunk]
        kept.add(part, _checked(embed, [texts[key] for key in part]))
        if progress is not None:
            progress(start + len(part), len(wanted))
    return kept.rows(keys)


def _checked(embed: Embed, texts: Sequence[tuple[Prompt, str]]) -> Array:
    found = np.asarray(embed([prompt for prompt, _ in texts], [text for _, text in texts]), dtype=np.float32)
    if found.ndim != 2 or len(found) != len(texts) or found.shape[1] == 0:
        raise DataError(f"embed gave features of shape {found.shape} for {len(texts)} texts; give [n, D], one row each")
    bad = np.flatnonzero(~np.isfinite(found).all(axis=1))
    if len(bad):
        prompt, text = texts[int(bad[0])]
        raise DataError(f"the features of {str(text)[:40]!r} after {str(prompt)[:40]!r} are not finite")
    return found


class _Memory:
    """A store in memory."""

    def __init__(self) -> None:
        self._places: dict[bytes, int] = {}
        self._parts: list[Array] = []

    def __contains__(self, key: bytes) -> bool:
        return key in self._places

    def add(self, keys: Sequence[bytes], features: Array) -> None:
        """Add features."""
        if self._parts and self._parts[0].shape[1] != features.shape[1]:
            raise DataError(
                f"embed gave features of {features.shape[1]} numbers after some of {self._parts[0].shape[1]}"
            )
        self._places |= {key: len(self._places) + place for place, key in enumerate(keys)}
        self._parts.append(features)

    def rows(self, keys: Sequence[bytes]) -> Array:
        """Return [len(keys), D] features."""
        places: NDArray[np.int64] = np.array([self._places[key] for key in keys])
        return np.concatenate(self._parts)[places]
