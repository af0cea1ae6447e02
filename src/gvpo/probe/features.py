"""Features phi(x, y) of prompts and completions, by any function: in chunks, cached on disk.

    texts ──chunks──▶ embed ──▶ store ──▶ rows that a fit reads a batch at a time

Knows nothing of models, servers or probes.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gvpo.errors import DataError
from gvpo.probe.store import Array, Features, FeatureStore, distinct, key_of
from gvpo.types import Prompt

CHUNK = 256
"""Texts that are embedded between two writes to the disk: what a crash may cost."""

Progress = Callable[[int, int], None]
"""Called with what is done and what there is to do."""


class Embed(Protocol):
    """A way to compute features: any function with this signature."""

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[str], /) -> ArrayLike:
        """[n, D] features of n prompts with a completion each."""
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
    """Features of many texts, each computed once.

    Args:
        embed: called with at most `chunk` texts at a time.
        prompts: N prompts.
        completions: N completions.
        store: where features are kept and looked for; without one they are held in memory.
        chunk: how many texts a call, and a chunk on disk, has.
        progress: told how many texts are done, of those that were not in the store.

    Returns:
        [N, D], in order.

    Raises:
        DataError: nothing to embed, or features of a wrong shape or that are not finite.
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
    """A store without a disk."""

    def __init__(self) -> None:
        self._places: dict[bytes, int] = {}
        self._parts: list[Array] = []

    def __contains__(self, key: bytes) -> bool:
        return key in self._places

    def add(self, keys: Sequence[bytes], features: Array) -> None:
        """Keep some more."""
        if self._parts and self._parts[0].shape[1] != features.shape[1]:
            raise DataError(
                f"embed gave features of {features.shape[1]} numbers after some of {self._parts[0].shape[1]}"
            )
        self._places |= {key: len(self._places) + place for place, key in enumerate(keys)}
        self._parts.append(features)

    def rows(self, keys: Sequence[bytes]) -> Array:
        """[len(keys), D]."""
        places: NDArray[np.int64] = np.array([self._places[key] for key in keys])
        return np.concatenate(self._parts)[places]
