"""Fingerprints of loaded models, by which later work recognizes its model.

    base_fingerprint    every bit of the weights under an adapter, for a resumed LoRA run
    fingerprint         some values of each weight, the config and the tokenizer, for features of a probe

`gvpo.model.weight_files.weights_fingerprint` identifies a model on disk without loading it.
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
"""Number of evenly spaced values per weight that enter a fingerprint."""


def base_fingerprint(model: nn.Module) -> str:
    """Return a hash of all frozen weights of a model with an adapter, or "" for a model without one.

    All weights are read, which takes about half a second per gigabyte and core. Weights changed by an adapter's start
    (PiSSA) are excluded, because that change differs in the last bits between machines.
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
    """Return a short name that depends on the weights, the config and the tokenizer, but not on the directory.

    Only some values of each weight are read, which is fast. A change that affects only other values goes unnoticed.
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
