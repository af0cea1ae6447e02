"""Round trips: load what was saved as a user would, and compare it with the objects in memory."""

import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gvpo import notices
from gvpo.errors import ModelError, RoundTripError, one_line
from gvpo.model import adapter_kinds, lora
from gvpo.model.model import load_model, next_logprobs, pretrained, vocabulary_size
from gvpo.model.tokenizer import load_tokenizer, tokenizer_difference

LOGPROB_TOLERANCE = 1e-4
"""Largest difference in nats per token between log-probs of a model and its saved copy, due to kernels' rounding."""

WEIGHT_TOLERANCE = 1e-5
"""Largest difference between two bases' weights, as a fraction of the largest weight of the same matrix."""

TEXT = (
    "The committee met on 12 March 1969 and agreed, after a long debate, to build two bridges over the river. "
    "How many trains will cross them each day? If 3 trains leave every hour, then 3 * 24 = 72. "
    "def double(x):\n    return 2 * x  # simple enough\n"
)
"""Ordinary text. On strings of control tokens, float32 noise is ten times larger."""

_SAVE = (
    "save the model in memory and its tokenizer with save_pretrained to a directory, and start from the model that is "
    "loaded from there"
)


def verify_round_trip(
    model: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase,
    directory: str | Path,
    texts: Sequence[str] = (),
) -> None:
    """Load what was saved and compare it with the objects in memory. PEFT loads an adapter on the base that it names.

    Args:
        model: Saved model; None compares only the tokenizer, which is cheap.
        tokenizer: Saved tokenizer.
        directory: Directory of the files.
        texts: Real prompts and completions, compared in addition to built-in probes.

    Raises:
        RoundTripError: If token ids, special tokens, chat template or log-probs differ. The message names the
            difference.
    """
    difference = tokenizer_difference(tokenizer, load_tokenizer(directory), texts)
    if difference:
        raise RoundTripError(
            f"the tokenizer saved in {directory} changes when it is loaded again: {difference}; "
            "train with a tokenizer that save_pretrained preserves"
        )
    if model is not None and lora.is_adapted(model):
        lora.verify_adapter(model, directory)
        _verify_as_peft_loads(model, directory, token_ids(tokenizer))
    elif model is not None:
        text = max(texts, key=len, default="Round trip.")
        _verify_logprobs(model, tokenizer(text).input_ids or [0], directory)


