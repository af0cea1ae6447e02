"""Conversations whose rows continue from their caches.

    n prompts ──prefill──▶ cache of the turn's start ──────────── kept ───────────▶ extend ──▶ next start
                                      └──decode──▶ a turn per row ──▶ its tokens, and those that it hears ──┘

Decoding changes its cache, removes rows that have finished, and computes rows that have. The cache of the turn's start
has neither problem: it shares its tensors with decoding, which copies them anyway. The tokens of a turn are computed a
second time, in one forward with those that are heard after it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from transformers import PreTrainedModel

from gvpo.sampling.base import Request, SamplingParams
from gvpo.sampling.conversation import turn_id
from gvpo.sampling.decode import DecodingRow
from gvpo.sampling.prefill import Prefilled, extend, prefill, shared
from gvpo.types import Completion


class CacheSampler(Protocol):
    """Samples from a model in this process, from caches of its own."""

    @property
    def model(self) -> PreTrainedModel:
        """Return the model."""
        ...

    @property
    def pad(self) -> int:
        """Return the id of the padding token."""
        ...

    def at_work(self) -> AbstractContextManager[int | None]:
        """Return a context in which the model may be sampled and its weights stay; it yields their version."""
        ...

    def limits(self, requests: Sequence[Request], params: SamplingParams) -> list[int]:
        """Return the maximum number of tokens per completion of each request; see `token_limits`."""
        ...

    def decoded(self, start: Prefilled, rows: Sequence[DecodingRow], params: SamplingParams) -> list[Completion]:
        """Sample rows to their ends from a cache, which must not be used afterwards."""
        ...


class Continued:
    """A conversation whose rows continue from their caches; see `Conversation`.

    If the weights have changed since the last turn, the caches are computed again.

    Args:
        sampler: Sampler of the model.
        requests: Prompts; each has `params.group_size` rows.
        params: Sampling parameters.
        seed: Random seed of the run.
        step: Number of the rollout.
    """

    def __init__(
        self, sampler: CacheSampler, requests: Sequence[Request], params: SamplingParams, seed: int, step: int
    ) -> None:
        self._sampler, self._params, self._seed, self._step, self._turn = sampler, params, seed, step, 0
        self._rows = [(request, row) for request in requests for row in range(params.group_size)]
        self._texts = {number: tuple(request.prompt) for number, (request, _) in enumerate(self._rows)}
        self._start: Prefilled | None = None
        self._places: dict[int, int] = {}
        """Place of each row in the cache of the turn's start."""
        self._version: int | None = None

    def speak(self, limits: Mapping[int, int]) -> dict[int, Completion]:
        """Sample a turn; see `Conversation.speak`.

        Raises:
            DataError: If a row leaves no room in the model's context.
            ModelError: If a row has tokens outside the vocabulary, or logits are not finite.
        """
        if not limits:
            return {}
        requests = [
            Request(turn_id(*self._rows[row], self._turn), self._texts[row], max_tokens=limit)
            for row, limit in limits.items()
        ]
        with self._sampler.at_work() as version:
            most = self._sampler.limits(requests, self._params)
            start = self._started(list(limits), version)
            rows = [
                DecodingRow.of(request, self._places[row], 0, limit, self._seed, self._step)
                for request, row, limit in zip(requests, limits, most, strict=True)
            ]
            sampled = self._sampler.decoded(shared(start), rows, self._params)
        self._start, self._version = start, version
        self._turn += 1
        spoken = {
            row: dataclasses.replace(completion, version=version)
            for row, completion in zip(limits, sampled, strict=True)
        }
        for row, completion in spoken.items():
            self._texts[row] += tuple(completion.tokens)
        return spoken

    def hear(self, heard: Mapping[int, Sequence[int]]) -> None:
        """Append tokens; see `Conversation.hear`."""
        self._texts = {row: self._texts[row] + tuple(tokens) for row, tokens in heard.items()}
        if not heard:
            self._start = None

    def _started(self, rows: Sequence[int], version: int | None) -> Prefilled:
        """Return the cache of the beginning of a turn, and remember the place of each row in it."""
        texts = [self._texts[row] for row in rows]
        model, start, places = self._sampler.model, self._start, self._places
        if start is None or version != self._version or not places.keys() >= set(rows):
            different = list(dict.fromkeys(texts))
            self._places = {row: different.index(text) for row, text in zip(rows, texts, strict=True)}
            return prefill(model, different, self._sampler.pad)
        owners = [places[row] for row in rows]
        self._places = {row: place for place, row in enumerate(rows)}
        self._start = None  # its memory is not needed once the rows are selected
        return extend(model, start, owners, texts)
