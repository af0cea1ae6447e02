"""The policy: models, tokenizers, references, and exact log-probs of groups.

Names are imported when they are first used: most need transformers, which takes seconds to import.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gvpo.model.endings import Ending, ending
    from gvpo.model.merge import merge_adapter
    from gvpo.model.model import load_model, no_dropout, save_model
    from gvpo.model.reference import Reference
    from gvpo.model.reward_model import RewardModel
    from gvpo.model.round_trip import verify_round_trip
    from gvpo.model.tokenizer import encode_prompt, load_tokenizer, pad_id

__all__ = [
    "Ending",
    "Reference",
    "RewardModel",
    "encode_prompt",
    "ending",
    "load_model",
    "load_tokenizer",
    "merge_adapter",
    "no_dropout",
    "pad_id",
    "save_model",
    "verify_round_trip",
]

_MODULES = {
    "Ending": "endings",
    "Reference": "reference",
    "RewardModel": "reward_model",
    "encode_prompt": "tokenizer",
    "ending": "endings",
    "load_model": "model",
    "load_tokenizer": "tokenizer",
    "merge_adapter": "merge",
    "no_dropout": "model",
    "pad_id": "tokenizer",
    "save_model": "model",
    "verify_round_trip": "round_trip",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
