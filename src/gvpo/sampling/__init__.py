"""Sampling of completions: the protocol, its settings, and noise. `gvpo.sampling.transformers` is the engine."""

from gvpo.sampling.base import (
    Request,
    Sampler,
    SamplingParams,
    StreamingSampler,
    UpdatableSampler,
    ratio_warning,
    streamed,
    support_warning,
)

__all__ = [
    "Request",
    "Sampler",
    "SamplingParams",
    "StreamingSampler",
    "UpdatableSampler",
    "ratio_warning",
    "streamed",
    "support_warning",
]
