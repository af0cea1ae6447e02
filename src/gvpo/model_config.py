"""Properties of a model's configuration that determine how the update may compute it.

The update passes a loaded model's configuration, and the planner passes a config.json; both get the same result here.
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
"""Settings of architectures that change the logits after the head, unless the setting is 1."""

_SHARED_ATTENTION = {"full_attention", "sliding_attention"}
_LOCAL = re.compile(r"(window|block|chunk)_size$|^index_|^attention_types$")
"""Settings of architectures in which a token does not attend to all before it; `sliding_window` has its own test."""


def logits_are_linear(config: Any) -> bool:
    """Return whether the logits are not changed between the head and the softmax, according to the configuration.

    Args:
        config: A configuration of transformers, or config.json as a mapping; only of the language part.
    """
    return all(_value(config, name) in (None, 1, 1.0) for name in _AFTER_THE_HEAD)


def why_not_shared(config: Any) -> str:
    """Return the reason why completions cannot share their prompt by attention, or "" if they can.

    Args:
        config: A configuration of transformers, or config.json as a mapping; only of the language part.
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
