"""LoRA: a small trained adapter on a frozen model, through peft.

The policy stays the same transformers model; peft adds adapter layers to it. A user's `PeftModel` is converted to the
same form (`unwrapped`), which shares its modules. For the reasons, see docs/internals/decisions/0011-lora.md.

An adapter on disk has the format of PEFT and vLLM: adapter_config.json and adapter_model.safetensors, without the base.
"""

import copy
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from torch import Tensor, nn

from gvpo import notices
from gvpo.config import TrainConfig
from gvpo.errors import ModelError, RoundTripError, one_line
from gvpo.model.weight_files import note_origin, origin_of, warn_of_changed_base
from gvpo.model_directories import ADAPTER_CONFIG, require_adapter

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONFIG_FILE, WEIGHTS_FILE = ADAPTER_CONFIG, "adapter_model.safetensors"
_BASE_FILES = "base_files"
"""Metadata key of an adapter's weights that stores the fingerprint of its base's weight files."""
_PREFIX = "base_model.model."
"""Prefix of weight names in PEFT's files."""

_SHAPE = ("r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "bias")
"""Settings of an adapter that decide the meaning of its weights."""


@dataclass(frozen=True)
class Adapter:
    """Description of an adapter.

    Args:
        base: Base model, a path or a Hub model ID; "" for a randomly initialized model.
        rank: Rank of its matrices.
        alpha: Scale of its output, which is multiplied by alpha / rank.
        targets: Layers that it changes, by the last part of their names.
        dtype: Dtype of the base's weights in training.
        revision: Revision of a base on the Hub; None for the latest.
    """

    base: str
    rank: int
    alpha: float
    targets: tuple[str, ...]
    dtype: str = "float32"
    revision: str | None = None


def is_adapted(model: object) -> bool:
    """Return whether a model contains adapter layers of peft. This never imports peft."""
    if not isinstance(model, nn.Module) or "peft" not in sys.modules:
        return False
    return next(layers_of(model), None) is not None


def unwrapped(model: Any) -> Any:
    """Return the transformers model inside a `PeftModel`, sharing its modules. Return anything else unchanged.

    Raises:
        ModelError: If the adapter is not LoRA, or not exactly one is active.
    """
    if "peft" not in sys.modules or not isinstance(model, sys.modules["peft"].PeftModel):
        return model
    for config in model.peft_config.values():
        require_lora(config)
    if len(model.active_adapters) != 1:
        raise ModelError(f"the model has {len(model.active_adapters)} active adapters; activate one with set_adapter")
    base = model.get_base_model()
    base.peft_config = model.peft_config
    return base


def settings(config: TrainConfig) -> Any:
    """Return the `peft.LoraConfig` of a run's [lora] section, or None if it sets no new adapter."""
    if config.lora_rank is None:
        return None
    return _peft().LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_rank,
        lora_alpha=config.lora_alpha or 2 * config.lora_rank,
        lora_dropout=config.lora_dropout,
        target_modules=config.lora_target_modules or "all-linear",
    )


def require_lora(config: Any) -> None:
    """Raise an error unless `config` is a `peft.LoraConfig` without dropout.

    Raises:
        ModelError: If it is not. The message says what to pass.
    """
    kind = _peft().LoraConfig
    if not isinstance(config, kind):
        raise ModelError(f"peft_config is {type(config).__name__}; only LoRA is supported: pass peft.LoraConfig(...)")
    if config.lora_dropout > 0:
        raise ModelError(
            f"the LoRA adapter has dropout {config.lora_dropout} and updates need exact forwards; set lora_dropout=0"
        )


def add_adapter(model: "PreTrainedModel", config: Any, *, seed: int = 0) -> None:
    """Add a new adapter to a model and freeze all other weights. The adapter's weights are float32.

    Args:
        model: Model without an adapter, changed in place.
        config: A `peft.LoraConfig`.
        seed: Random seed of the adapter's initialization. torch's generators are left unchanged.

    Raises:
        ModelError: If peft is missing, the adapter has dropout or is not LoRA, or the model has no such layers.
    """
    _peft()
    require_lora(config)
    if is_adapted(model):
        raise ModelError("the model has an adapter already; train that one, or merge it first (gvpo merge)")
    _require_targets(model, config)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            model.add_adapter(copy.deepcopy(config))
        except (ValueError, TypeError, NotImplementedError) as error:
            raise ModelError(f"this adapter does not fit the model: {one_line(error)}") from error
    _prepare(model)


def load_adapter(model: "PreTrainedModel", directory: str | Path) -> None:
    """Add a stored adapter to a model, ready for training.

    Args:
        model: Its base, without an adapter, changed in place.
        directory: Directory of the adapter, or a Hub model ID.

    Raises:
        ModelError: If there is no adapter, or it belongs to another model.
    """
    config = read_config(directory)
    config.inference_mode = False
    add_adapter(model, config)
    read_adapter(model, directory)
    warn_of_changed_base(model, _base_files(directory), directory, named_base(model))


