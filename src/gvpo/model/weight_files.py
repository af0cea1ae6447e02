"""Weight files of a local model: a fingerprint that distinguishes models without loading them.

An adapter records the fingerprint of its base, and a warning is shown later if the base has changed.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakKeyDictionary

from gvpo import notices
from gvpo.hub import cached_commit

_PIECES, _PIECE = 64, 4096


def weights_fingerprint(model: str) -> str:
    """Return a fingerprint of a local model's weights, from pieces of all their files, or "" for a Hub model ID.

    It distinguishes a model from the same model after more training. Reading all bytes of a large model would take
    minutes.
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
    """Version of a loaded model.

    Args:
        files: Fingerprint of its weight files; "" for a model on the Hub.
        commit: Commit on the Hub; None for a local model.
    """

    files: str = ""
    commit: str | None = None


_ORIGINS: WeakKeyDictionary[object, Origin] = WeakKeyDictionary()


def note_origin(model: object, name: str) -> None:
    """Record the version of a model when it is first loaded, because the directory or the Hub may change later."""
    if model not in _ORIGINS:
        _ORIGINS[model] = Origin(weights_fingerprint(name), cached_commit(name))


def origin_of(model: object) -> Origin:
    """Return the version recorded by `note_origin`."""
    return _ORIGINS.get(model, Origin())


def warn_of_changed_base(model: object, trained_on: str, adapter: str | Path, name: str) -> None:
    """Warn if a model comes from other weight files than those that an adapter was trained on.

    Args:
        model: Base of the adapter.
        trained_on: Fingerprint recorded by the adapter; "" if it records none.
        adapter: Path of the adapter, for the message.
        name: Name of the base, for the message.
    """
    now = origin_of(model).files
    if trained_on and now and now != trained_on:
        notices.warn(
            f"the weight files in {name} are not those that the adapter in {adapter} was trained on, so it may give "
            "other answers than in training; restore them, or name the directory of the base that it was trained on"
        )
