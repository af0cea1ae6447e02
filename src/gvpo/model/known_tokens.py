"""Which token ids a policy is a distribution over: those that its tokenizer has.

Embeddings are often larger than the vocabulary (Qwen2.5 has 151,936 rows for 151,665 tokens), and ids may be left out
in between. Such an id has no text, so none is drawn, and the softmax of samples, log-probs and gradients leaves it out.

    restrict(model, tokenizer) ── notes on the model what is missing ──▶ the sampler's logits, the head's log-probs
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
"""The attribute of a model; a copy of the model has it too, and nothing saves it."""
_IMPOSSIBLE = -1e30
"""A logit that has probability 0 in every dtype with float32's range, and an entropy that is a number."""


@dataclass(frozen=True)
class Missing:
    """Token ids of a model that its tokenizer does not have.

    Args:
        end: all ids from here on.
        gaps: the ids below it.
    """

    end: int
    gaps: tuple[int, ...]

    def among(self, tokens: Sequence[int]) -> list[int]:
        """Return those of some token ids that are missing."""
        if max(tokens, default=-1) < self.end and not self.gaps:
            return []
        gaps = set(self.gaps)
        return [token for token in tokens if token >= self.end or token in gaps]

    def hidden(self, logits: Tensor) -> Tensor:
        """Return logits [..., V] in which the ids cannot be drawn; the argument is changed."""
        logits[..., self.end :] = -torch.inf
        if self.gaps:
            logits[..., list(self.gaps)] = -torch.inf
        return logits

    def known(self, logits: Tensor) -> Tensor:
        """Return logits [..., n] of the ids up to the end, with minus infinity in the gaps; gradients pass."""
        kept = logits[..., : self.end]
        return kept.masked_fill(self._gap_mask(kept), -torch.inf) if self.gaps else kept

    def bias(self, weight: Tensor, bias: Tensor | None) -> Tensor | None:
        """Return the bias [V] of a head with a weight [V, H], where the gaps cannot be drawn; gradients pass."""
        if not self.gaps:
            return bias
        own = weight.new_zeros(len(weight)) if bias is None else bias
        return own.masked_fill(self._gap_mask(own), max(_IMPOSSIBLE, torch.finfo(own.dtype).min / 2))

    def _gap_mask(self, like: Tensor) -> Tensor:
        mask = torch.zeros(like.shape[-1], dtype=torch.bool, device=like.device)
        mask[list(self.gaps)] = True
        return mask


def restrict(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make a model a distribution over the tokens that its tokenizer has, in samples and log-probs alike."""
    size = vocabulary_size(model)
    known = _known_ids(tokenizer, size)
    end = max(known, default=size - 1) + 1
    gaps = tuple(token for token in range(end) if token not in known)
    setattr(model, _NOTE, None if end == size and not gaps else Missing(end, gaps))


def missing_tokens(model: nn.Module) -> Missing | None:
    """Return the token ids that `restrict` found missing; None where there is none, or nobody has asked."""
    found: Missing | None = getattr(model, _NOTE, None)
    return found


def largest_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the largest token id of a tokenizer; -1 if it has none."""
    return max(tokenizer.get_vocab().values(), default=-1)


def refuse_missing(missing: Missing | None, groups: Iterable[Group]) -> None:
    """Refuse completions with a token that the policy gives no probability.

    Raises:
        DataError: the message names the token.
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
    """Return the ids below `size` that stand for a token. Of two ids with one text, the vocabulary names only one."""
    named = {token for token in tokenizer.get_vocab().values() if token < size}
    others = (token for token in range(size) if token not in named)
    return named | {token for token in others if _stands_for_a_token(tokenizer, token)}


def _stands_for_a_token(tokenizer: PreTrainedTokenizerBase, token: int) -> bool:
    try:
        text = tokenizer.convert_ids_to_tokens(token)
    except (IndexError, KeyError, OverflowError, ValueError):  # tokenizers written in Python index a list or a table
        return False
    return isinstance(text, str) and text not in ("", tokenizer.unk_token)
