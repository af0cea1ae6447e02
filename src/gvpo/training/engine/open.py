"""The sampler of a run, according to its settings.

engine transformers ──▶ the policy's own sampler, or a sampler of a copy if steps overlap or the dtypes differ
engine vllm, server ──▶ an engine with its own weights, which `Publisher` replaces after each step
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from gvpo import activity, lazy
from gvpo.config import TrainConfig
from gvpo.config.defaults import overlaps
from gvpo.errors import EngineError
from gvpo.sampling import Request, Sampler, SamplingParams
from gvpo.sampling.copied import CopiedSampler
from gvpo.sampling.engines import EngineOptions
from gvpo.training.inputs import Policy, RunInputs
from gvpo.types import Completion
from gvpo.update.distributed import ranks

OPENERS = {
    "vllm": "gvpo.sampling.vllm.engine:open_for_training",
    "server": "gvpo.sampling.server.sampler:open_for_training",
}
"""Engines with their own weights, with the "module:function" that opens each for a run. The function is called with the
policy's model, its tokenizer, the tokens that end a completion (`gvpo.model.endings.Ending`) and `EngineOptions`."""
DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}
"""Dtypes of a copy of the policy; None is the policy's own."""


def needs_copy(config: TrainConfig) -> bool:
    """Return whether the engine transformers samples from a copy of the policy instead of the policy itself."""
    return config.sampling_engine == "transformers" and (overlaps(config) or config.sampling_dtype != "auto")


@contextlib.contextmanager
def engine_of(
    inputs: RunInputs, policy: Policy, config: TrainConfig, autocast: Callable[[], AbstractContextManager[Any]]
) -> Iterator[Sampler]:
    """Open the sampler of a run, and close it at the end of the context.

    Args:
        inputs: Inputs of the run.
        policy: The policy; its own sampler is used if the engine is transformers and no copy is needed.
        config: Settings, with the compute dtype resolved.
        autocast: Function that returns the context in which the policy is computed.

    Raises:
        EngineError, ConfigError, ModelError: If the engine cannot be opened.
    """
    unused = not inputs.plan.samples and not inputs.plan.evaluates
    if unused or (config.sampling_engine == "transformers" and not needs_copy(config)):
        yield policy.sampler
        return
    if not ranks.is_first() and config.sampling_engine != "transformers":
        yield ElsewhereSampler()
        return
    with activity.phase("opening the engine"):
        sampler = _open(inputs, policy, config, autocast)
    try:
        yield sampler
    finally:
        getattr(sampler, "close", lambda: None)()


def _open(
    inputs: RunInputs, policy: Policy, config: TrainConfig, autocast: Callable[[], AbstractContextManager[Any]]
) -> Sampler:
    ending = policy.sampler.ending
    if config.sampling_engine == "transformers":
        dtype = DTYPES[config.sampling_dtype]  # a dtype of its own is that of weights and arithmetic
        return CopiedSampler(
            policy.model,
            inputs.tokenizer,
            dtype=dtype,
            autocast=autocast if dtype is None else contextlib.nullcontext,
            tokens_per_batch=config.tokens_per_batch,
            ending=ending,
        )
    sampler: Sampler = lazy.named(OPENERS[config.sampling_engine])(
        policy.model, inputs.tokenizer, ending, options_of(config)
    )
    return sampler


def options_of(config: TrainConfig) -> EngineOptions:
    """Return the options of the engine according to the settings of a run."""
    dtype = config.compute_dtype if config.sampling_dtype == "auto" else config.sampling_dtype
    return EngineOptions.of(config, dtype=dtype)


class ElsewhereSampler:
    """The sampler of the ranks that do not sample, because the first rank's engine samples for all of them."""

    shares_model = False

    def sample(
        self, requests: Sequence[Request], params: SamplingParams, *, seed: int, step: int
    ) -> list[list[Completion]]:
        """Raise an error, because only the first rank samples."""
        raise EngineError("only the first process of a run samples with this engine")
