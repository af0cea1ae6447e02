"""Sampling with transformers' own models and caches.

    n prompts, left-padded ──prefill──▶ cache [n] ──repeat──▶ cache [n k] ──decode, token by token──▶ completions
                                                                 └─ finished rows leave it now and then

Each prompt is computed once, regardless of its number of completions. Noise is counter-based (`gvpo.sampling.noise`),
so a row's tokens depend on (seed, step, prompt id, row) and the weights. The batch changes logits only by float
rounding.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gvpo import notices
from gvpo.errors import ModelError
from gvpo.model import endings
from gvpo.model.known_tokens import restrict
from gvpo.model.matmul import fast_linears, wide_head
from gvpo.model.model import context_length, load_model, vocabulary_size
from gvpo.model.tokenizer import pad_id
from gvpo.sampling.base import Request, SamplingParams
from gvpo.sampling.continued import Continued
from gvpo.sampling.conversation import Restarted
from gvpo.sampling.decode import DecodedRow, DecodingRow, Tally, decode
from gvpo.sampling.engines import EngineOptions
from gvpo.sampling.exclusion.exclusion import CompiledExclusion
from gvpo.sampling.exclusion.spec import Exclusion
from gvpo.sampling.exclusion.transformers import compile_exclusion
from gvpo.sampling.limits import token_limits
from gvpo.sampling.prefill import Prefilled, is_extensible, prefill
from gvpo.sampling.texts import completion_texts
from gvpo.types import Completion

LOG_ALLOWED = "log_allowed"
"""Key in a completion's extras if an exclusion applied: sum_t log P_t(allowed), for `sequence_weights`."""


