"""Features from a Hugging Face model: the hidden state of a layer at a token of the completion."""

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
"""Position of the feature: a completion's last token, the mean over its tokens, or an end token appended to it."""

DEPTH = 26 / 32
"""Depth of the default layer, as in the paper: layer 26 of 32."""


class HiddenFeatures:
    """Implementation of `embed` with a causal model: its hidden states after one layer, at one position.

    Args:
        model: Any causal model; it is not changed.
        tokenizer: The model's tokenizer. Prompts are encoded by `encode_prompt`, without a system prompt or template
            arguments; the completion's tokens follow, without an end token.
        layer: Layer of the states: 0 for the embeddings, l for the output of layer l, negative numbers count from the
            last layer; default: 26/32 of the depth.
        token: Position; see `TokenChoice`. A completion without tokens is represented by the prompt's last token.
        chat: See `encode_prompt`.
        tokens_per_batch: Number of tokens per batch, including padding; memory grows with it and the number of layers.

    A text that exceeds the model's context is truncated at its beginning, with a warning.

    Raises:
        ConfigError: If the layer or token does not exist.
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
        """Name of these features; it differs if anything that changes the features differs."""

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[str], /) -> Array:
        """Return [n, D] float32 features."""
        rows = self._within_context([self._encoded(*pair) for pair in zip(prompts, completions, strict=True)])
        found: dict[int, Array] = {}
        for batch in _batches([len(ids) for ids, _ in rows], self._budget):
            states = hidden_states(self._model, [rows[index][0] for index in batch], self.layer)
            for row, index in enumerate(batch):
                ids, completion = rows[index]
                found[index] = self._read(states[row], len(ids), completion)
        return np.stack([found[index] for index in range(len(rows))])

    def _encoded(self, prompt: Prompt, completion: str) -> tuple[list[int], int]:
        """Return all token IDs, and the number of completion tokens."""
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
        """Return the feature from a row's [T, D] states: `length` are real, the last `completion` of the completion."""
        if self.token == "mean" and completion:
            place = states[length - completion : length].mean(0)
        else:
            place = states[length - 1]
        feature: Array = place.cpu().numpy()
        return feature


def _batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Yield batches of rows of similar lengths whose padded size fits the budget; each has at least one row."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda row: (lengths[row], row)):
        if batch and (len(batch) + 1) * lengths[index] > budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
