"""Exclusion in transformers' `generate`, and log P(allowed) for completions from any source."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase

from gvpo.errors import ConfigError, DataError
from gvpo.model.endings import ending
from gvpo.model.model import vocabulary_size
from gvpo.sampling.exclusion.exclusion import CompiledExclusion, State, exclude, log_probability
from gvpo.sampling.exclusion.spec import Exclusion
from gvpo.sampling.exclusion.vocabulary import Vocabulary


def compile_exclusion(
    exclusion: Exclusion, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, stops: Sequence[int] = ()
) -> CompiledExclusion:
    """Compile an exclusion for a model and its tokenizer. This takes about a second for large vocabularies.

    Args:
        exclusion: Restriction of the completions.
        model: Model, for the size of its logits and its stop tokens.
        tokenizer: Tokenizer of the model.
        stops: Tokens that end a completion, in addition to the model's own.

    Raises:
        ConfigError: If the exclusion allows no first token, or contains unknown tokens or invalid expressions.
        ModelError: If the bytes of the tokenizer's tokens cannot be determined.
    """
    size = vocabulary_size(model)
    named = max((*exclusion.allow_tokens, *exclusion.ban_tokens), default=0)
    if named >= size:
        raise ConfigError(f"the exclusion names token {named} and the model has {size} tokens")
    own = ending(tokenizer, model).stops
    compiled = CompiledExclusion(exclusion, Vocabulary.of(tokenizer, size, tuple(sorted({*own, *stops}))))
    if not compiled.allowed(compiled.start).any():
        raise ConfigError("the exclusion allows no token at all to begin with; allow more or ban less")
    return compiled


class ExclusionLogitsProcessor(LogitsProcessor):
    """Exclusion for `model.generate(..., logits_processor=[processor])`.

    transformers calls it after its penalties and before temperature, top-k, top-p and the like, which is the correct
    place. The restricted text begins after the prompt. A call that does not continue the rows of the last call starts
    over, so one object can serve several `generate` calls, one after another.

    Args:
        exclusion: Compiled exclusion of the model.
        temperature: The temperature passed to `generate`, so that P in `log_allowed` is the sampling distribution.
    """

    supports_continuous_batching = False

    def __init__(self, exclusion: CompiledExclusion, *, temperature: float = 1.0) -> None:
        self.exclusion, self.temperature = exclusion, temperature
        self._rows: dict[tuple[int, ...], _Row] = {}

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Mask [B, V] scores of the tokens that come after [B, L] ids."""
        keys = [tuple(row) for row in input_ids.tolist()]
        before = [self._rows.get(key[:-1]) for key in keys]
        begun = [_Row(self.exclusion.start, 0.0) for _ in keys]
        if all(row is not None for row in before):
            begun = [row.then(key[-1], self.exclusion) for row, key in zip(before, keys, strict=True) if row]
        found = exclude(scores, [row.state for row in begun], self.exclusion, temperature=self.temperature)
        sums = found.log_allowed.tolist()
        self._rows = {
            key: _Row(row.state, row.log_allowed + (0.0 if row.state is None else value))
            for key, row, value in zip(keys, begun, sums, strict=True)
        }
        return found.scores

    def log_allowed(self, sequences: Tensor) -> Tensor:
        """Return sum_t log P_t(A_t) of the sequences that the last `generate` returned: [B] nats, float64.

        Args:
            sequences: [B, L] output of `generate`, including prompts.

        Raises:
            DataError: If some sequences are not from the last `generate`, or it was a beam search, which forgets ended
                beams.
        """
        length = sequences.shape[1] - 1
        known = {key[:length]: row.log_allowed for key, row in self._rows.items()}
        try:
            return torch.tensor([known[tuple(row[:-1])] for row in sequences.tolist()], dtype=torch.float64)
        except KeyError as error:
            raise DataError(
                "these sequences were not sampled by the last generate; score them with "
                "gvpo.sampling.exclusion.score_allowed"
            ) from error


@torch.no_grad()
def score_allowed(
    model: PreTrainedModel,
    prompt: Sequence[int],
    completion: Sequence[int],
    exclusion: CompiledExclusion,
    *,
    temperature: float = 1.0,
) -> float:
    """Compute sum_t log P_t(A_t) of a completion from any source, for engines that do not report it.

    Args:
        model: Model of P, in eval mode.
        prompt: Token ids, at least one.
        completion: Token ids, including the stop token if there is one.
        exclusion: Compiled exclusion.
        temperature: Temperature of P; 0 counts as 1.

    Returns:
        Nats; -inf if the completion contains a token that was not allowed.
    """
    ids = torch.tensor([[*prompt, *completion]], device=model.device)
    scores = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
    state, total = exclusion.start, 0.0
    for token, row in zip(completion, scores, strict=True):
        if state is None:
            break
        allowed = exclusion.allowed(state)
        if not allowed[token]:
            return -float("inf")
        total += float(log_probability(row, torch.from_numpy(allowed).to(row.device), temperature=temperature))
        state = exclusion.advance(state, token)
    return total


@dataclass(frozen=True)
class _Row:
    """An unfinished sequence: its state, and the sum so far, including the next token."""

    state: State
    log_allowed: float

    def then(self, token: int, exclusion: CompiledExclusion) -> "_Row":
        return _Row(exclusion.advance(self.state, token), self.log_allowed)