def read_config(directory: str | Path) -> Any:
    """Return the settings of a stored adapter.

    Raises:
        ModelError: If there is no adapter, or it is not LoRA.
    """
    require_adapter(directory)  # without a file, peft would look on the Hub
    try:
        config = _peft().PeftConfig.from_pretrained(str(directory))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"there is no adapter {directory} here or on the Hub ({one_line(error)})") from error
    require_lora(config)
    return config


def read_adapter(model: "PreTrainedModel", directory: str | Path) -> None:
    """Copy a stored adapter's weights into the model's adapter, bit by bit.

    Raises:
        ModelError: If there is no adapter, or it has other settings, layers or shapes.
    """
    _peft()
    from peft.utils import set_peft_model_state_dict

    stored, own = read_config(directory), own_config(model)
    for name in _SHAPE:
        if getattr(stored, name, None) != getattr(own, name, None):
            raise ModelError(
                f"the adapter in {directory} has {name}={getattr(stored, name)!r}, the model's has "
                f"{getattr(own, name)!r}; use the settings that it was trained with"
            )
    try:
        found = set_peft_model_state_dict(model, dict(_stored(directory)), adapter_name=active_adapter(model))
    except (KeyError, RuntimeError) as error:
        raise ModelError(f"the adapter in {directory} does not fit this model: {one_line(error)}") from error
    unlike = [*found.unexpected_keys, *(set(found.missing_keys) & dict(trainable(model)).keys())]
    if unlike:
        raise ModelError(f"the adapter in {directory} does not fit this model: {min(unlike)} differs")


def save_adapter(model: "PreTrainedModel", directory: str | Path) -> None:
    """Write the active adapter in PEFT's format: its settings, with the base's name, and its weights, not the base."""
    Path(directory).mkdir(parents=True, exist_ok=True)
    config = copy.deepcopy(own_config(model))
    config.inference_mode = True
    config.task_type = config.task_type or "CAUSAL_LM"  # peft.AutoPeftModelForCausalLM needs it to load an adapter
    config.base_model_name_or_path, config.revision = named_base(model), base_revision(model)
    config.save_pretrained(str(directory))
    # clone, because safetensors rejects two names for one tensor, which tied modules have
    weights = {f"{_PREFIX}{name}": tensor.detach().cpu().contiguous().clone() for name, tensor in _own(model).items()}
    metadata = {"format": "pt", _BASE_FILES: origin_of(model).files}
    safetensors.torch.save_file(weights, Path(directory) / WEIGHTS_FILE, metadata=metadata)


def verify_adapter(model: "PreTrainedModel", directory: str | Path) -> None:
    """Compare a stored adapter with the model's own, bit by bit, and read it back, without a copy of the base.

    Raises:
        RoundTripError: If settings, names or values differ.
    """
    stored, own = dict(_stored(directory)), _own(model)
    unlike = sorted(stored.keys() ^ own.keys()) or [k for k in own if not torch.equal(own[k].cpu(), stored[k])]
    if unlike:
        raise RoundTripError(f"the adapter saved in {directory} is not the one in memory: {unlike[0]} differs")
    try:
        read_adapter(model, directory)
    except ModelError as error:
        raise RoundTripError(f"the adapter saved in {directory} cannot be loaded again: {error}") from error


def trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield names and parameters that are trained."""
    yield from ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


@contextmanager
def adapter_off(model: nn.Module) -> Iterator[None]:
    """Disable the adapter within this context, so that the model computes as its base. Restore it on exit."""
    layers = list(layers_of(model))
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for layer in layers:
        layer.enable_adapters(enabled=False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(enabled=True)
        for parameter, gradient in wanted:  # enable_adapters changes these too
            parameter.requires_grad_(gradient)


def adapter_of(model: nn.Module) -> Adapter | None:
    """Describe the model's adapter, or return None if it has none."""
    if not is_adapted(model):
        return None
    config = own_config(model)
    layers = set(layers_of(model))
    names = {name.rpartition(".")[2] for name, module in model.named_modules() if module in layers}
    frozen = (p.dtype for p in model.parameters() if p.is_floating_point() and not p.requires_grad)
    dtype = str(next(frozen, torch.float32)).removeprefix("torch.")
    return Adapter(named_base(model), config.r, config.lora_alpha, tuple(sorted(names)), dtype, base_revision(model))


def is_adapter(directory: str | Path) -> bool:
    """Return whether a local directory contains an adapter and no complete model."""
    path = Path(directory)
    return (path / CONFIG_FILE).is_file() and not (path / "config.json").is_file()


