"""Restriction of a policy's distribution to the token ids of its tokenizer.

Embeddings are often larger than the vocabulary (Qwen2.5 has 151,936 rows for 151,665 tokens), and ids in between may be
unused. Such an id has no text, so it is never sampled, and the softmax of samples, log-probs and gradients excludes it.

    restrict(model, tokenizer) ── records the missing ids on the model ──▶ the sampler's logits, the head's log-probs
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gvpo.errors import DataError
from gvpo.model.model import vocabulary_size
from gvpo.types import Group

_NOTE = "_gvpo_missing"
"""Attribute of a model. Copies of the model have it too, but it is not saved."""
_IMPOSSIBLE = -1e30
"""Logit with probability 0 and a finite entropy in every dtype with float32's range."""


@dataclass(frozen=True)
class Missing:
    """Token ids of a model that its tokenizer does not have.

    Args:
        end: First id from which on all ids are missing.
        gaps: Missing ids below `end`.
    """

    end: int
    gaps: tuple[int, ...]

    def among(self, tokens: Sequence[int]) -> list[int]:
        """Return the missing ids among some token ids."""
        if max(tokens, default=-1) < self.end and not self.gaps:
            return []
        gaps = set(self.gaps)
        return [token for token in tokens if token >= self.end or token in gaps]

    def hidden(self, logits: Tensor) -> Tensor:
        """Return logits [..., V] with which missing ids cannot be sampled. The argument is changed in place."""
        logits[..., self.end :] = -torch.inf
        if self.gaps:
            logits[..., list(self.gaps)] = -torch.inf
        return logits

    def known(self, logits: Tensor) -> Tensor:
        """Return logits [..., n] of the ids below `end`, with minus infinity in the gaps. Gradients flow through."""
        kept = logits[..., : self.end]
        return kept.masked_fill(self._gap_mask(kept), -torch.inf) if self.gaps else kept

    def bias(self, weight: Tensor, bias: Tensor | None) -> Tensor | None:
        """Return the bias [V] of a head with weight [V, H] that makes gaps impossible. The result is differentiable."""
        if not self.gaps:
            return bias
        own = weight.new_zeros(len(weight)) if bias is None else bias
        return own.masked_fill(self._gap_mask(own), max(_IMPOSSIBLE, torch.finfo(own.dtype).min / 2))

    def _gap_mask(self, like: Tensor) -> Tensor:
        mask = torch.zeros(like.shape[-1], dtype=torch.bool, device=like.device)
        mask[list(self.gaps)] = True
        return mask


def restrict(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Restrict a model's distribution to the tokens of its tokenizer, for samples and log-probs alike."""
    setattr(model, _NOTE, missing_from(tokenizer, vocabulary_size(model)))


def missing_from(tokenizer: PreTrainedTokenizerBase, size: int) -> Missing | None:
    """Return the ids below `size` that a tokenizer does not have, or None if it has all of them."""
    known = _known_ids(tokenizer, size)
    end = max(known, default=size - 1) + 1
    gaps = tuple(token for token in range(end) if token not in known)
    return None if end == size and not gaps else Missing(end, gaps)


def missing_tokens(model: nn.Module) -> Missing | None:
    """Return the missing token ids recorded by `restrict`, or None if no id is missing or it was not called."""
    found: Missing | None = getattr(model, _NOTE, None)
    return found


def largest_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the largest token id of a tokenizer, or -1 if it has no tokens."""
    return max(tokenizer.get_vocab().values(), default=-1)


def refuse_missing(missing: Missing | None, groups: Iterable[Group]) -> None:
    """Raise an error if a completion has a token to which the policy gives no probability.

    Raises:
        DataError: If there is such a token. The message names it.
    """
    if missing is None:
        return
    rows = (row.tokens for group in groups for row in group.completions)
    found = next((lacking for tokens in rows if (lacking := missing.among(tokens))), [])
    if found:
        raise DataError(
            f"a completion has token id {found[0]}, which the tokenizer does not have; log text, or use the tokenizer "
            "that the ids belong to"
        )


def _known_ids(tokenizer: PreTrainedTokenizerBase, size: int) -> set[int]:
    """Return the ids below `size` with a token. If two ids have the same text, the vocabulary contains only one."""
    named = {token for token in tokenizer.get_vocab().values() if token < size}
    others = (token for token in range(size) if token not in named)
    return named | {token for token in others if _stands_for_a_token(tokenizer, token)}


def _stands_for_a_token(tokenizer: PreTrainedTokenizerBase, token: int) -> bool:
    try:
        text = tokenizer.convert_ids_to_tokens(token)
    except (IndexError, KeyError, OverflowError, ValueError):  # tokenizers written in Python index a list or a table
        return False
    return isinstance(text, str) and text not in ("", tokenizer.unk_token)
