"""Models: load them in float32, create randomly initialized ones, disable their noise, and save them.

This module uses transformers' auto classes and does not depend on training. `gvpo.model.tokenizer` reads tokenizers.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeGuard

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from gvpo.errors import ModelError, one_line
from gvpo.hub import from_hub
from gvpo.model import lora
from gvpo.model.endings import ending
from gvpo.model.generation_config import restore, save_beside, settle
from gvpo.model.quantization import Quantization, quantization_config, stay_trainable
from gvpo.model.tokenizer import not_found
from gvpo.model_directories import no_config
from gvpo.nearest import did_you_mean

_AUTO: Any = AutoModelForCausalLM
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def load_model(
    path_or_id: str | Path | None = None,
    *,
    init: Mapping[str, Any] | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
    device: torch.device | str | None = None,
    quantization: Quantization = "none",
) -> PreTrainedModel:
    """Load a causal language model, or create a random one. A LoRA adapter is loaded on its base, ready for training.

    The dtype is always explicit: a bfloat16 checkpoint is loaded as float32 parameters, since bfloat16 parameters do
    not change at the learning rates of RL. Use autocast to compute in bfloat16.

    Args:
        path_or_id: Local directory or Hub model ID; None with `init`.
        init: `{"architecture": "qwen2", ...}` and keys of that transformers config, for a randomly initialized model.
        seed: Random seed of the random model's weights. torch's generators are left unchanged.
        dtype: Dtype of the parameters.
        attention: Attention implementation of transformers, such as "sdpa" or "eager".
        device: Device of the model; None leaves it on the CPU.
        quantization: "4bit" stores the layers' weights in 4 bits (QLoRA): train an adapter on them, not the model.

    Returns:
        The model, in eval mode if it was loaded and in train mode if it is random, as in transformers.

    Raises:
        ModelError: If the model is invalid, incomplete or not reachable, or keys are unknown. The message says what to
            do.

    Example:
        >>> load_model(init={"architecture": "qwen2", "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2,
        ...                  "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 64})
    """
    if (path_or_id is None) == (init is None):
        raise ModelError("give either the path of a model or init for a random one, not both or none")
    if init is not None:
        load = _fresh(init, seed, dtype, attention)
    else:
        load = _stored(str(path_or_id), dtype, attention, quantization)
    return load if device is None else moved_to(load, device)


def is_model(value: object) -> TypeGuard[PreTrainedModel]:
    """Return whether an object is a transformers model."""
    return isinstance(value, PreTrainedModel)


def context_length(model: PreTrainedModel) -> int | None:
    """Return the maximum number of tokens of prompt and completion together, or None if the config has no limit."""
    length: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return length


def vocabulary_size(model: PreTrainedModel) -> int:
    """Return the number of tokens in the model's embedding."""
    embedding: Any = model.get_input_embeddings()
    return int(embedding.num_embeddings)


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    directory: str | Path,
    *,
    weights: Mapping[str, torch.Tensor] | None = None,
    original_format: bool = True,
) -> None:
    """Write a directory that transformers and vLLM load: safetensors, config, generation config, tokenizer.

    For a model with a LoRA adapter, only the adapter is written, in the format of PEFT and vLLM.

    Args:
        model: Model to save.
        tokenizer: Tokenizer to save with it.
        directory: Output directory, created if necessary.
        weights: State of the model, if the model itself has only a part of it.
        original_format: Write weights with the names and shapes of the Hub, if transformers uses others in memory.

    Raises:
        ModelError: If the files cannot be written, or transformers rejects the generation config.
    """
    if Path(directory).is_file():
        raise ModelError(f"cannot save the model to {directory}: it is a file; give a directory")
    try:
        with quietly():
            settle(model, () if tokenizer is None else ending(tokenizer, model).stops)
            if lora.is_adapted(model):
                lora.save_adapter(model, directory)
                save_beside(model, directory)
            else:
                state = None if weights is None else dict(weights)
                model.save_pretrained(directory, state_dict=state, save_original_format=original_format)
        if tokenizer is not None:
            tokenizer.save_pretrained(directory)
    except Exception as error:  # tokenizers raises plain Exception for parts written in Python
        raise ModelError(f"cannot save the model to {directory}: {one_line(error)}") from error


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Keep one activation per layer and recompute the others in the backward pass.

    This only works in train mode, since transformers skips it in eval mode. The random state is not saved for the
    recomputation, because updates are deterministic.

    Raises:
        ModelError: If the architecture does not support it.
    """
    try:
        model.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    except ValueError as error:
        raise ModelError(f"model.gradient_checkpointing: {one_line(error)}; set it to false") from error


@contextmanager
def no_dropout(model: nn.Module) -> Iterator[None]:
    """Give forward passes in train mode the log-probs of eval mode, without dropout, layer drop and router jitter.

    The model must stay in train mode because transformers skips gradient checkpointing in eval mode. Dropout rates are
    0 in this context, which does not affect eval mode. Modules with jitter are in eval mode in this context: in
    PhiMoE's router the size of the jitter is also part of the formula of eval mode, and train mode chooses experts at
    random.

    Args:
        model: Any module, wrapped or not. All values are restored on exit.

    Raises:
        ModelError: If a LoRA adapter has dropout. Disabling it would change the requested training.
    """
    _refuse_lora_dropout(model)
    noisy = [(owner, name, value) for owner in _owners(model) for name, value in _noise(owner).items()]
    jittery = [module for module in model.modules() if module.training and _has_jitter(module)]
    for owner, name, _ in noisy:
        setattr(owner, name, 0.0)
    for module in jittery:
        module.training = False
    try:
        yield
    finally:
        for module in jittery:
            module.training = True
        for owner, name, value in noisy:
            setattr(owner, name, value)


def _owners(model: nn.Module) -> list[object]:
    """Return modules and their configs: some attention layers read `config.attention_dropout` in each forward pass."""
    modules = list(model.modules())
    configs = {id(config): config for module in modules if (config := getattr(module, "config", None)) is not None}
    return [*modules, *configs.values()]


def _noise(owner: object) -> dict[str, float]:
    """Return the attributes of a module or a config that are dropout rates."""
    layer = "Drop" in type(owner).__name__
    return {
        name: value
        for name, value in vars(owner).items()
        if isinstance(value, float) and value > 0 and ("drop" in name or (layer and name == "p"))
    }


def _has_jitter(module: nn.Module) -> bool:
    return any("jitter" in name and isinstance(value, float) for name, value in vars(module).items())


def _refuse_lora_dropout(model: nn.Module) -> None:
    for name, module in model.named_modules():
        p = getattr(module, "p", 0.0)
        if "lora_dropout" in name.split(".") and isinstance(p, float) and p > 0:
            raise ModelError(f"the LoRA adapter has dropout {p} and updates need exact forwards; set lora_dropout=0")


def _fresh(init: Mapping[str, Any], seed: int, dtype: torch.dtype, attention: str) -> Any:
    config = _fresh_config(init)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            return _AUTO.from_config(config, dtype=dtype, attn_implementation=attention)
        except (ValueError, ImportError, RuntimeError) as error:
            raise ModelError(f"cannot create this model with attention={attention!r}: {one_line(error)}") from error


def _fresh_config(init: Mapping[str, Any]) -> PreTrainedConfig:
    """Return the transformers config of `init`. Raise an error for a key that the architecture does not have."""
    keys = dict(init)
    if "architecture" not in keys:
        raise ModelError('init names no architecture; add one, such as architecture = "qwen2"')
    architecture = str(keys.pop("architecture"))
    if architecture not in CONFIG_MAPPING or CONFIG_MAPPING[architecture] not in MODEL_FOR_CAUSAL_LM_MAPPING:
        near = did_you_mean(architecture, sorted(set(CONFIG_MAPPING.keys()) - {architecture}))
        raise ModelError(f"init.architecture={architecture!r} is not a causal language model of transformers{near}")
    known = {*vars(AutoConfig.for_model(architecture)), *CONFIG_MAPPING[architecture].attribute_map, "rope_theta"}
    public = [name for name in known if not name.startswith("_")]
    for key in keys:
        if key not in known:
            raise ModelError(f"init.{key} is not a key of the {architecture} config{did_you_mean(key, public)}")
    try:
        # missing token ids stay unset, because the defaults belong to another tokenizer
        return AutoConfig.for_model(architecture, **{**dict.fromkeys(_TOKEN_IDS), **keys})
    except Exception as error:  # its validators raise their own classes
        raise ModelError(f"init is not a valid {architecture} config: {one_line(error)}") from error


def _stored(path: str, dtype: torch.dtype, attention: str, quantization: Quantization) -> Any:
    """Load a complete model, or an adapter on its base."""
    if not lora.is_adapter(path):
        return pretrained(path, dtype, attention, quantization_config(quantization))
    base, revision = lora.base_of(path)
    model = pretrained(base, dtype, attention, quantization_config(quantization), revision)
    lora.load_adapter(model, path)
    restore(model, path)
    return model


def pretrained(path: str, dtype: torch.dtype, attention: str, bits: Any = None, revision: str | None = None) -> Any:
    """Load a complete model as transformers' AutoModelForCausalLM does, and raise an error if weights are missing.

    Args:
        path: Local directory or Hub model ID.
        dtype: Dtype of the parameters.
        attention: Attention implementation of transformers.
        bits: Quantization config of transformers.
        revision: Revision of a model on the Hub.

    Raises:
        ModelError: If the model is invalid, incomplete or not reachable. The message says what to do.
    """
    if Path(path).is_dir() and not (Path(path) / "config.json").is_file():
        raise ModelError(no_config(path))
    try:
        with quietly(), from_hub(path):
            model, loading = _AUTO.from_pretrained(
                path,
                dtype=dtype,
                attn_implementation=attention,
                output_loading_info=True,
                **({} if revision is None else {"revision": revision}),
                **({} if bits is None else {"quantization_config": bits}),
            )
    except Exception as error:  # parsers of corrupt files raise many classes, including safetensors' own
        raise _cannot_load(path, attention, error) from error
    missing = sorted(loading["missing_keys"])
    if missing:
        raise ModelError(
            f"{path} lacks {len(missing)} weights of a causal language model ({missing[0]}, ...) and they would be "
            "random; give a complete checkpoint"
        )
    if bits is not None:
        stay_trainable(model)
    _refuse_encoder(model, path)
    return model


def _cannot_load(path: str, attention: str, error: Exception) -> ModelError:
    """Return the error for a model that did not load, with a remedy for the user."""
    text = one_line(error)
    if not Path(path).is_dir():
        return ModelError(not_found("model", path, error))
    if "Unrecognized configuration class" in text:  # the text then lists every known model
        return ModelError(f"the model in {path} is not a causal language model; give a decoder, such as Qwen2 or Llama")
    if "attn_implementation" in text or "FlashAttention" in text:
        return ModelError(f"the model in {path} does not load with attention={attention!r}; use sdpa or eager ({text})")
    if "ignore_mismatched_sizes" in text:
        return ModelError(
            f"the weights in {path} have other shapes than its config.json says; use the config that belongs to them"
        )
    if isinstance(error, SafetensorError):
        return ModelError(f"the weights in {path} are corrupt or truncated ({text}); copy or download them again")
    return ModelError(f"cannot load the model in {path}: {text}; give the directory that save_pretrained wrote")


def _refuse_encoder(model: PreTrainedModel, path: str) -> None:
    """Raise an error for an encoder. Encoders load as causal models, so models with an ambiguous config are tested."""
    if getattr(model.config, "is_decoder", True) is False:
        first, other = (next_logprobs(model, [0, second])[0, 0] for second in (0, 1))
        if not torch.equal(first, other):
            raise ModelError(f"the model in {path} is an encoder: its tokens attend to later ones; give a causal model")


def moved_to(model: PreTrainedModel, device: torch.device | str) -> PreTrainedModel:
    """Move the model to a device.

    Raises:
        ModelError: If the device does not exist or is too small.
    """
    try:
        moved: PreTrainedModel = model.to(device)  # type: ignore[arg-type]  # transformers' stubs forget the string
    except (AssertionError, RuntimeError) as error:  # raised by torch if the device is missing or too small
        raise ModelError(f"cannot put the model on {device}: {one_line(error)}") from error
    return moved


@contextmanager
def quietly() -> Iterator[None]:
    """Hide transformers' progress bars and its table of mismatched weights, which our errors report in one line."""
    logs: Any = transformers_logging
    shown, verbosity = logs.is_progress_bar_enabled(), logs.get_verbosity()
    logs.disable_progress_bar()
    logs.set_verbosity_error()
    try:
        yield
    finally:
        logs.set_verbosity(verbosity)
        if shown:
            logs.enable_progress_bar()


@torch.no_grad()
def next_logprobs(model: PreTrainedModel, ids: Sequence[int]) -> torch.Tensor:
    """Return [1, T, V] log-probs of every next token, without gradient or dropout, for ids truncated to the context.

    They are float32, or float64 for a model of that precision.
    """
    limit = context_length(model) or len(ids)
    with no_dropout(model), torch.autocast(model.device.type, enabled=False):
        logits = model(input_ids=torch.tensor([list(ids)[:limit]], device=model.device), use_cache=False).logits
    wide = logits if logits.dtype == torch.float64 else logits.float()
    logprobs: torch.Tensor = wide.log_softmax(-1)
    return logprobs
