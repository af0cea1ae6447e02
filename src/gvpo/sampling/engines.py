"""Registry of sampling engines by the name used on the command line and in recipes.

An engine is one module with a function that returns a `Sampler`, and one line in `ENGINES`. The module is imported when
the engine is opened, so this module loads neither torch nor the engine's package (docs/internals/adding.md).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from gvpo import lazy
from gvpo.errors import ConfigError
from gvpo.nearest import did_you_mean
from gvpo.sampling.base import Sampler

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Precision = Literal["auto", "float32", "bfloat16"]
"""Precision of weights and arithmetic; auto is bfloat16 on a GPU and float32 elsewhere."""


@dataclass(frozen=True)
class EngineOptions:
    """Options for loading an engine's model.

    Args:
        dtype: Precision.
        tokens_per_batch: Maximum number of tokens in the cache at any time.
    """

    dtype: Precision = "auto"
    tokens_per_batch: int = 65_536


ENGINES = {
    "transformers": "gvpo.sampling.transformers:open_sampler",
}
"""Engine names with the "module:function" that opens each engine, called with model, tokenizer and `EngineOptions`."""


def open_engine(
    name: str, model: str, tokenizer: "PreTrainedTokenizerBase", options: EngineOptions | None = None
) -> Sampler:
    """Return a sampler of a model.

    Args:
        name: A key of `ENGINES`.
        model: Directory or Hub model ID.
        tokenizer: The model's tokenizer.
        options: Options for loading the model.

    Raises:
        ConfigError: If the engine is unknown.
        ModelError: If the model cannot be loaded.
    """
    check_engine(name)
    sampler: Sampler = lazy.named(ENGINES[name])(model, tokenizer, options or EngineOptions())
    return sampler


def check_engine(name: str) -> None:
    """Raise an error if no engine has this name.

    Raises:
        ConfigError: If the engine is unknown. The message suggests the nearest name.
    """
    if name not in ENGINES:
        hint = did_you_mean(name, ENGINES, f"choose one of {', '.join(ENGINES)}")
        raise ConfigError(f"there is no engine {name!r}{hint}")
