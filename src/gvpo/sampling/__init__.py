"""Sampling of completions: the protocol, its settings, and noise. `gvpo.sampling.transformers` is the engine."""

from gvpo.sampling.base import (
    AdapterSampler,
    Request,
    Sampler,
    SamplingParams,
    StreamingSampler,
    UpdatableSampler,
    is_concurrent,
    ratio_warning,
    shares_model,
    streamed,
    support_warning,
)

__all__ = [
    "AdapterSampler",
    "Request",
    "Sampler",
    "SamplingParams",
    "StreamingSampler",
    "UpdatableSampler",
    "is_concurrent",
    "ratio_warning",
    "shares_model",
    "streamed",
    "support_warning",
]
