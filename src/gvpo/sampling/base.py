"""Protocols of samplers, their requests and parameters. This module does not import torch."""

import dataclasses
import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from gvpo.errors import ConfigError
from gvpo.sampling.exclusion.spec import Exclusion
from gvpo.types import Completion, Problem

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class SamplingParams:
    """Sampling parameters of completions.

    Args:
        group_size: Number of completions per prompt, k.
        max_tokens: Maximum number of tokens per completion, including the stop token.
        temperature: Divisor of the logits; 0 selects the most likely token.
        top_p: Sample from the smallest set of most likely tokens with at least this total probability; 1 is off.
        top_k: Sample from this many most likely tokens; 0 is off.
        stop_token_ids: Tokens that end a completion, in addition to the model's own.
        exclusion: Restriction of the contents of completions. It is applied before top-k and top-p.

    Raises:
        ConfigError: If a value is out of range.
    """

    group_size: int = 8
    max_tokens: int = 512
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop_token_ids: tuple[int, ...] = ()
    exclusion: Exclusion = field(default_factory=Exclusion)

    def __post_init__(self) -> None:
        for ok, message in (
            (self.group_size >= 1, f"group_size={self.group_size}: sample at least 1 completion per prompt"),
            (self.max_tokens >= 1, f"max_tokens={self.max_tokens}: allow at least 1 token"),
            (0 <= self.temperature < math.inf, f"temperature={self.temperature}: use 0 (greedy) or more"),
            (0 < self.top_p <= 1, f"top_p={self.top_p}: use more than 0 and at most 1 (off)"),
            (self.top_k >= 0, f"top_k={self.top_k}: use 0 (off) or more"),
        ):
            if not ok:
                raise ConfigError(message)


@dataclass(frozen=True)
class Request:
    """A prompt to complete.

    Args:
        id: Identifies the prompt. With seed, step and row it determines the noise, so it must be unique in a call.
        prompt: Token ids, at least one.
        max_tokens: Maximum number of tokens of its completions, if it is smaller than that of the sampling parameters.
        problem: The problem, which an environment needs for its columns; samplers of tokens do not read it.
    """

    id: str
    prompt: tuple[int, ...]
    max_tokens: int | None = None
    problem: Problem | None = None


class Sampler(Protocol):
    """Samples completions from a policy.

    A sampler that can yield groups as they finish also implements `StreamingSampler`. One that keeps a copy of the
    weights also implements `UpdatableSampler`, and `AdapterSampler` if it can serve adapters. A sampler has these
    methods only if it keeps their promises. A `close` method is called at the end, if there is one.
    """

    def sample(
        self, requests: Sequence[Request], params: SamplingParams, *, seed: int, step: int
    ) -> list[list[Completion]]:
        """Sample `params.group_size` completions for each request, in order.

        Args:
            requests: Prompts with distinct ids.
            params: Sampling parameters.
            seed: Random seed of the run.
            step: Number of the rollout. With the seed, the prompt's id and the row it determines the noise.

        Returns:
            The rows of each request. Each row has its tokens (including the stop token), its text, one log-prob per
            token in nats under the distribution that the token was drawn from (after temperature, exclusion, top-k and
            top-p), and its finish reason. It has no reward yet. It has no version, which the source of groups sets,
            unless the sampler has an `update`: then that of the latest one.

        Raises:
            DataError: If a prompt is empty or leaves no room in the model's context, or if two requests have the same
                id.
            ModelError: If the model cannot be sampled.
            ConfigError: If the engine does not support `params`.
        """
        ...


