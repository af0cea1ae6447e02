"""Base weights in 4 bits for QLoRA, through transformers and bitsandbytes."""

import importlib.util
from typing import Any, Literal

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from gvpo.errors import ModelError

Quantization = Literal["none", "4bit"]


def quantization_config(kind: Quantization) -> BitsAndBytesConfig | None:
    """Return the quantization config for `from_pretrained`, or None for "none".

    "4bit" is QLoRA's own format: NF4 with double quantization (Dettmers et al. 2023, arXiv:2305.14314, section 3).

    Raises:
        ModelError: If bitsandbytes is not installed, or the kind is unknown.
    """
    if kind == "none":
        return None
    if kind != "4bit":
        raise ModelError(f"quantization is {kind!r}; use 'none' or '4bit'")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError("lora.quantization='4bit' needs bitsandbytes; pip install 'gvpo[qlora]'")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if torch.cuda.is_available() else torch.float32,
    )


def stay_trainable(model: nn.Module) -> None:
    """Keep bitsandbytes on CPUs from repacking weights when the model samples.

    Its inference layout in bfloat16 has no gradient, and stays when training continues, so gradients are silently wrong
    (version 0.50).
    """
    module: Any
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
