"""Models: load them in float32, make fresh ones, switch their noise off, save them so that they come back.

Knows transformers' auto classes and nothing of training; reading a tokenizer is `gvpo.model.tokenizer`.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
    """Load a causal language model, or make a fresh one. A LoRA adapter comes on its base, ready to be trained on.

    The dtype is always explicit: a bfloat16 checkpoint comes as float32 parameters, since bfloat16 ones do not move at
    the learning rates of RL. Compute in bfloat16 is autocast's business.

    Args:
        path_or_id: a local directory or a hub id; None with `init`.
        init: `{"architecture": "qwen2", ...}` and keys of that transformers config: a random model instead.
        seed: of the random model's weights; torch's own generators are left as they were.
        dtype: of the parameters.
        attention: transformers' attention implementation, "sdpa" or "eager" say.
        device: where to put it; None leaves it on the CPU.
        quantization: "4bit" keeps the layers' weights in 4 bits (QLoRA): train an adapter on them, not the model.

    Returns:
        The model in eval mode, or in train mode where it is fresh: transformers' own defaults.

    Raises:
        ModelError: not a model, not complete, not reachable, or unknown keys; the message says what to do.

    Example:
        >>> load_model(init={"architecture": "qwen2", "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2,
        ...                  "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 64})
    """
    if (path_or_id is None) == (init is None):
        raise ModelError("give either the path of a model or init for a fresh one, not both or none")
    if init is not None:
        load = _fresh(init, seed, dtype, attention)
    else:
        load = _stored(str(path_or_id), dtype, attention, quantization)
    return load if device is None else moved_to(load, device)


def is_model(value: object) -> bool:
    """Whether something is a transformers model."""
    return isinstance(value, PreTrainedModel)


def context_length(model: PreTrainedModel) -> int | None:
    """How many tokens, prompt and completion together, the model can read; None if its config does not say."""
    length: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return length


def vocabulary_size(model: PreTrainedModel) -> int:
    """How many tokens the model's embedding has."""
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

    Of a model with a LoRA adapter, the adapter alone, as PEFT and vLLM load it.

    Args:
        model: what to save.
        tokenizer: saved beside it.
        directory: made if need be.
        weights: the model's state, where the model itself holds only a part of it.
        original_format: Write weights in the names and shapes of the hub, where transformers has others in memory.

    Raises:
        ModelError: the files cannot be written, or transformers refuses the generation config.
    """
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
    """Keep one activation a layer and compute the others again in the backward.

    It works in train mode alone: transformers skips it in eval mode. No random state is kept for the second time: in
    updates nothing is random.

    Raises:
        ModelError: the architecture cannot.
    """
    try:
        model.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    except ValueError as error:
        raise ModelError(f"model.gradient_checkpointing: {one_line(error)}; set it to false") from error


@contextmanager
def no_dropout(model: nn.Module) -> Iterator[None]:
    """Give forwards in train mode the log-probs of eval mode: without dropout, layer drop and router jitter.

    Train mode must stay because transformers skips gradient checkpointing in eval mode. Rates of dropout are 0 inside,
    since no evaluation reads them. A module with jitter is in eval mode inside: in PhiMoE's router the size of the
    jitter is a part of the formula of evaluation too, and train mode draws experts at random besides.

    Args:
        model: any module, wrapped or not. Every value is as it was on exit.

    Raises:
        ModelError: a LoRA adapter has dropout. Silencing it would train otherwise than was asked for.
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
    """Modules, and their configs: some attention layers read `config.attention_dropout` in each forward."""
    modules = list(model.modules())
    configs = {id(config): config for module in modules if (config := getattr(module, "config", None)) is not None}
    return [*modules, *configs.values()]


def _noise(owner: object) -> dict[str, float]:
    """Return the attributes of a module or a config that are rates of dropout."""
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
            raise ModelError(f"cannot make this model with attention={attention!r}: {one_line(error)}") from error


def _fresh_config(init: Mapping[str, Any]) -> PreTrainedConfig:
    """The transformers config of `init`; a key that the architecture does not have is an error, not ignored."""
    keys = dict(init)
    if "architecture" not in keys:
        raise ModelError('init names no architecture; add architecture = "qwen2", say')
    architecture = str(keys.pop("architecture"))
    if architecture not in CONFIG_MAPPING or CONFIG_MAPPING[architecture] not in MODEL_FOR_CAUSAL_LM_MAPPING:
        near = did_you_mean(architecture, sorted(set(CONFIG_MAPPING.keys()) - {architecture}))
        raise ModelError(f"init.architecture={architecture!r} is no causal language model of transformers{near}")
    known = {*vars(AutoConfig.for_model(architecture)), *CONFIG_MAPPING[architecture].attribute_map, "rope_theta"}
    public = [name for name in known if not name.startswith("_")]
    for key in keys:
        if key not in known:
            raise ModelError(f"init.{key} is not a key of the {architecture} config{did_you_mean(key, public)}")
    try:
        # token ids that were not given stay unset: the defaults belong to another tokenizer
        return AutoConfig.for_model(architecture, **{**dict.fromkeys(_TOKEN_IDS), **keys})
    except Exception as error:  # its validators raise classes of their own
        raise ModelError(f"init is not a valid {architecture} config: {one_line(error)}") from error


def _stored(path: str, dtype: torch.dtype, attention: str, quantization: Quantization) -> Any:
    """A whole model, or an adapter on its base."""
    if not lora.is_adapter(path):
        return pretrained(path, dtype, attention, quantization_config(quantization))
    base, revision = lora.base_of(path)
    model = pretrained(base, dtype, attention, quantization_config(quantization), revision)
    lora.load_adapter(model, path)
    restore(model, path)
    return model


def pretrained(path: str, dtype: torch.dtype, attention: str, bits: Any = None, revision: str | None = None) -> Any:
    """Load a whole model as transformers' AutoModelForCausalLM does, and refuse one that is not complete.

    Args:
        path: a local directory or a hub id.
        dtype: of the parameters.
        attention: transformers' attention implementation.
        bits: transformers' configuration of quantised weights.
        revision: of a model of the hub.

    Raises:
        ModelError: not a model, not complete or not reachable; the message says what to do.
    """
    if Path(path).is_dir() and not (Path(path) / "config.json").is_file():
        raise ModelError(
            f"{path} has no config.json, so it is not a model; give the directory that save_pretrained wrote"
        )
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
    except Exception as error:  # damaged files raise whatever their parsers do, safetensors' own class among it
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
    """Why a model did not load, in the words of who has to mend it."""
    text = one_line(error)
    if not Path(path).is_dir():
        return ModelError(not_found("model", path, error))
    if "Unrecognized configuration class" in text:  # goes on to list every model there is
        return ModelError(f"the model in {path} is not a causal language model; give a decoder, as Qwen2 or Llama are")
    if "attn_implementation" in text or "FlashAttention" in text:
        return ModelError(f"the model in {path} cannot be had with attention={attention!r}; use sdpa or eager ({text})")
    if "ignore_mismatched_sizes" in text:
        return ModelError(
            f"the weights in {path} have other shapes than its config.json says; give the config that they came with"
        )
    if isinstance(error, SafetensorError):
        return ModelError(f"the weights in {path} are damaged or cut off ({text}); copy or download them again")
    return ModelError(f"cannot load the model in {path}: {text}; give the directory that save_pretrained wrote")


def _refuse_encoder(model: PreTrainedModel, path: str) -> None:
    """Encoders load as causal models and look ahead all the same; those whose config leaves it open are asked."""
    if getattr(model.config, "is_decoder", True) is False:
        first, other = (next_logprobs(model, [0, second])[0, 0] for second in (0, 1))
        if not torch.equal(first, other):
            raise ModelError(f"the model in {path} is an encoder: its tokens see later ones; give a causal model")


def moved_to(model: PreTrainedModel, device: torch.device | str) -> PreTrainedModel:
    """The model on a device.

    Raises:
        ModelError: there is no such device, or it is too small.
    """
    try:
        moved: PreTrainedModel = model.to(device)  # type: ignore[arg-type]  # transformers' stubs forget the string
    except (AssertionError, RuntimeError) as error:  # torch's words for a device that is not there, or too small
        raise ModelError(f"cannot put the model on {device}: {one_line(error)}") from error
    return moved


@contextmanager
def quietly() -> Iterator[None]:
    """No bar of transformers for each load and save, and no table of what did not fit: our error says it in a line."""
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
    """Return [1, T, V] log-probs of every next token, without gradient or noise, of ids cut to the context.

    They are float32, or float64 for a model of that precision.
    """
    limit = context_length(model) or len(ids)
    with no_dropout(model), torch.autocast(model.device.type, enabled=False):
        logits = model(input_ids=torch.tensor([list(ids)[:limit]], device=model.device), use_cache=False).logits
    wide = logits if logits.dtype == torch.float64 else logits.float()
    logprobs: torch.Tensor = wide.log_softmax(-1)
    return logprobs
