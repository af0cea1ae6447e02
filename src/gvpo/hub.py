"""Downloads from the Hugging Face Hub, or from the cache if the Hub does not respond, without a delay.

huggingface_hub makes five more attempts for each file before it reads its cache, which takes 23 s and prints a line
each time.
"""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import constants, get_session, is_offline_mode, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

TIMEOUT = 5.0
"""Seconds within which the Hub must accept a connection, and respond."""


def may_be_hub_id(path: str) -> bool:
    """Return whether a text has the form of a model or dataset ID on the Hub: `name` or `owner/name`."""
    return bool(path) and not path.startswith(("/", ".", "~")) and path.count("/") <= 1


def cached_commit(model: str) -> str | None:
    """Return the commit of a model's latest version in the cache, which is the last one that was loaded."""
    if Path(model).exists() or not may_be_hub_id(model):
        return None
    try:
        file = try_to_load_from_cache(model, "config.json")
    except HFValidationError:
        return None
    return Path(file).parent.name if isinstance(file, str) else None


@contextlib.contextmanager
def from_hub(path: str) -> Iterator[None]:
    """Load from the Hub within this context if it responds, and otherwise only from the cache.

    Args:
        path: The model or dataset to load. The Hub is not contacted if it is a local path, or cannot be a Hub ID.
    """
    if Path(path).exists() or not may_be_hub_id(path) or is_offline_mode() or _answers():
        yield
        return
    with _cache_only():
        yield


def _answers() -> bool:
    try:
        get_session().head(constants.ENDPOINT, timeout=TIMEOUT)
    except Exception:  # any network error, of any HTTP library
        return False
    return True  # any response will do: the request for the file reports its problems


@contextlib.contextmanager
def _cache_only() -> Iterator[None]:
    """Enable the libraries' own offline mode, which they check for each file."""
    switches = [constants, *([sys.modules["datasets"].config] if "datasets" in sys.modules else [])]
    before = [switch.HF_HUB_OFFLINE for switch in switches]
    try:
        for switch in switches:
            switch.HF_HUB_OFFLINE = True
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.HF_HUB_OFFLINE = value
