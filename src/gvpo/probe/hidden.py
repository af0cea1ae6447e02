"""Features from a model of Hugging Face: the hidden state of a layer at a token of the completion."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from torch import Tensor

from gvpo import notices
from gvpo.errors import ConfigError
from gvpo.model.endings import ending
from gvpo.model.fingerprints import fingerprint
from gvpo.model.hidden_states import hidden_states, layer_count, resolve_layer
from gvpo.model.model import context_length
from gvpo.model.tokenizer import ChatMode, encode_prompt
from gvpo.probe.store import Array
from gvpo.types import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TokenChoice = Literal["last", "mean", "end"]
"""Of a completion: its last token, the mean over its tokens, or the end token that is put behind it."""

DEPTH = 26 / 32
"""Where the default layer lies: that of the paper, 26 of 32."""


class HiddenFeatures:
    """`embed` by a causal model: states of prompt and completion, read behind one layer at one place.

    Args:
        model: any causal model; it is not changed.
        tokenizer: its tokenizer. Prompts become tokens by `encode_prompt`, with no system prompt or template arguments;
            a completion's follow, without an end token.
        layer: 0 the embeddings, l behind layer l, negative from the last; default 26/32 of the depth.
        token: where: see `TokenChoice`. A completion without tokens is represented by the prompt's last token.
        chat: as `encode_prompt`.
        tokens_per_batch: tokens computed at once, padding included; memory grows with it times the layers.

    A text longer than the model's context loses its beginning, with a warning.

    Raises:
        ConfigError: no such layer or token.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        *,
        layer: int | None = None,
        token: TokenChoice = "last",
        chat: ChatMode = "auto",
        tokens_per_batch: int = 4096,
    ) -> None:
        if token not in get_args(TokenChoice):
            raise ConfigError(f"token is {token!r}; use 'last', 'mean' or 'end'")
        self._end = ending(tokenizer, model, chat=chat).written
        if token == "end" and self._end is None:
            raise ConfigError("token is 'end' and the tokenizer has no end token; use 'last' or 'mean'")
        self._model, self._tokenizer, self._budget = model, tokenizer, tokens_per_batch
        self._chat: ChatMode = chat
        self.layer = resolve_layer(model, max(1, round(DEPTH * layer_count(model))) if layer is None else layer)
        self.token: TokenChoice = token
        self.name = f"hidden/{fingerprint(model, tokenizer)}/layer {self.layer}/{token}/{chat}"
        """Of these features: another name where anything differs that changes them."""

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[str], /) -> Array:
        """[n, D] float32 features."""
        rows = self._within_context([self._encoded(*pair) for pair in zip(prompts, completions, strict=True)])
        found: dict[int, Array] = {}
        for batch in _batches([len(ids) for ids, _ in rows], self._budget):
            states = hidden_states(self._model, [rows[index][0] for index in batch], self.layer)
            for row, index in enumerate(batch):
                ids, completion = rows[index]
                found[index] = self._read(states[row], len(ids), completion)
        return np.stack([found[index] for index in range(len(rows))])

    def _encoded(self, prompt: Prompt, completion: str) -> tuple[list[int], int]:
        """All token ids, and how many of them are the completion's."""
        text = list(self._tokenizer(completion, add_special_tokens=False).input_ids)
        if self.token == "end" and self._end is not None:
            text.append(self._end)
        return [*encode_prompt(self._tokenizer, prompt, chat=self._chat), *text], len(text)

    def _within_context(self, rows: Sequence[tuple[list[int], int]]) -> list[tuple[list[int], int]]:
        context = context_length(self._model)
        cut = 0 if context is None else sum(len(ids) > context for ids, _ in rows)
        if context is None or not cut:
            return list(rows)
        notices.warn(
            f"{cut} of {len(rows)} texts are longer than the model's context of {context} tokens and lost their "
            "beginning; use shorter ones, or a model that reads more"
        )
        return [(ids[-context:], min(completion, context)) for ids, completion in rows]

    def _read(self, states: Tensor, length: int, completion: int) -> Array:
        """The feature in a row's [T, D] states, `length` of them real and the last `completion` of the completion."""
        if self.token == "mean" and completion:
            place = states[length - completion : length].mean(0)
        else:
            place = states[length - 1]
        feature: Array = place.cpu().numpy()
        return feature


def _batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Rows in batches of similar lengths whose padded size fits the budget; at least one row each."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda row: (lengths[row], row)):
        if batch and (len(batch) + 1) * lengths[index] > budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
