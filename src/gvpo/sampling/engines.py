"""Sampling engines by name: what a command line or a recipe calls them, and how they are opened.

An engine is imported when it is opened. Another one is a function in `ENGINES` that gives a `Sampler`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

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


def open_engine(
    name: str, model: str, tokenizer: "PreTrainedTokenizerBase", options: EngineOptions | None = None
) -> Sampler:
    """A sampler of a model.

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
    return ENGINES[name](model, tokenizer, options or EngineOptions())


def check_engine(name: str) -> None:
    """Nothing, if there is an engine of that name.

    Raises:
        ConfigError: there is none; the nearest is named.
    """
    if name not in ENGINES:
        hint = did_you_mean(name, ENGINES, f"choose one of {', '.join(ENGINES)}")
        raise ConfigError(f"there is no engine {name!r}{hint}")


def _transformers(model: str, tokenizer: "PreTrainedTokenizerBase", options: EngineOptions) -> Sampler:
    import torch

    from gvpo.model.model import load_model
    from gvpo.sampling.transformers import TransformersSampler

    device = "cuda" if torch.cuda.is_available() else "cpu"
    half = options.dtype == "bfloat16" or (options.dtype == "auto" and device != "cpu")
    loaded = load_model(model, dtype=torch.bfloat16 if half else torch.float32, device=device)
    return TransformersSampler(loaded, tokenizer, tokens_per_batch=options.tokens_per_batch)


ENGINES: dict[str, Callable[[str, "PreTrainedTokenizerBase", EngineOptions], Sampler]] = {
    "transformers": _transformers,
}
"""By name: how an engine is opened."""
