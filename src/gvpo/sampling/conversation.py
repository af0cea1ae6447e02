"""Sampling in turns: rows that speak, hear tokens that are appended to them, and speak again.

A sampler that can continue rows from its cache implements `ConversingSampler`. `Restarting` makes any sampler speak in
turns: each turn is a new request, whose prompt is everything so far. Both draw the same tokens, because the noise of a
turn depends only on the seed, the step, the request, the row and the number of the turn.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from gvpo.errors import ConfigError
from gvpo.sampling.base import Request, Sampler, SamplingParams
from gvpo.sampling.stops import StopTexts
from gvpo.types import Completion


class Conversation(Protocol):
    """Rows that are sampled in turns: `group_size` rows per request, numbered request by request."""

    def speak(self, limits: Mapping[int, int]) -> dict[int, Completion]:
        """Sample a turn of some rows.

        Args:
            limits: Maximum number of tokens of each row that speaks.

        Returns:
            The turn of each row: only its own new tokens, as `Sampler.sample` returns completions.
        """
        ...

    def hear(self, heard: Mapping[int, Sequence[int]]) -> None:
        """Append tokens to the rows that spoke and will speak again; rows that are not named never speak again."""
        ...


@runtime_checkable
class ConversingSampler(Sampler, Protocol):
    """Continues rows from its cache."""

    def batches(self, requests: Sequence[Request], params: SamplingParams) -> list[list[int]]:
        """Return the positions of requests that a conversation can hold at once, batch by batch."""
        ...

    def converse(self, requests: Sequence[Request], params: SamplingParams, *, seed: int, step: int) -> Conversation:
        """Begin a conversation with one batch of requests; see `Sampler.sample` for the arguments and errors.

        `params.max_tokens` is the limit of a whole episode, including tokens that are heard.
        """
        ...


def turn_id(request: Request, row: int, turn: int) -> str:
    """Return the ID of a row's turn, which determines its noise."""
    return f"{request.id}/{row}/{turn}"


class Restarting:
    """Lets any sampler speak in turns. Each turn is a request of its own, with everything so far as its prompt.

    Args:
        sampler: Sampler of whole completions.
    """

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler

    def batches(self, requests: Sequence[Request], params: SamplingParams) -> list[list[int]]:
        """Return one batch; the sampler splits it itself."""
        return [list(range(len(requests)))]

    def converse(self, requests: Sequence[Request], params: SamplingParams, *, seed: int, step: int) -> "Restarted":
        """Begin a conversation; see `ConversingSampler.converse`."""
        return Restarted(self._sampler, requests, params, seed, step)


class Restarted:
    """A conversation of `Restarting`."""

    def __init__(
        self, sampler: Sampler, requests: Sequence[Request], params: SamplingParams, seed: int, step: int
    ) -> None:
        self._sampler, self._seed, self._step, self._turn = sampler, seed, step, 0
        self._params = dataclasses.replace(params, group_size=1)
        size = params.group_size
        self._rows = [(request, row) for request in requests for row in range(size)]
        self._texts: dict[int, tuple[int, ...]] = {
            number: tuple(request.prompt) for number, (request, _) in enumerate(self._rows)
        }

    def speak(self, limits: Mapping[int, int]) -> dict[int, Completion]:
        """Sample a turn; see `Conversation.speak`."""
        if not limits:
            return {}
        requests = [
            Request(turn_id(*self._rows[row], self._turn), self._texts[row], max_tokens=limit)
            for row, limit in limits.items()
        ]
        sampled = self._sampler.sample(requests, self._params, seed=self._seed, step=self._step)
        self._turn += 1
        spoken = {row: completions[0] for row, completions in zip(limits, sampled, strict=True)}
        for row, completion in spoken.items():
            self._texts[row] += tuple(completion.tokens)
        return spoken

    def hear(self, heard: Mapping[int, Sequence[int]]) -> None:
        """Append tokens; see `Conversation.hear`."""
        self._texts = {row: self._texts[row] + tuple(tokens) for row, tokens in heard.items()}


def conversing(sampler: Sampler) -> ConversingSampler | Restarting:
    """Return a sampler that speaks in turns: the sampler itself if it can continue rows, otherwise `Restarting`.

    Raises:
        ConfigError: If the sampler cuts texts at stop texts, after which no turn can follow.
    """
    if isinstance(sampler, StopTexts):
        raise ConfigError(
            "stop texts cut a completion's text and not its tokens, so no turn can follow; let a token end the turns "
            "of an episode (sampling.stop_token_ids)"
        )
    return sampler if isinstance(sampler, ConversingSampler) else Restarting(sampler)
