"""What samplers take and give; nothing here imports torch."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from gvpo.errors import ConfigError
from gvpo.sampling.exclusion.spec import Exclusion
from gvpo.types import Completion

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class SamplingParams:
    """How completions are drawn.

    Args:
        group_size: completions a prompt, k.
        max_tokens: tokens a completion at most, the stop token included.
        temperature: divides the logits; 0 takes the most likely token.
        top_p: draw from the smallest set of tokens with at least this probability; 1 is off.
        top_k: draw from this many most likely tokens; 0 is off.
        stop_token_ids: tokens that end a completion besides the model's own.
        exclusion: what completions may consist of; tokens are excluded before top-k and top-p.

    Raises:
        ConfigError: a value out of range.
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
            (self.group_size >= 1, f"group_size={self.group_size}: draw at least 1 completion a prompt"),
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
        id: names the prompt; with seed, step and row it fixes the sampling noise, so it is unique in a call.
        prompt: its token ids, at least one.
    """

    id: str
    prompt: tuple[int, ...]


class Sampler(Protocol):
    """Draws completions from a policy.

    A sampler that can give groups as they finish is also a `StreamingSampler`, and one that keeps a copy of the weights
    is also an `UpdatableSampler`. It has those methods only if it does what they say.
    """

    def sample(
        self, requests: Sequence[Request], params: SamplingParams, *, seed: int, step: int
    ) -> list[list[Completion]]:
        """Draw `params.group_size` completions of each request, in order.

        Args:
            requests: prompts with distinct ids.
            params: how to draw.
            seed: of the run.
            step: the rollout's number; with the seed, a prompt's id and the row it fixes the noise.

        Returns:
            For each request its rows. Each row has its tokens (the stop token included), its text, one log-prob in nats
            per token of the full distribution, and why it ended. It has no reward yet. Its version is `step`, or that
            of the newest `update`.

        Raises:
            DataError: a prompt is empty or leaves no room in the model's context, or two requests have the same id.
            ModelError: the model cannot be sampled.
            ConfigError: the engine cannot draw as `params` say.
        """
        ...


@runtime_checkable
class StreamingSampler(Sampler, Protocol):
    """Gives each group when all of its rows are drawn, so that rewards need not wait for the slowest group."""

    def stream(
        self, requests: Sequence[Request], params: SamplingParams, *, seed: int, step: int
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Draw what `sample` draws with the same arguments, and yield it as it is finished.

        Yields:
            The position of a request in `requests`, and its rows in order. Each request comes once, in any order.

        Raises:
            GvpoError: as `sample`. Groups that were yielded before stay valid.
        """
        ...


@runtime_checkable
class UpdatableSampler(Sampler, Protocol):
    """Keeps a copy of the policy's weights, which an `update` replaces."""

    def update(self, weights: "Iterable[tuple[str, Tensor]]", version: int) -> None:
        """Replace the weights. On return, everything that is drawn is drawn from the new ones, with no older cache.

        Args:
            weights: name and tensor of each entry of the policy's `state_dict()`, tied ones included; whole tensors,
                also where ranks hold parts. They may be read during the call only.
            version: number of completed training steps of the policy that the weights belong to; no smaller than the
                last one. Rows that are drawn from now on have this version.

        Raises:
            ModelError: a name is unknown or missing, or a shape differs. The sampler must not be used afterwards.
        """
        ...


def support_warning(params: SamplingParams) -> str | None:
    """Why these settings break what GVPO's theorem asks of a sampler; None if they do not.

    Its optimum is unique for any sampling distribution whose support covers the reference's (arXiv 2504.19599): tokens
    that can never be drawn are never corrected.
    """
    cuts = _cuts(params)
    if not cuts:
        return None
    return (
        f"sampling with {' and '.join(cuts)} never draws some tokens, so GVPO's optimum is no longer unique; "
        "for training use temperature > 0, top_k=0 and top_p=1, and exclude nothing"
    )


def ratio_warning(params: SamplingParams, objective: str) -> str | None:
    """Return why these settings bias an objective with ratios; None if they do not.

    Its old log-probs are those of the whole distribution, and the completions come from a part of it. An exclusion does
    the same, but nobody sets one by accident.
    """
    cuts = _cuts(dataclasses.replace(params, exclusion=Exclusion()))
    if not cuts:
        return None
    return (
        f"sampling with {' and '.join(cuts)} draws from another distribution than the one whose log-probs {objective} "
        "compares with, so its gradient is biased; for training use top_k=0 and top_p=1"
    )


def _cuts(params: SamplingParams) -> list[str]:
    """Return the settings by which some tokens are never drawn."""
    found = (
        (params.temperature == 0, "temperature=0"),
        (params.top_k > 0, f"top_k={params.top_k}"),
        (params.top_p < 1, f"top_p={params.top_p}"),
        (bool(params.exclusion), "an exclusion (sampling.allow, sampling.ban)"),
    )
    return [text for cut, text in found if cut]
