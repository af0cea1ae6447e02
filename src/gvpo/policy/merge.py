"""A LoRA adapter merged into its base: a whole model again, for programs that know nothing of adapters."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from gvpo.errors import ModelError, RoundTripError
from gvpo.policy import lora
from gvpo.policy.model import LOGPROB_TOLERANCE, load_model, next_logprobs, save_model
from gvpo.policy.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROBE = 64
"""Token ids of the text on which the merged model is compared."""


def merge_adapter(adapter: str | Path, directory: str | Path, *, base: str | Path | None = None) -> Path:
    """Write the base with the adapter in its weights, a whole model in float32; it is loaded back and compared.

    Args:
        adapter: directory of a stored adapter, a checkpoint say.
        directory: where the model goes; new or empty.
        base: the model that the adapter belongs on; default the one that it names.

    Returns:
        `directory`.

    Raises:
        ModelError: there is no adapter, its base cannot be had, or something lies in `directory`.
        RoundTripError: the merged model gives other log-probs than base and adapter.
    """
    target = Path(directory)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ModelError(f"{target} is taken; give a new directory for the merged model")
    origin = str(base or lora.base_of(adapter))
    if lora.is_adapter(origin):
        raise ModelError(f"{origin} is an adapter, too; give a whole model as base")
    model = load_model(origin)
    lora.load_adapter(model, adapter)
    ids = torch.arange(min(PROBE, model.config.get_text_config().vocab_size)).tolist()
    wanted = next_logprobs(model, ids)
    merged = _merged(model)
    save_model(merged, load_tokenizer(adapter if _has_tokenizer(adapter) else origin), target)
    _compare(wanted, next_logprobs(load_model(target), ids), target)
    return target


def _merged(model: "PreTrainedModel") -> "PreTrainedModel":
    """The model with its adapter's product added to the weights, and peft's layers gone; changed in place."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    _untie(model)
    for name, module in reversed(list(model.named_modules())):  # adapters of one layer may be nested, inner ones last
        if isinstance(module, BaseTunerLayer):
            module.merge()
            _replace(model, name, module.get_base_layer())
        elif isinstance(module, ModulesToSaveWrapper):
            _replace(model, name, module.modules_to_save[module.active_adapters[0]])
    model.peft_config.clear()
    del model.peft_config
    model._hf_peft_config_loaded = False
    return model


def _replace(model: nn.Module, name: str, module: Any) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


def _untie(model: "PreTrainedModel") -> None:
    """Give head and embedding weights of their own where an adapter changes one of two that were tied."""
    ends: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    if not model.config.get_text_config().tie_word_embeddings or not any(lora.is_adapted(end) for end in ends):
        return
    head = ends[1].get_base_layer() if hasattr(ends[1], "get_base_layer") else ends[1]
    if isinstance(head, nn.Linear):
        head.weight = nn.Parameter(head.weight.detach().clone())
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False


def _compare(wanted: torch.Tensor, found: torch.Tensor, target: Path) -> None:
    difference = float((wanted - found).abs().max())
    if not difference <= LOGPROB_TOLERANCE:
        raise RoundTripError(
            f"the merged model in {target} gives other log-probs, by up to {difference:.2g} nats, than base and "
            "adapter; use the adapter itself"
        )


def _has_tokenizer(directory: str | Path) -> bool:
    return any((Path(directory) / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
