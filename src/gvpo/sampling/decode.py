"""The decode loop: sample one token per row until all rows have ended, and yield each prompt's rows when they have."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from gvpo import activity
from gvpo.model.known_tokens import missing_tokens
from gvpo.sampling.base import Request, SamplingParams
from gvpo.sampling.cache import decoding_attention, make_room
from gvpo.sampling.draw import draw
from gvpo.sampling.exclusion.exclusion import CompiledExclusion, exclude
from gvpo.sampling.noise import Key, noise_key, uniforms
from gvpo.sampling.prefill import Prefilled, forward, spread

NOISE_BLOCK = 64
"""Number of tokens per block of noise."""

SHRINK_AT = 0.9
"""Remove finished rows from the batch when at most this fraction is unfinished. This copies the cache once, which soon
pays off because the finished rows are no longer computed."""


@dataclass(frozen=True)
class DecodingRow:
    """A completion to sample.

    Args:
        owner: Position of its prompt in the batch.
        limit: Maximum number of tokens.
        key: Key of its noise.
    """

    owner: int
    limit: int
    key: Key

    @classmethod
    def of(cls, request: Request, owner: int, row: int, limit: int, seed: int, step: int) -> "DecodingRow":
        """Return the row with number `row` of a request."""
        return cls(owner, limit, noise_key(seed, step, request.id, row))


class Tally:
    """Number of finished rows and of tokens during a call of the sampler, for a display.

    Args:
        total: Number of rows of the call.
    """

    def __init__(self, total: int) -> None:
        self._total, self._rows, self._tokens = total, 0, 0

    def add(self, rows: int, tokens: int) -> None:
        """Add finished rows and sampled tokens."""
        self._rows, self._tokens = self._rows + rows, self._tokens + tokens
        activity.count(self._rows, self._total, "rows", self._tokens)


@dataclass(frozen=True)
class DecodedRow:
    """R completions on the CPU, where T is the longest length. Entries past the length of a row are meaningless.

    Args:
        tokens: [R, T].
        logprobs: [R, T] as returned by `draw`.
        lengths: [R].
        log_allowed: [R] sum_t log P_t(allowed) in nats; 0 without an exclusion.
    """

    tokens: Tensor
    logprobs: Tensor
    lengths: Tensor
    log_allowed: Tensor


def decode(
    model: PreTrainedModel,
    prefilled: Prefilled,
    rows: Sequence[DecodingRow],
    params: SamplingParams,
    stops: Sequence[int],
    exclusion: CompiledExclusion | None,
    tally: Tally,
) -> Iterator[tuple[int, DecodedRow]]:
    """Sample all rows to their ends.

    Args:
        model: Model in eval mode, without gradients.
        prefilled: Prefilled prompts. Their cache must not be used afterwards.
        rows: R completions to sample.
        params: Sampling parameters.
        stops: Tokens that end a completion.
        exclusion: The compiled exclusion of `params`, or None if there is none.
        tally: Receiver of the numbers of finished rows and sampled tokens.

    Yields:
        The position of a prompt and its rows in order, as soon as all of them have ended.
    """
    batch = _Batch(model, prefilled, rows, params, stops, exclusion)
    is_unfinished = True
    while is_unfinished:
        before = batch.going
        is_unfinished = batch.draw()
        tally.add(before - batch.going, before)
        if batch.going < before:
            yield from batch.take_finished()
        if is_unfinished:
            batch.shrink()
            with decoding_attention():
                batch.advance()


class _Batch:
    """The state of a batch. [R] are all rows, [L] the rows still in the batch; `live` [L] contains their indices."""

    def __init__(
        self,
        model: PreTrainedModel,
        prefilled: Prefilled,
        rows: Sequence[DecodingRow],
        params: SamplingParams,
        stops: Sequence[int],
        exclusion: CompiledExclusion | None,
    ) -> None:
        start, self.can_shrink = spread(model, prefilled, [row.owner for row in rows])
        device = start.logits.device
        self.model, self.params, self.rows, self.step = model, params, rows, 0
        make_room(start.cache)
        self.missing = missing_tokens(model)
        self.cache, self.positions, self.width = start.cache, start.lengths, start.width
        self.logits = self._known(start.logits)
        steps = max(row.limit for row in rows)
        wide = torch.promote_types(start.logits.dtype, torch.float32)
        self.tokens = torch.zeros(len(rows), steps, dtype=torch.long, device=device)
        self.logprobs = torch.zeros(len(rows), steps, dtype=wide, device=device)
        self.lengths = torch.zeros(len(rows), dtype=torch.long, device=device)
        self.stops = torch.tensor(stops, dtype=torch.long, device=device)
        self.live = torch.arange(len(rows), device=device)
        self.limits = torch.tensor([row.limit for row in rows], device=device)
        self.ended = torch.zeros(len(rows), dtype=torch.bool, device=device)
        self.mask = None if start.mask is None else torch.nn.functional.pad(start.mask, (0, steps), value=1)
        self.drawn = self.noise = torch.empty(0)
        self.going = len(rows)
        self.waiting = {row.owner for row in rows}
        self.exclusion = exclusion
        self.states = [] if exclusion is None else [exclusion.start] * len(rows)
        self.log_allowed = torch.zeros(len(rows), dtype=torch.float64)

    def draw(self) -> bool:
        """Sample the next token of each row. Return whether any row is still unfinished."""
        if self.step % NOISE_BLOCK == 0:
            self.noise = self._make_noise()
        self.drawn, logprobs = self._draw(self.noise[:, self.step % NOISE_BLOCK])
        self.tokens[self.live, self.step] = self.drawn
        self.logprobs[self.live, self.step] = logprobs
        self.lengths[self.live] += ~self.ended
        self.step += 1
        self.ended |= (self.drawn[:, None] == self.stops).any(-1) | (self.limits <= self.step)
        self.going = len(self.ended) - int(self.ended.sum())
        return self.going > 0

    def _draw(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return tokens [L] and their log-probs [L] under the distribution that they were drawn from."""
        if self.exclusion is None:
            return draw(self.logits, noise, self.params)
        temperature = self.params.temperature
        found = exclude(self.logits, self.states, self.exclusion, temperature=temperature)
        self.log_allowed[self.live.cpu()] += found.log_allowed.double().cpu()  # 0 for rows that have ended
        tokens, logprobs = draw(found.scores, noise, self.params)
        after = zip(self.states, tokens.tolist(), strict=True)
        self.states = [self.exclusion.advance(state, token) for state, token in after]
        return tokens, logprobs

    def take_finished(self) -> Iterator[tuple[int, DecodedRow]]:
        """Yield each prompt whose rows have all ended, once, with its rows."""
        going = {self.rows[row].owner for row in self.live[~self.ended].tolist()}
        for owner in sorted(self.waiting - going):
            self.waiting.remove(owner)
            own = [index for index, row in enumerate(self.rows) if row.owner == owner]
            drawn = (self.tokens[own, : self.step], self.logprobs[own, : self.step], self.lengths[own])
            yield owner, DecodedRow(*(values.cpu() for values in (*drawn, self.log_allowed[own])))

    def shrink(self) -> None:
        """Remove finished rows from the batch and its cache once enough have finished to be worth the copy."""
        if not self.can_shrink or self.going > SHRINK_AT * len(self.live):
            return
        keep = (~self.ended).nonzero()[:, 0]
        self.cache.reorder_cache(keep)
        for name in ("live", "drawn", "positions", "limits", "ended", "noise"):
            setattr(self, name, getattr(self, name)[keep])
        if self.exclusion is not None:
            self.states = [self.states[row] for row in keep.tolist()]
        if self.mask is not None:
            self.mask = self.mask[keep]

    def advance(self) -> None:
        """Run the model on the sampled tokens to compute the next logits."""
        positions = self.positions + self.step - 1
        mask = None if self.mask is None else self.mask[:, : self.width + self.step]
        output = forward(self.model, self.drawn[:, None], positions[:, None], mask, self.cache)
        self.logits = self._known(output.logits[:, -1])

    def _known(self, logits: Tensor) -> Tensor:
        """Return logits from which only tokens of the tokenizer can be sampled."""
        return logits if self.missing is None else self.missing.hidden(logits)

    def _make_noise(self) -> Tensor:
        keys = [self.rows[row].key for row in self.live.tolist()]
        noise = torch.from_numpy(uniforms(keys, self.step, NOISE_BLOCK))
        wide = torch.float32 if self.logits.device.type == "mps" else torch.float64
        return noise.to(self.logits.device, wide)
