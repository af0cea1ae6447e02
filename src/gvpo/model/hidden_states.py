"""Hidden states of a model for given tokens.

Knows transformers' models; nothing of what the states are used for.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from gvpo.errors import ConfigError, ModelError
from gvpo.model.model import no_dropout, vocabulary_size


def layer_count(model: PreTrainedModel) -> int:
    """How many layers a model has; its hidden states are numbered 0 (embeddings) to this."""
    return int(model.config.get_text_config().num_hidden_layers)


def resolve_layer(model: PreTrainedModel, layer: int) -> int:
    """A layer's number from 0, where negative ones count from the last.

    Raises:
        ConfigError: there is no such layer.
    """
    count = layer_count(model)
    if not -count - 1 <= layer <= count:
        raise ConfigError(f"layer {layer} does not exist: this model has 0 (embeddings) to {count}, or -1 for the last")
    return layer % (count + 1)


@torch.no_grad()
def hidden_states(model: PreTrainedModel, rows: Sequence[Sequence[int]], layer: int) -> Tensor:
    """States of one layer for some token sequences, computed together.

    Args:
        model: a causal model; its dropout is off inside, its mode stays.
        rows: token ids of each row, at least one; padded on the right here, which a causal model does not see.
        layer: 0 the embeddings, l the output of layer l; the last one is behind the final norm.

    Returns:
        [n, T, D] float32 on the model's device; places behind a row's end are meaningless.

    Raises:
        ModelError: a token that the model does not have, or a model that does not give its states.
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
        raise ModelError(f"{type(model).__name__} does not give its hidden states; use an embeddings endpoint instead")
    return states[layer].float()
