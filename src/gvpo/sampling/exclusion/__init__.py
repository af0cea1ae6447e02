"""Decoding by exclusion: what a completion may consist of, and the probability that this leaves.

Names are imported when they are first used: most need torch or transformers, which take seconds to import.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gvpo.sampling.exclusion.exclusion import CompiledExclusion, effective_size, log_acceptance, sequence_weights
    from gvpo.sampling.exclusion.spec import Exclusion, parse_exclusion
    from gvpo.sampling.exclusion.transformers import ExclusionLogitsProcessor, compile_exclusion, score_allowed

__all__ = [
    "CompiledExclusion",
    "Exclusion",
    "ExclusionLogitsProcessor",
    "compile_exclusion",
    "effective_size",
    "log_acceptance",
    "parse_exclusion",
    "score_allowed",
    "sequence_weights",
]

_MODULES = {
    "CompiledExclusion": "exclusion",
    "Exclusion": "spec",
    "ExclusionLogitsProcessor": "transformers",
    "compile_exclusion": "transformers",
    "effective_size": "exclusion",
    "log_acceptance": "exclusion",
    "parse_exclusion": "spec",
    "score_allowed": "transformers",
    "sequence_weights": "exclusion",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
