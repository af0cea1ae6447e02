"""Weights of a local model as files: a name that tells one model from another without loading either.

An adapter records that name of its base, and whoever loads it later is warned if the base has changed.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakKeyDictionary

from gvpo import notices
from gvpo.hub import cached_commit

_PIECES, _PIECE = 64, 4096


def weights_fingerprint(model: str) -> str:
    """Return a short name for a local model's weights, from pieces all over their files; "" for a hub id.

    It tells a model from the same one trained on. Reading all of it would take minutes for a large one.
    """
    digest = hashlib.blake2b(digest_size=8)
    files = sorted(Path(model).glob("*.safetensors")) if Path(model).is_dir() else []
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for piece in range(_PIECES):
                file.seek(piece * max(0, size - _PIECE) // (_PIECES - 1))
                digest.update(file.read(_PIECE))
    return digest.hexdigest() if files else ""


@dataclass(frozen=True)
class Origin:
    """The version of a model that was loaded.

    Args:
        files: Fingerprint of its weight files; "" for a model of the hub.
        commit: Of the hub; None for a local model.
    """

    files: str = ""
    commit: str | None = None


_ORIGINS: WeakKeyDictionary[object, Origin] = WeakKeyDictionary()


def note_origin(model: object, name: str) -> None:
    """Remember which version of a model was loaded, the first time alone: the directory or the hub may change later."""
    if model not in _ORIGINS:
        _ORIGINS[model] = Origin(weights_fingerprint(name), cached_commit(name))


def origin_of(model: object) -> Origin:
    """Return what `note_origin` has remembered of a model."""
    return _ORIGINS.get(model, Origin())


def warn_of_changed_base(model: object, trained_on: str, adapter: str | Path, name: str) -> None:
    """Warn if a model comes from other weight files than those that an adapter was trained on.

    Args:
        model: The base that the adapter was put on.
        trained_on: What the adapter records; "" for one that records nothing.
        adapter: Where it is, for the message.
        name: Of the base, for the message.
    """
    now = origin_of(model).files
    if trained_on and now and now != trained_on:
        notices.warn(
            f"the weight files in {name} are not those that the adapter in {adapter} was trained on, so it may give "
            "other answers than in training; restore them, or name the directory of the base that it was trained on"
        )