class TransformersSampler:
    """Samples completions from a transformers model in this process.

    Args:
        model: Causal language model. It is restricted to the tokenizer's tokens, in updates too. It is sampled in eval
            mode, and its previous mode is restored. Autocast is up to the caller.
        tokenizer: Tokenizer of the model, for stop tokens, padding and text.
        tokens_per_batch: Maximum number of tokens in the cache at any time, including prompts and the longest
            completions. A completion that needs more is sampled in its own batch.
        ending: Tokens that end a completion. The default is read from the tokenizer, chat template and generation
            config.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        tokens_per_batch: int = 65_536,
        ending: endings.Ending | None = None,
    ) -> None:
        self.model, self.tokenizer, self.tokens_per_batch = model, tokenizer, tokens_per_batch
        self.ending = ending or endings.ending(tokenizer, model)
        restrict(model, tokenizer)
        self._exclusions: dict[tuple[Exclusion, tuple[int, ...]], CompiledExclusion] = {}

    def exclusion(self, params: SamplingParams) -> CompiledExclusion | None:
        """Return the compiled exclusion of `params` for this model, or None if there is no exclusion. Cache it.

        Raises:
            ConfigError: If the exclusion cannot be satisfied or read.
            ModelError: If the bytes of the tokenizer's tokens cannot be determined.
        """
        if not params.exclusion:
            return None
        key = (params.exclusion, self._stops(params))
        if key not in self._exclusions:
            self._exclusions[key] = compile_exclusion(key[0], self.model, self.tokenizer, stops=key[1])
        return self._exclusions[key]

    def sample(
        self, requests: Sequence[Request], params: SamplingParams, *, seed: int, step: int
    ) -> list[list[Completion]]:
        """Sample `params.group_size` completions for each request; see `Sampler.sample`.

        Raises:
            DataError: If a prompt is empty or leaves no room in the model's context, or if ids are not distinct.
            ModelError: If the model has no usable cache, a prompt has tokens outside the vocabulary, or logits are not
                finite.
            ConfigError: If an exclusion cannot be satisfied.
        """
        with _sampling_mode(self.model):
            found = dict(self._groups(requests, params, seed, step))
        return [found[index] for index in range(len(requests))]

    def batches(self, requests: Sequence[Request], params: SamplingParams) -> list[list[int]]:
        """Return the positions of requests that a conversation can hold at once; see `ConversingSampler.batches`.

        A conversation has two caches, that of the beginning of a turn and that of decoding.
        """
        if not self._continues(params):
            return [list(range(len(requests)))] if requests else []
        return list(plan(requests, self.limits(requests, params), params.group_size, self.tokens_per_batch // 2))

    def converse(
        self, requests: Sequence[Request], params: SamplingParams, *, seed: int, step: int
    ) -> Continued | Restarted:
        """Begin a conversation; see `ConversingSampler.converse`.

        Rows continue from their caches. Turns restart if the caches do not fit the budget, if the model has layers with
        windows or states, or if there is an exclusion, whose text begins with each turn.

        Raises:
            GvpoError: In the cases of `sample`.
        """
        if self._continues(params):
            width = max(
                len(each.prompt) + limit for each, limit in zip(requests, self.limits(requests, params), strict=True)
            )
            if 2 * len(requests) * params.group_size * width <= self.tokens_per_batch:
                return Continued(self, requests, params, seed, step)
        return Restarted(self, requests, params, seed, step)

    def stream(
        self, requests: Sequence[Request], params: SamplingParams, *, seed: int, step: int
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Yield each group of `sample` as soon as it is finished; see `StreamingSampler.stream`.

        Raises:
            GvpoError: In the cases of `sample`.
        """
        groups = self._groups(requests, params, seed, step)
        while True:
            with _sampling_mode(self.model):  # not while the caller works on a group
                found = next(groups, None)
            if found is None:
                return
            yield found

    @contextmanager
    def at_work(self) -> Iterator[int | None]:
        """Yield the version of the weights, in a context in which the model may be sampled."""
        with _sampling_mode(self.model):
            yield None

    @property
    def pad(self) -> int:
        """Return the id of the padding token."""
        return pad_id(self.tokenizer)

    @property
    def rows_at_once(self) -> int:
        """Return the number of rows from which larger batches no longer increase the speed much."""
        return 64 if self.model.device.type == "cpu" else 256

    def _groups(
        self, requests: Sequence[Request], params: SamplingParams, seed: int, step: int
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Yield the position and the completions of each request, in sampling mode."""
        limits, size = self.limits(requests, params), params.group_size
        tally = Tally(len(requests) * size)
        for batch in plan(requests, limits, size, self.tokens_per_batch):
            rows = [
                DecodingRow.of(requests[index], owner, row, limits[index], seed, step)
                for owner, index in enumerate(batch)
                for row in range(size)
            ]
            found: dict[int, list[_Drawn]] = {owner: [] for owner in range(len(batch))}
            for owner, drawn in self._draw([requests[index].prompt for index in batch], rows, params, tally):
                found[owner] += drawn
                if len(found[owner]) == size:
                    yield batch[owner], self._completions(found.pop(owner), params)

    def check(self, requests: Sequence[Request], params: SamplingParams) -> None:
        """Raise the errors that `sample` would raise for these requests, and warn about an uncertain end token."""
        if self.ending.doubt and not params.stop_token_ids:
            notices.warn(self.ending.doubt)
        self.limits(requests, params)

    def limits(self, requests: Sequence[Request], params: SamplingParams) -> list[int]:
        """Return the maximum number of tokens per completion of each request, limited by the room in the context."""
        context, vocabulary = context_length(self.model), vocabulary_size(self.model)
        return token_limits(requests, params.max_tokens, context=context, vocabulary=vocabulary)

    def _draw(
        self, prompts: Sequence[Sequence[int]], rows: Sequence[DecodingRow], params: SamplingParams, tally: Tally
    ) -> Iterator[tuple[int, list["_Drawn"]]]:
        """Decode the rows of some prompts, together if the budget allows. The prompts are computed once."""
        prefilled = prefill(self.model, prompts, self.pad)
        width = max(map(len, prompts)) + max(row.limit for row in rows)
        count = len(rows) if len(prompts) > 1 else max(1, self.tokens_per_batch // width)
        chunks = [rows[i : i + count] for i in range(0, len(rows), count)]
        for number, chunk in enumerate(chunks):
            last = number == len(chunks) - 1
            own = prefilled if last else copy.deepcopy(prefilled)
            found = decode(self.model, own, chunk, params, self._stops(params), self.exclusion(params), tally)
            yield from ((owner, _lists(drawn)) for owner, drawn in found)

    def decoded(self, start: Prefilled, rows: Sequence[DecodingRow], params: SamplingParams) -> list[Completion]:
        """Sample rows to their ends from a cache, which must not be used afterwards. The context is `at_work`."""
        places: dict[int, list[int]] = {}
        for place, row in enumerate(rows):
            places.setdefault(row.owner, []).append(place)
        found: dict[int, _Drawn] = {}
        for owner, drawn in decode(self.model, start, rows, params, self._stops(params), None, Tally(len(rows))):
            found.update(zip(places[owner], _lists(drawn), strict=True))
        return self._completions([found[place] for place in range(len(rows))], params)

    def _continues(self, params: SamplingParams) -> bool:
        return not params.exclusion and self._is_extensible

    @cached_property
    def _is_extensible(self) -> bool:
        """Return whether rows can continue from the model's cache, which one token shows."""
        with self.at_work():
            return is_extensible(prefill(self.model, [[self.pad]], self.pad))

    def _completions(self, drawn: Sequence["_Drawn"], params: SamplingParams) -> list[Completion]:
        stops = self._stops(params)
        texts = completion_texts(self.tokenizer, self.ending, [row.tokens for row in drawn])
        return [
            Completion(
                row.tokens,
                sampler_logprobs=row.logprobs,
                text=text,
                finish_reason="stop" if row.tokens[-1] in stops else "length",
                extras={LOG_ALLOWED: row.log_allowed} if params.exclusion else {},
            )
            for row, text in zip(drawn, texts, strict=True)
        ]

    def _stops(self, params: SamplingParams) -> tuple[int, ...]:
        return tuple(sorted({*self.ending.stops, *params.stop_token_ids}))


def open_sampler(model: str, tokenizer: PreTrainedTokenizerBase, options: EngineOptions) -> TransformersSampler:
    """Load a model and return its sampler. `ENGINES` refers to this function.

    Raises:
        ModelError: If the model cannot be loaded.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    half = options.dtype == "bfloat16" or (options.dtype == "auto" and device != "cpu")
    loaded = load_model(model, dtype=torch.bfloat16 if half else torch.float32, device=device)
    return TransformersSampler(loaded, tokenizer, tokens_per_batch=options.tokens_per_batch)


@dataclass(frozen=True)
class _Drawn:
    """A completion's tokens, their log-probs, and sum_t log P_t(allowed)."""

    tokens: list[int]
    logprobs: list[float]
    log_allowed: float


def _lists(drawn: DecodedRow) -> list[_Drawn]:
    """Return rows as lists that end with their last token.

    Raises:
        ModelError: If a log-prob is not finite.
    """
    if not bool(torch.isfinite(drawn.logprobs).all()):
        raise ModelError("the model's logits are not finite; its weights have diverged, return to a checkpoint")
    parts = (drawn.tokens, drawn.logprobs, drawn.lengths, drawn.log_allowed)
    return [
        _Drawn(ids[:length], values[:length], total)
        for ids, values, length, total in zip(*(part.tolist() for part in parts), strict=True)
    ]


def plan(requests: Sequence[Request], limits: Sequence[int], group_size: int, budget: int) -> Iterator[list[int]]:
    """Split requests into batches whose padded rows fit the budget, with similar lengths together.

    Yields:
        Positions in `requests`, at least one per batch.
    """
    batch: list[int] = []
    prompt = limit = 0
    for index in sorted(range(len(requests)), key=lambda i: (len(requests[i].prompt), i)):
        prompt, limit = len(requests[index].prompt), max(limit, limits[index])
        if batch and (len(batch) + 1) * group_size * (prompt + limit) > budget:
            yield batch
            batch, limit = [], limits[index]
        batch.append(index)
    if batch:
        yield batch


@contextmanager
def _sampling_mode(model: PreTrainedModel) -> Iterator[None]:
    """Disable gradients and switch to eval mode (in train mode, gradient checkpointing would disable the cache).

    Autocast caches the weights that it has cast. Casts made here carry no gradient, and older casts may belong to
    weights that have changed since, so the cache is cleared on both sides.
    """
    training: list[Any] = [module for module in model.modules() if module.training]
    model.train(False)
    torch.clear_autocast_cache()
    try:
        with torch.no_grad(), wide_head(model, fixed=True), fast_linears(model):
            yield
    finally:
        torch.clear_autocast_cache()
        for module in training:
            module.training = True
