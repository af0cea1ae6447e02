"""What a model's configuration says about how the update may compute it.

The update asks a loaded model's configuration, and the planner asks a config.json; both get the same answer here.
"""

import re
from collections.abc import Mapping
from typing import Any

_AFTER_THE_HEAD = (
    "final_logit_softcapping",
    "logits_scaling",
    "logit_scale",
    "lm_head_multiplier",
    "output_multiplier",
)
"""Settings by which architectures change their logits after the head, unless the setting is 1."""

_SHARED_ATTENTION = {"full_attention", "sliding_attention"}
_LOCAL = re.compile(r"(window|block|chunk)_size$|^index_|^attention_types$")
"""Settings by which architectures say that a token does not see all before it; `sliding_window` has its own test."""


def logits_are_linear(config: Any) -> bool:
    """Return whether nothing changes the logits between the head and the softmax, as far as the configuration tells.

    Args:
        config: a configuration of transformers or config.json as a mapping, of the language part alone.
    """
    return all(_value(config, name) in (None, 1, 1.0) for name in _AFTER_THE_HEAD)


def why_not_shared(config: Any) -> str:
    """Return what forbids that completions share their prompt by attention; "" if nothing does.

    Args:
        config: a configuration of transformers or config.json as a mapping, of the language part alone.
    """
    other = sorted(set(_value(config, "layer_types") or ()) - _SHARED_ATTENTION)
    if other:
        return f"it has layers of type {', '.join(other)}"
    if _value(config, "attn_logit_softcapping") is not None:
        return "its attention caps its scores"
    settings = config if isinstance(config, Mapping) else vars(config)
    local = sorted(name for name, value in settings.items() if _LOCAL.search(name) and value)
    return f"its attention is local ({', '.join(local)})" if local else ""


def _value(config: Any, name: str) -> Any:
    return config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)
