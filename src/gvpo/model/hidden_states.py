"""Hidden states of a model for given tokens, independent of their use."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from gvpo.errors import ConfigError, ModelError
from gvpo.model.model import no_dropout, vocabulary_size


def layer_count(model: PreTrainedModel) -> int:
    """Return the number of layers. Hidden states are numbered from 0 (embeddings) to this number."""
    return int(model.config.get_text_config().num_hidden_layers)


def resolve_layer(model: PreTrainedModel, layer: int) -> int:
    """Return a layer's number counted from 0. Negative numbers count from the last layer.

    Raises:
        ConfigError: If the layer does not exist.
    """
    count = layer_count(model)
    if not -count - 1 <= layer <= count:
        raise ConfigError(f"layer {layer} does not exist: this model has 0 (embeddings) to {count}, or -1 for the last")
    return layer % (count + 1)


@torch.no_grad()
def hidden_states(model: PreTrainedModel, rows: Sequence[Sequence[int]], layer: int) -> Tensor:
    """Return the states of one layer for some token sequences, computed together.

    Args:
        model: Causal model. Its dropout is disabled during the call, and its mode does not change.
        rows: Token ids of each row, at least one. Rows are padded on the right, which does not affect a causal model.
        layer: Number of the layer: 0 for the embeddings, l for the output of layer l. The last output is after the
            final norm.

    Returns:
        [n, T, D] float32 on the model's device. Positions after a row's end are meaningless.

    Raises:
        ModelError: If a token is outside the vocabulary, or the model does not return its states.
    """
    if (highest := max(map(max, rows))) >= vocabulary_size(model):
        raise ModelError(
            f"a text has token {highest} and the model's vocabulary is {vocabulary_size(model)}; use the tokenizer "
            "that belongs to the model"
        )
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(list(row))
        mask[index, : len(row)] = 1
    with no_dropout(model):
        output = model.base_model(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            output_hidden_states=True,
            use_cache=False,
        )
    states: tuple[Tensor, ...] | None = getattr(output, "hidden_states", None)
    if states is None:
        raise ModelError(f"{type(model).__name__} returns no hidden states; use an embeddings endpoint instead")
    return states[layer].float()