def named_base(model: nn.Module) -> str:
    """Return the name under which an adapter records its base, or "" for a model that was not loaded from anywhere.

    A local directory is recorded by its absolute path, since a relative path depends on the working directory.
    """
    name = str(getattr(model, "name_or_path", ""))
    return str(Path(name).resolve()) if name and Path(name).is_dir() else name


def base_revision(model: Any) -> str | None:
    """Return the revision that an adapter records for a base on the Hub: its settings' one, else the loaded commit."""
    given: str | None = own_config(model).revision
    return given or origin_of(model).commit


def base_of(directory: str | Path) -> tuple[str, str | None]:
    """Return the path or ID of the base model of a stored adapter, and its revision on the Hub.

    Raises:
        ModelError: If it names no base model.
    """
    config = read_config(directory)
    if not config.base_model_name_or_path:
        raise ModelError(f"the adapter in {directory} does not name its base model; give it with --base, or base=")
    return str(config.base_model_name_or_path), config.revision


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ModelError(f"LoRA needs peft ({one_line(error)}); pip install 'gvpo[lora]'") from error
    return peft


def layers_of(model: nn.Module) -> Iterator[Any]:
    """Yield peft's modules in a model that can be enabled and disabled."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    yield from (m for m in model.modules() if isinstance(m, BaseTunerLayer | AuxiliaryTrainingWrapper))


def _require_targets(model: nn.Module, config: Any) -> None:
    """Raise an error if a target matches no layer. peft ignores such names as long as another one matches."""
    targets = config.target_modules
    if not isinstance(targets, list | tuple | set) or any(p.ndim > 2 for p in model.parameters()):
        return  # a pattern, or experts, whose old names peft converts
    names = [name for name, _ in model.named_modules()]
    for target in sorted(targets):
        if not any(name == target or name.endswith(f".{target}") for name in names):
            linear = sorted({n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, nn.Linear)})
            raise ModelError(f"the model has no layer {target!r} for LoRA; its linear layers are {', '.join(linear)}")


def _prepare(model: "PreTrainedModel") -> None:
    note_origin(model, named_base(model))
    for _, parameter in trainable(model):
        if parameter.dtype in (torch.bfloat16, torch.float16):  # half precision stalls at the rates of RL
            parameter.data = parameter.data.float()
    embedding: Any = model.get_input_embeddings()
    if not hasattr(embedding, "num_embeddings"):  # peft's layer hides the attribute, which other code reads
        inner = embedding.get_base_layer() if hasattr(embedding, "get_base_layer") else embedding.original_module
        embedding.num_embeddings = inner.num_embeddings
    if model.get_output_embeddings() in set(layers_of(model)):
        notices.warn(
            "the adapter changes the model's head, so updates store its full logits; exclude the head to save memory"
        )


def active_adapter(model: nn.Module) -> str:
    """Return the name of the only active adapter.

    Raises:
        ModelError: If no adapter or several adapters are active.
    """
    active = {name for layer in layers_of(model) for name in layer.active_adapters}
    if len(active) != 1:
        raise ModelError(f"the model has {len(active)} active adapters; gvpo trains and saves exactly one")
    return str(active.pop())


def own_config(model: Any) -> Any:
    """Return the settings of the active adapter.

    Raises:
        ModelError: If the model has no adapter.
    """
    if not is_adapted(model):
        raise ModelError("the model has no adapter; add one with peft_config, lora.rank or lora.path")
    return model.peft_config[active_adapter(model)]


def _own(model: "PreTrainedModel") -> Mapping[str, Tensor]:
    """Return the active adapter's weights under PEFT's names, without its prefix and without copies.

    Never use peft's "auto" for embeddings, because it looks the base model up on the Hub, and saves frozen weights.
    """
    _peft()
    from peft import get_peft_model_state_dict

    state = model.state_dict()  # passed, since peft mistakes biases in its own state for corrupt weights
    found: dict[str, Tensor] = get_peft_model_state_dict(
        model, state, adapter_name=active_adapter(model), save_embedding_layers=False
    )
    return found


def _stored(directory: str | Path) -> Iterator[tuple[str, Tensor]]:
    """Yield a stored adapter's weights on the CPU, without PEFT's prefix."""
    from peft.utils import load_peft_weights

    try:
        weights = load_peft_weights(str(directory), device="cpu")
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise ModelError(f"the adapter in {directory} cannot be read: {one_line(error)}; copy it again") from error
    yield from ((name.removeprefix(_PREFIX), tensor) for name, tensor in weights.items())


def _base_files(directory: str | Path) -> str:
    """Return the recorded fingerprint of an adapter's base, or "" if it records none or is on the Hub."""
    file = Path(directory) / WEIGHTS_FILE
    if not file.is_file():
        return ""
    with safetensors.safe_open(file, "pt") as weights:
        return str((weights.metadata() or {}).get(_BASE_FILES, ""))
