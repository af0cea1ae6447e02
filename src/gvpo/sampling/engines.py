"""Sampling engines by name: what a command line or a recipe calls them, and how they are opened.

An engine is one module with a function that returns a `Sampler`, and one line in `ENGINES`. The module is imported when
the engine is opened, so this one loads neither torch nor the engine's package (docs/internals/adding.md).
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
"""Of weights and arithmetic; auto is bfloat16 on a GPU and float32 elsewhere."""


@dataclass(frozen=True)
class EngineOptions:
    """How an engine holds its model.

    Args:
        dtype: precision.
        tokens_per_batch: tokens held in the cache at once.
    """

    dtype: Precision = "auto"
    tokens_per_batch: int = 65_536


ENGINES = {
    "transformers": "gvpo.sampling.transformers:open_sampler",
}
"""By name: "module:function" that opens the engine, called with model, tokenizer and `EngineOptions`."""


def open_engine(
    name: str, model: str, tokenizer: "PreTrainedTokenizerBase", options: EngineOptions | None = None
) -> Sampler:
    """Return a sampler of a model.

    Args:
        name: a key of `ENGINES`.
        model: directory or hub id.
        tokenizer: the model's.
        options: how the engine holds the model.

    Raises:
        ConfigError: there is no such engine.
        ModelError: the model cannot be loaded.
    """
    check_engine(name)
    sampler: Sampler = lazy.named(ENGINES[name])(model, tokenizer, options or EngineOptions())
    return sampler


def check_engine(name: str) -> None:
    """Raise an error if there is no engine of that name.

    Raises:
        ConfigError: there is none; the message suggests the nearest name.
    """
    if name not in ENGINES:
        hint = did_you_mean(name, ENGINES, f"choose one of {', '.join(ENGINES)}")
        raise ConfigError(f"there is no engine {name!r}{hint}")
