"""The configuration of a model in a local directory, read without transformers."""

import json
from pathlib import Path
from typing import Any

from gvpo.errors import ModelError, type_of


def local_config(path: str | Path) -> dict[str, Any] | None:
    """Read a local model's config.json.

    Args:
        path: A model's directory, or the file itself.

    Returns:
        The file's content, or None if `path` does not exist; it may be a Hub model ID then.

    Raises:
        ModelError: If `path` exists but is not a model's configuration.
    """
    place = Path(path)
    if not place.exists():
        return None
    file = place / "config.json" if place.is_dir() else place
    if not file.is_file():
        raise ModelError(f"{place} has no config.json, so it is not a model; give a model directory or Hub model ID")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} is not readable JSON: {error}; give a model's config.json") from None
    if not isinstance(config, dict):
        raise ModelError(f"{file} is {type_of(config)}, not a model's configuration; give a model's config.json")
    return config
