"""Registry of sampling engines by the name used on the command line and in recipes.

An engine is one module with a function that returns a `Sampler`, and one line in `ENGINES`. The module is imported when
the engine is opened, so this module loads neither torch nor the engine's package (docs/internals/adding.md).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gvpo import lazy
from gvpo.errors import ConfigError
from gvpo.nearest import did_you_mean
from gvpo.sampling.base import Sampler

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from gvpo.config import TrainConfig

Precision = Literal["auto", "float32", "bfloat16"]
"""Precision of weights and arithmetic; auto is bfloat16 on a GPU and float32 elsewhere."""


NEXT_TO_A_TRAINER = 0.3
"""Share of a GPU's memory for the engine vllm in the process of a training run."""


@dataclass(frozen=True)
class EngineOptions:
    """Options for opening an engine. The settings of [sampling] have the same names.

    Args:
        dtype: Precision of the engine's own weights.
        tokens_per_batch: Maximum number of tokens in the cache at any time (transformers).
        engine_options: Arguments of `vllm.LLM` (vllm).
        engine_sleep: Whether the engine releases its memory between samplings (vllm).
        server_urls: Base URLs (server).
        server_api_key_env: Environment variable with the API key; None sends none (server).
        server_deadline: Seconds per completion, including all retries (server).
        server_concurrency: Maximum number of concurrent completions per server (server).
        weight_transfer: Transport of weights to servers.
        transfer_dir: Directory that trainer and engines share; None is the default of `gvpo.sampling.transfer`.
        in_flight_updates: Whether unfinished completions continue with new weights (server).
    """

    dtype: Precision = "auto"
    tokens_per_batch: int = 65_536
    engine_options: Mapping[str, Any] = field(default_factory=dict)
    engine_sleep: bool = False
    server_urls: Sequence[str] = ()
    server_api_key_env: str | None = None
    server_deadline: float = 600.0
    server_concurrency: int = 256
    weight_transfer: Literal["auto", "file", "nccl", "ipc"] = "auto"
    transfer_dir: Path | None = None
    in_flight_updates: bool = False

    @classmethod
    def of(cls, config: "TrainConfig", *, dtype: Precision = "auto") -> "EngineOptions":
        """Return the options according to the settings of a run."""
        same = [each.name for each in fields(cls) if each.name not in ("dtype", "tokens_per_batch")]
        return cls(dtype, config.tokens_per_batch, **{name: getattr(config, f"sampling_{name}") for name in same})


ENGINES = {
    "transformers": "gvpo.sampling.transformers:open_sampler",
    "vllm": "gvpo.sampling.vllm.engine:open_sampler",
    "server": "gvpo.sampling.server.sampler:open_sampler",
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
