"""Short names for loaded models, by which later work knows its model again.

    base_fingerprint    every bit of the weights under an adapter: a LoRA run that is resumed
    fingerprint         some values of each weight, the config and the tokenizer: features of a probe

`gvpo.model.weight_files.weights_fingerprint` names a model on the disk, which is not loaded for it.
"""

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gvpo.model import adapter_kinds, lora
from gvpo.model.tokenizer import PROBES

_SAMPLED = 64
"""Values of each weight that a fingerprint looks at, spread evenly."""


def base_fingerprint(model: nn.Module) -> str:
    """Return a hash of every frozen weight of a model with an adapter; "" for a model without one.

    The model is read whole: about half a second per gigabyte and core. Weights that an adapter's start has changed
    (PiSSA) are left out, since the same change is not the same to the last bit on another machine.
    """
    if not lora.is_adapted(model):
        return ""
    with ThreadPoolExecutor() as pool:
        digests = pool.map(_digest, (tensor for _, tensor in _frozen(model)))
        total = hashlib.sha256()
        for (name, tensor), digest in zip(_frozen(model), digests, strict=True):
            total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {digest}".encode())
    return total.hexdigest()


def _frozen(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    changed = adapter_kinds.changing_start(model) is not None
    for name, parameter in model.named_parameters():
        left_out = adapter_kinds.is_adapters_own(name) or (changed and "base_layer" in name)
        if not parameter.requires_grad and not left_out:
            yield name, parameter.detach()


def _digest(tensor: Tensor) -> str:
    flat = tensor.cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(flat.numpy().data).hexdigest()


def fingerprint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a short name that changes with the weights, the config or the tokenizer, and not with the directory.

    Of each weight some values are read, so that it takes no time; a change to other values alone goes unnoticed.
    """
    digest = hashlib.blake2b(digest_size=16)
    config = {key: value for key, value in model.config.to_diff_dict().items() if not key.startswith("_")}
    config.pop("transformers_version", None)
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    for name, weight in model.named_parameters():
        flat = weight.detach().reshape(-1)
        values = flat[:: max(1, flat.numel() // _SAMPLED)].float().cpu().numpy()
        digest.update(f"{name} {tuple(weight.shape)}".encode() + values.tobytes())
    texts = [tokenizer(text).input_ids for text in PROBES]
    digest.update(f"{texts} {tokenizer.eos_token_id} {tokenizer.chat_template}".encode())
    return digest.hexdigest()