def rehearse_adapter(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Save the adapter to a temporary directory before training, load it as a user would, and compare the two.

    During the test, noise is added to its weights, because most adapters start at zero, which would hide lost weights.

    Args:
        model: Policy, restored afterwards.
        tokenizer: Tokenizer of the policy.

    Raises:
        RoundTripError: If PEFT does not build the same model from the base's name and the adapter. The message says
            what to do.
    """
    with tempfile.TemporaryDirectory() as directory, _moved(model):
        lora.save_adapter(model, directory)
        _verify_as_peft_loads(model, directory, token_ids(tokenizer))


def token_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the token ids of ordinary text, and the ids of the last tokens."""
    ids: list[int] = tokenizer(TEXT).input_ids[:128]
    return [*ids, *range(max(0, len(tokenizer) - 8), len(tokenizer))]


def _verify_logprobs(model: PreTrainedModel, ids: Sequence[int], directory: str | Path) -> None:
    saved = load_model(directory, dtype=model.dtype, attention=model.config._attn_implementation, device=model.device)
    saved.train(model.training)
    difference = float((next_logprobs(model, ids) - next_logprobs(saved, ids)).abs().max())
    if not difference <= LOGPROB_TOLERANCE:
        raise RoundTripError(
            f"the model saved in {directory} gives other log-probs, by up to {difference:.2g} nats, than the one in "
            "memory; its architecture does not survive save_pretrained"
        )


def _verify_as_peft_loads(model: PreTrainedModel, directory: str | Path, ids: Sequence[int]) -> None:
    """Check that `PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), directory)` is the model."""
    name = lora.named_base(model)
    if not name:
        return
    base = _base(model, name)
    if vocabulary_size(base) != vocabulary_size(model):
        raise RoundTripError(
            f"the base model {name} has {vocabulary_size(base)} tokens and the model in memory {vocabulary_size(model)}"
            f", so its adapter would fit no model on disk; {_SAVE}"
        )
    found = _with_adapter(base, model, directory)
    _compare_weights(model, found, name)
    _compare_logprobs(model, found, name, ids)


def _base(model: PreTrainedModel, name: str) -> PreTrainedModel:
    bits = getattr(model.config, "quantization_config", None)
    try:
        base: PreTrainedModel = pretrained(
            name, model.dtype, model.config._attn_implementation, bits, lora.base_revision(model)
        )
    except ModelError as error:
        raise RoundTripError(f"the adapter would name a base model that does not load: {error}, or {_SAVE}") from error
    return base


def _with_adapter(base: PreTrainedModel, model: PreTrainedModel, directory: str | Path) -> PreTrainedModel:
    import peft

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about tied weights, which the comparison covers
            whole = peft.PeftModel.from_pretrained(base, str(directory), adapter_name=lora.active_adapter(model))
    except Exception as error:  # PEFT raises the exceptions of its parts
        raise RoundTripError(
            f"PEFT cannot load this adapter on the base model that it names: {one_line(error)}; {_SAVE}"
        ) from error
    found: PreTrainedModel = whole.get_base_model().train(model.training)
    return found


def _compare_weights(model: PreTrainedModel, found: PreTrainedModel, name: str) -> None:
    unlike = _unlike(model, found)
    if not unlike:
        return
    if unlike[0] not in model.state_dict() and model.dtype.itemsize < 4:
        raise RoundTripError(
            f"the model in memory was cast to {str(model.dtype).removeprefix('torch.')}, its {unlike[0]} too, which "
            "loading in that precision does not do; load it with from_pretrained(..., dtype=...)"
        )
    start = adapter_kinds.changing_start(model)
    if start is not None:
        raise RoundTripError(
            f"init_lora_weights={start!r} changes the base model, and PEFT does not repeat that change when it loads "
            "the adapter; set it to True, or to 'pissa' without a number of iterations"
        )
    raise RoundTripError(
        f"the base model in memory is not {name}, which its adapter would name: {unlike[0]} differs; {_SAVE}"
        + ("" if Path(name).is_dir() else ", or give the revision that it came from as LoraConfig(revision=...)")
    )


def _unlike(model: PreTrainedModel, found: PreTrainedModel) -> list[str]:
    """Return the names of weights and buffers that differ. Weights may be rounded to half precision or 4 bits."""
    rounded = model.dtype.itemsize < 4 or bool(getattr(model, "is_quantized", False))
    own, others = _plain_names(model.state_dict()), _plain_names(found.state_dict())
    buffers, other_buffers = _plain_names(dict(model.named_buffers())), dict(found.named_buffers())
    return [
        *(name for name, other in others.items() if not _is_same(own.get(name), other, rounded=rounded)),
        *(name for name, other in _plain_names(other_buffers).items() if not _is_equal(buffers.get(name), other)),
    ]


def _plain_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors by names that do not depend on which layers have an adapter."""
    return {name.replace(".base_layer", "").replace(".original_module", ""): each for name, each in tensors.items()}


def _is_equal(own: Tensor | None, other: Tensor) -> bool:
    return own is not None and own.dtype == other.dtype and _is_same(own, other, rounded=False)


def _is_same(own: Tensor | None, other: Tensor, *, rounded: bool) -> bool:
    """Compare two weights, up to the half precision in which the model in memory stores its base."""
    if own is None or own.shape != other.shape:
        return False
    own, other = own.detach().cpu(), other.cpu()
    if not own.is_floating_point() or own.numel() == 0:
        return torch.equal(own, other)
    pairs = [(own, other.to(own))]
    if rounded:  # the loaded base, or the trained weights, may be more precise
        pairs += [
            (own, other.to(torch.bfloat16).to(own)),
            (own, other.to(torch.float16).to(own)),
            (own.to(other), other),
        ]
    return any(bool((one - two).abs().max() <= WEIGHT_TOLERANCE * one.abs().max()) for one, two in pairs)


def _compare_logprobs(model: PreTrainedModel, found: PreTrainedModel, name: str, ids: Sequence[int]) -> None:
    """Compare log-probs, unless the device has no room for a second model. The weights are compared before."""
    if model.dtype.itemsize < 4 and adapter_kinds.trains_whole_modules(model):
        return  # float32 modules on a half-precision base compute only under autocast
    try:
        placed: Any = found if getattr(found, "is_quantized", False) else found.to(model.device)  # type: ignore[arg-type]
        difference = float((next_logprobs(model, ids) - next_logprobs(placed, ids)).abs().max())
    except torch.OutOfMemoryError:
        return
    if not difference <= LOGPROB_TOLERANCE:
        raise RoundTripError(
            f"{name} with the adapter, as PEFT loads them, gives other log-probs, by up to {difference:.2g} nats, than "
            f"the model in memory; {_SAVE}"
        )


@contextmanager
@torch.no_grad()
def _moved(model: PreTrainedModel) -> Iterator[None]:
    """Add noise to the trained weights in this context. Restore them on exit, bit by bit."""
    generator = torch.Generator().manual_seed(0)
    before = [(parameter, parameter.clone()) for _, parameter in lora.trainable(model)]
    try:
        for parameter, _ in before:
            parameter.add_((0.02 * torch.randn(parameter.shape, generator=generator)).to(parameter))
        yield
    finally:
        for parameter, value in before:
            parameter.copy_(value)


def warn_of_nameless_base(model: PreTrainedModel) -> None:
    """Warn at the start of a run that the base of its adapter cannot be found later."""
    if lora.is_adapted(model) and not lora.named_base(model):
        notices.warn(
            "the base model was not loaded from anywhere, so its adapter cannot name it and is useless without it; "
            "save it with save_pretrained and load it from there"
        )
