"""The frozen weights under an adapter: a fingerprint, by which a run knows its base again."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from gvpo.model import adapter_kinds, lora


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
