"""Merging a LoRA adapter into its base, for programs that do not support adapters."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from gvpo.errors import ModelError, RoundTripError, one_line
from gvpo.model import adapter_kinds, lora
from gvpo.model.model import load_model, next_logprobs, pretrained, save_model
from gvpo.model.round_trip import LOGPROB_TOLERANCE, token_ids
from gvpo.model.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TIMES_THE_NOISE = 8
"""Largest difference of the merged model from base and adapter, in units of float32's own error on the same text."""


def merge_adapter(adapter: str | Path, directory: str | Path, *, base: str | Path | None = None) -> Path:
    """Write the base with the adapter merged into its weights, a complete model in float32.

    The model is written to a temporary directory, loaded back and compared, and then renamed. If anything fails, no
    files are left.

    Args:
        adapter: Directory of a stored adapter, for example a checkpoint.
        directory: Output directory, new or empty.
        base: Base model of the adapter; default the one that it names.

    Returns:
        `directory`.

    Raises:
        ModelError: If there is no adapter, its base cannot be loaded, it cannot be merged, or `directory` is not empty.
        RoundTripError: If the log-probs of the merged model differ from those of base and adapter.
    """
    target = Path(directory).resolve()  # "." has no name for the temporary directory
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ModelError(f"{target} is not empty; give a new directory for the merged model")
    model, origin = _with_adapter(adapter, base)
    tokenizer = load_tokenizer(adapter if _has_tokenizer(adapter) else origin)
    ids = token_ids(tokenizer)
    wanted, noise = _logprobs_and_noise(model, ids)
    with _beside(target) as partial:
        save_model(_merged(model), tokenizer, partial)
        _compare(wanted, next_logprobs(load_model(partial), ids), noise)
    return Path(directory)


def _with_adapter(adapter: str | Path, base: str | Path | None) -> "tuple[PreTrainedModel, str]":
    """Return the base with the adapter on it, and the base's name."""
    named, revision = (str(base), None) if base else lora.base_of(adapter)
    if lora.is_adapter(named):
        raise ModelError(f"{named} is an adapter too; give a complete model as base")
    model = pretrained(named, torch.float32, "sdpa", revision=revision)
    lora.load_adapter(model, adapter)
    return model, named


def _logprobs_and_noise(model: "PreTrainedModel", ids: Sequence[int]) -> tuple[torch.Tensor, float]:
    """Return the log-probs in float32, and their error, measured by the same forward pass in float64."""
    if hasattr(model.config.get_text_config(), "num_experts_per_tok"):
        model.set_experts_implementation("eager")  # the only one with float64
    logprobs = next_logprobs(model, ids)
    try:
        exact = next_logprobs(model.double(), ids)
    except RuntimeError:  # a kernel without float64, so the fixed tolerance applies
        exact = logprobs
    model.float()  # float32 weights survive float64 bit by bit
    return logprobs, float((logprobs - exact).abs().max())


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """Yield a temporary directory that is renamed to the target on success and removed on an error."""
    partial = target.with_name(f".{target.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        yield partial
        target.mkdir(parents=True, exist_ok=True)
        partial.replace(target)
    except OSError as error:
        raise ModelError(f"cannot write the merged model to {target}: {error.strerror}; free some space") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _merged(model: "PreTrainedModel") -> "PreTrainedModel":
    """Add the adapter's product to the weights and remove peft's layers. The model is changed in place."""
    if adapter_kinds.repeats_layers(model):
        raise ModelError(
            "this adapter repeats layers, which share weights and cannot be merged; use the adapter itself"
        )
    _separate_ends(model)
    try:
        for name, module in reversed(list(model.named_modules())):  # adapters of a layer may be nested, inner ones last
            _merge_module(model, name, module)
    except (RuntimeError, ValueError, NotImplementedError) as error:  # raised by peft for some kinds of adapter
        raise ModelError(f"this adapter cannot be merged: {one_line(error)}; use the adapter itself") from error
    _note_ends(model)
    model.peft_config.clear()
    del model.peft_config
    model._hf_peft_config_loaded = False
    return model


def _merge_module(model: "PreTrainedModel", name: str, module: nn.Module) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper, TrainableTokensWrapper

    if isinstance(module, BaseTunerLayer):
        module.merge()
        _replace(model, name, module.get_base_layer())
    elif isinstance(module, ModulesToSaveWrapper):
        _replace(model, name, module.modules_to_save[module.active_adapters[0]])
    elif isinstance(module, TrainableTokensWrapper):
        _replace(model, name, module.token_adapter)  # by now the embedding inside it


def _replace(model: nn.Module, name: str, module: Any) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


def _separate_ends(model: "PreTrainedModel") -> None:
    """Separate the weights of head and embedding if an adapter changes one of them and they were tied."""
    ends: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    if not model.config.get_text_config().tie_word_embeddings or not any(lora.is_adapted(end) for end in ends):
        return
    head = ends[1].get_base_layer() if hasattr(ends[1], "get_base_layer") else ends[1]
    if isinstance(head, nn.Linear):
        head.weight = nn.Parameter(head.weight.detach().clone())


def _note_ends(model: "PreTrainedModel") -> None:
    """Record in the config that head and embedding are separate, if the adapter has separated them."""
    ends: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    if ends[1] is not None and ends[0].weight is not ends[1].weight:
        for config in (model.config, model.config.get_text_config()):
            config.tie_word_embeddings = False


def _compare(wanted: torch.Tensor, found: torch.Tensor, noise: float) -> None:
    difference, allowed = float((wanted - found).abs().max()), max(LOGPROB_TOLERANCE, TIMES_THE_NOISE * noise)
    if not difference <= allowed:
        raise RoundTripError(
            f"the merged model gives other log-probs than base and adapter, by up to {difference:.2g} nats, and "
            f"rounding explains {allowed:.2g}; no files were written; use the adapter itself"
        )


def _has_tokenizer(directory: str | Path) -> bool:
    return any((Path(directory) / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
