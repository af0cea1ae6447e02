"""A trial save of a model before training, so that errors of a later checkpoint appear before the first step."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from gvpo.errors import ModelError, one_line
from gvpo.model import lora
from gvpo.model.generation_config import GENERATION_CONFIG
from gvpo.model.model import quietly, save_model
from gvpo.model.round_trip import verify_round_trip


def rehearse_save(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: str | Path, *, reload: bool = True
) -> None:
    """Save everything of a model except its weights, and load it back: config, generation config, tokenizer, adapter.

    A single element of each weight is written. transformers then compares their storages as in a real save, without its
    time and disk space.

    Args:
        model: Model to be trained.
        tokenizer: Tokenizer that is saved with it.
        directory: Output directory, new or empty.
        reload: Read the files back. Models with custom code cannot be loaded by name.

    Raises:
        OSError: If the directory cannot be written.
        ModelError: If the model or its tokenizer cannot be saved or read. The message names the cause.
        RoundTripError: If the tokenizer differs after loading.
    """
    _refuse_unwritable_config(model)
    first = {name: _first_element(value) for name, value in model.state_dict().items()}
    with _explained("model"):
        save_model(model, None, directory, weights=first, original_format=False)
    with _explained("tokenizer"):
        tokenizer.save_pretrained(str(directory))
    if reload:
        _read_configs(model, Path(directory))
        verify_round_trip(None, tokenizer, directory)


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Explain that a checkpoint could not be saved, and why. Errors of the operating system are raised unchanged."""
    try:
        yield
    except Exception as error:  # tokenizers raises plain Exception for parts written in Python
        cause = error.__cause__ if isinstance(error, ModelError) and error.__cause__ is not None else error
        if isinstance(cause, OSError):
            raise cause from None
        raise ModelError(
            f"no checkpoint could be written, since the {what} cannot be saved: {one_line(cause)}; change that before "
            "training"
        ) from error


def _first_element(value: Any) -> Any:
    """Return a view of a tensor's first element, in its own storage. Return anything else unchanged."""
    return value[(slice(0, 1),) * value.ndim] if isinstance(value, torch.Tensor) else value


def _refuse_unwritable_config(model: PreTrainedModel) -> None:
    if lora.is_adapted(model):  # the config of a base is not written
        return
    for name, value in model.config.to_dict().items():
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            raise ModelError(
                f"no checkpoint could be written, since config.json cannot store model.config.{name}, of type "
                f"{type(value).__name__} ({one_line(error)}); remove it, or convert it to numbers and text"
            ) from None


def _read_configs(model: PreTrainedModel, directory: Path) -> None:
    try:
        with quietly():
            if lora.is_adapted(model):
                lora.read_config(directory)
            else:
                AutoConfig.from_pretrained(str(directory))
            if (directory / GENERATION_CONFIG).is_file():
                GenerationConfig.from_pretrained(str(directory))
    except Exception as error:  # validators of configs raise many classes
        raise ModelError(
            f"the model's config cannot be loaded from a checkpoint: {one_line(error)}; register its class with "
            "AutoConfig, or set checkpoint.verify=false if you load checkpoints in your own way"
        ) from error