@runtime_checkable
class StreamingSampler(Sampler, Protocol):
    """Yields each group when all of its rows are sampled, so that rewards need not wait for the slowest group."""

    def stream(
        self, requests: Sequence[Request], params: SamplingParams, *, seed: int, step: int
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Sample the same rows as `sample` with the same arguments, and yield each group as soon as it is finished.

        Yields:
            The position of a request in `requests`, and its rows in order. Each request is yielded once; their order is
            arbitrary.

        Raises:
            GvpoError: In the cases of `sample`. Groups that were yielded before stay valid.
        """
        ...


@runtime_checkable
class UpdatableSampler(Sampler, Protocol):
    """Keeps a copy of the policy's weights, which an `update` replaces."""

    def update(self, weights: "Iterable[tuple[str, Tensor]]", version: int) -> None:
        """Replace the weights. After the return, all tokens are sampled from the new weights, without older caches.

        Args:
            weights: Name and tensor of each entry of the policy's `state_dict()`, including tied ones. The tensors are
                complete even if ranks keep shards. They may only be read during the call.
            version: Number of completed training steps of the policy with these weights; not smaller than in the last
                call. Rows sampled from now on have this version.

        Raises:
            ModelError: If a name is unknown or missing, or if a shape differs. The sampler must not be used afterwards.
        """
        ...


@runtime_checkable
class AdapterSampler(Sampler, Protocol):
    """Serves a LoRA policy as a fixed base model and an adapter, which an `update_adapter` replaces."""

    def update_adapter(self, directory: Path, version: int) -> None:
        """Sample from this adapter on the base model from now on, without older caches.

        Args:
            directory: Adapter in PEFT's format. It stays until the next call has returned.
            version: Number of completed training steps of the policy with this adapter; see `UpdatableSampler.update`.

        Raises:
            ModelError: If the adapter does not fit the base model. The sampler must not be used afterwards.
        """
        ...


def shares_model(sampler: Sampler) -> bool:
    """Return whether a sampler samples from the trainer's own model, or from no model that the trainer updates.

    A sampler with weights of its own has the attribute `shares_model = False`.
    """
    return bool(getattr(sampler, "shares_model", True))


def is_concurrent(sampler: Sampler) -> bool:
    """Return whether several threads may sample at once; such a sampler has the attribute `concurrent = True`."""
    return bool(getattr(sampler, "concurrent", False))


def streamed(
    sampler: Sampler, requests: Sequence[Request], params: SamplingParams, *, seed: int, step: int
) -> Generator[tuple[int, list[Completion]]]:
    """Yield the position and the rows of each request, as soon as the sampler can; see `StreamingSampler.stream`."""
    if isinstance(sampler, StreamingSampler):
        yield from sampler.stream(requests, params, seed=seed, step=step)
    else:
        yield from enumerate(sampler.sample(requests, params, seed=seed, step=step))


def support_warning(params: SamplingParams, objective: str = "gvpo") -> str | None:
    """Return why these settings violate the assumption of GVPO's theorem about samplers, or None if they do not.

    The optimum of GVPO, and of objectives with the same theorem, is unique for every sampling distribution whose
    support covers the reference's (arXiv 2504.19599): tokens that can never be sampled are never corrected.
    """
    cuts = _cuts(params)
    if not cuts:
        return None
    return (
        f"sampling with {' and '.join(cuts)} never samples some tokens, so the optimum of {objective.upper()} is no "
        "longer unique; for training use temperature > 0, top_k=0 and top_p=1, without exclusions"
    )


def ratio_warning(params: SamplingParams, objective: str) -> str | None:
    """Return why these settings bias an objective whose old log-probs are the trainer's, or None if they do not.

    The trainer computes them under the full distribution, while the completions come from a part of it. An exclusion
    has the same effect, but it is never set by accident.
    """
    cuts = _cuts(dataclasses.replace(params, exclusion=Exclusion()))
    if not cuts:
        return None
    return (
        f"sampling with {' and '.join(cuts)} uses another distribution than the one whose log-probs {objective} "
        "compares with, so its gradient is biased; set rollout.old_logprobs='sampler', or for training use top_k=0 "
        "and top_p=1"
    )


def _cuts(params: SamplingParams) -> list[str]:
    """Return the settings that keep some tokens from ever being sampled."""
    found = (
        (params.temperature == 0, "temperature=0"),
        (params.top_k > 0, f"top_k={params.top_k}"),
        (params.top_p < 1, f"top_p={params.top_p}"),
        (bool(params.exclusion), "an exclusion (sampling.allow, sampling.ban)"),
    )
    return [text for cut, text in found if cut]
