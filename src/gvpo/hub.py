"""Downloads from the Hugging Face hub; where the hub does not answer, what is in the cache, at once.

huggingface_hub asks five times more for each file before it looks into its cache: 23 s a file, and a line each time.
"""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import constants, get_session, is_offline_mode, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

TIMEOUT = 5.0
"""Seconds that the hub has to accept a connection, and to answer."""


def may_be_hub_id(path: str) -> bool:
    """Whether something can be the name of a model or a data set on the hub, by its looks: `name` or `owner/name`."""
    return bool(path) and not path.startswith(("/", ".", "~")) and path.count("/") <= 1


def cached_commit(model: str) -> str | None:
    """Return the commit of a model's newest version in the cache, which is the one that was loaded last."""
    if Path(model).exists() or not may_be_hub_id(model):
        return None
    try:
        file = try_to_load_from_cache(model, "config.json")
    except HFValidationError:
        return None
    return Path(file).parent.name if isinstance(file, str) else None


@contextlib.contextmanager
def from_hub(path: str) -> Iterator[None]:
    """Inside, what is loaded comes from the hub if it answers, and else from the cache or not at all.

    Args:
        path: what is loaded; nothing is asked where it is a local file or directory, or cannot be a hub id.
    """
    if Path(path).exists() or not may_be_hub_id(path) or is_offline_mode() or _answers():
        yield
        return
    with _cache_only():
        yield


def _answers() -> bool:
    try:
        get_session().head(constants.ENDPOINT, timeout=TIMEOUT)
    except Exception:  # whatever a network can do, in the words of the HTTP library of the day
        return False
    return True  # whatever the answer: what is wrong with it is said of the file that is asked for


@contextlib.contextmanager
def _cache_only() -> Iterator[None]:
    """The libraries' own offline mode, which they ask for at each file."""
    switches = [constants, *([sys.modules["datasets"].config] if "datasets" in sys.modules else [])]
    before = [switch.HF_HUB_OFFLINE for switch in switches]
    try:
        for switch in switches:
            switch.HF_HUB_OFFLINE = True
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.HF_HUB_OFFLINE = value
