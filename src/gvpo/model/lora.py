"""LoRA: a small trained adapter on a frozen model, through peft.

The policy stays the transformers model that it was; peft puts adapter layers into it. A `PeftModel` of the user's is
taken apart to that same form (`unwrapped`), its modules shared. Why so: docs/internals/decisions/0011-lora.md.

An adapter on disk is what PEFT and vLLM load: adapter_config.json and adapter_model.safetensors, and never the base.
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

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_BASE_FILES = "base_files"
"""Under this name the metadata of an adapter's weights tells the weight files of its base."""
_PREFIX = "base_model.model."
"""What PEFT puts before a weight's name on disk."""

_SHAPE = ("r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "bias")
"""Settings of an adapter that decide what its weights mean."""


@dataclass(frozen=True)
class Adapter:
    """What an adapter is, in words for people.

    Args:
        base: the model under it, a path or hub id; "" for one that was made on the spot.
        rank: of its matrices.
        alpha: its output is scaled by alpha / rank.
        targets: the layers that it changes, by the last part of their names.
        dtype: of the base's weights in training.
        revision: of a base on the hub; None for the newest.
    """

    base: str
    rank: int
    alpha: float
    targets: tuple[str, ...]
    dtype: str = "float32"
    revision: str | None = None


def is_adapted(model: object) -> bool:
    """Whether a model has adapter layers of peft in it; never imports peft."""
    if not isinstance(model, nn.Module) or "peft" not in sys.modules:
        return False
    return next(layers_of(model), None) is not None


def unwrapped(model: Any) -> Any:
    """The transformers model inside a `PeftModel`, sharing its modules; anything else as it is.

    Raises:
        ModelError: the adapter is not LoRA, or more or fewer than one is active.
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
    """The `peft.LoraConfig` of a run's [lora] section; None where it asks for no fresh adapter."""
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
    """Refuse what is no `peft.LoraConfig`, or has dropout.

    Raises:
        ModelError: the message says what to pass.
    """
    kind = _peft().LoraConfig
    if not isinstance(config, kind):
        raise ModelError(f"peft_config is {type(config).__name__}; only LoRA is supported: pass peft.LoraConfig(...)")
    if config.lora_dropout > 0:
        raise ModelError(
            f"the LoRA adapter has dropout {config.lora_dropout} and updates need exact forwards; set lora_dropout=0"
        )


def add_adapter(model: "PreTrainedModel", config: Any, *, seed: int = 0) -> None:
    """Put a fresh adapter on a model and freeze all else; the adapter's weights are float32.

    Args:
        model: without an adapter; changed in place.
        config: a `peft.LoraConfig`.
        seed: of the adapter's random half; torch's own generators are left as they were.

    Raises:
        ModelError: peft is missing, the adapter has dropout or is not LoRA, or the model has no such layers.
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
    """Put a stored adapter on a model, to be trained on.

    Args:
        model: its base, without an adapter; changed in place.
        directory: of the adapter, or a hub id.

    Raises:
        ModelError: there is no adapter, or it is another model's.
    """
    config = read_config(directory)
    config.inference_mode = False
    add_adapter(model, config)
    read_adapter(model, directory)
    warn_of_changed_base(model, _base_files(directory), directory, named_base(model))


def read_config(directory: str | Path) -> Any:
    """The settings of a stored adapter.

    Raises:
        ModelError: there is none, or it is not LoRA.
    """
    if Path(directory).is_dir() and not (Path(directory) / CONFIG_FILE).is_file():  # peft would ask the hub
        raise ModelError(f"there is no adapter in {directory}: it has no {CONFIG_FILE}; give the directory that has")
    try:
        config = _peft().PeftConfig.from_pretrained(str(directory))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"there is no adapter {directory} here or on the hub ({one_line(error)})") from error
    require_lora(config)
    return config


def read_adapter(model: "PreTrainedModel", directory: str | Path) -> None:
    """Write a stored adapter's weights over those of the model's own, bit by bit.

    Raises:
        ModelError: there is no adapter, or it has other settings, layers or shapes.
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
    """Write the active adapter as PEFT does: its settings, with the base's name, and its weights, not the base."""
    Path(directory).mkdir(parents=True, exist_ok=True)
    config = copy.deepcopy(own_config(model))
    config.inference_mode = True
    config.task_type = config.task_type or "CAUSAL_LM"  # peft.AutoPeftModelForCausalLM loads no adapter without
    config.base_model_name_or_path, config.revision = named_base(model), base_revision(model)
    config.save_pretrained(str(directory))
    # copies: safetensors refuses two names for one tensor, as tied modules have
    weights = {f"{_PREFIX}{name}": tensor.detach().cpu().contiguous().clone() for name, tensor in _own(model).items()}
    metadata = {"format": "pt", _BASE_FILES: origin_of(model).files}
    safetensors.torch.save_file(weights, Path(directory) / WEIGHTS_FILE, metadata=metadata)


def verify_adapter(model: "PreTrainedModel", directory: str | Path) -> None:
    """Compare a stored adapter with the model's own, bit by bit, and read it back into it; no copy of the base.

    Raises:
        RoundTripError: settings, names or values differ.
    """
    stored, own = dict(_stored(directory)), _own(model)
    unlike = sorted(stored.keys() ^ own.keys()) or [k for k in own if not torch.equal(own[k].cpu(), stored[k])]
    if unlike:
        raise RoundTripError(f"the adapter saved in {directory} is not the one in memory: {unlike[0]} differs")
    try:
        read_adapter(model, directory)
    except ModelError as error:
        raise RoundTripError(f"the adapter saved in {directory} does not come back: {error}") from error


def trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and parameters that training moves."""
    yield from ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


@contextmanager
def adapter_off(model: nn.Module) -> Iterator[None]:
    """Inside, the model is its base: adapter layers pass everything by. Afterwards all is as it was."""
    layers = list(layers_of(model))
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for layer in layers:
        layer.enable_adapters(enabled=False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(enabled=True)
        for parameter, gradient in wanted:  # peft's switch turns these too
            parameter.requires_grad_(gradient)


def adapter_of(model: nn.Module) -> Adapter | None:
    """What the model's adapter is; None where it has none."""
    if not is_adapted(model):
        return None
    config = own_config(model)
    layers = set(layers_of(model))
    names = {name.rpartition(".")[2] for name, module in model.named_modules() if module in layers}
    frozen = (p.dtype for p in model.parameters() if p.is_floating_point() and not p.requires_grad)
    dtype = str(next(frozen, torch.float32)).removeprefix("torch.")
    return Adapter(named_base(model), config.r, config.lora_alpha, tuple(sorted(names)), dtype, base_revision(model))


def is_adapter(directory: str | Path) -> bool:
    """Whether a local directory holds an adapter and no whole model."""
    path = Path(directory)
    return (path / CONFIG_FILE).is_file() and not (path / "config.json").is_file()


def named_base(model: nn.Module) -> str:
    """Return the name under which an adapter records its base; "" for a model that was never loaded from anywhere.

    A local directory is named by its whole path, since a relative one is found from one directory alone.
    """
    name = str(getattr(model, "name_or_path", ""))
    return str(Path(name).resolve()) if name and Path(name).is_dir() else name


def base_revision(model: Any) -> str | None:
    """Return the revision that an adapter records for a base on the hub: the settings', else the commit in memory."""
    given: str | None = own_config(model).revision
    return given or origin_of(model).commit


def base_of(directory: str | Path) -> tuple[str, str | None]:
    """Return the path or id of the model that a stored adapter belongs on, and its revision on the hub.

    Raises:
        ModelError: it names none.
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
    """Yield peft's own modules in a model, those that switch."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    yield from (m for m in model.modules() if isinstance(m, BaseTunerLayer | AuxiliaryTrainingWrapper))


def _require_targets(model: nn.Module, config: Any) -> None:
    """Peft passes over names that match nothing as long as one matches; here a misspelt one is an error."""
    targets = config.target_modules
    if not isinstance(targets, list | tuple | set) or any(p.ndim > 2 for p in model.parameters()):
        return  # a pattern; or experts, whose old names peft translates
    names = [name for name, _ in model.named_modules()]
    for target in sorted(targets):
        if not any(name == target or name.endswith(f".{target}") for name in names):
            linear = sorted({n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, nn.Linear)})
            raise ModelError(f"the model has no layer {target!r} for LoRA; its linear layers are {', '.join(linear)}")


def _prepare(model: "PreTrainedModel") -> None:
    note_origin(model, named_base(model))
    for _, parameter in trainable(model):
        if parameter.dtype in (torch.bfloat16, torch.float16):  # half-precision weights do not move at the rates of RL
            parameter.data = parameter.data.float()
    embedding: Any = model.get_input_embeddings()
    if not hasattr(embedding, "num_embeddings"):  # peft's layer hides it, and sizes are read off the embedding
        inner = embedding.get_base_layer() if hasattr(embedding, "get_base_layer") else embedding.original_module
        embedding.num_embeddings = inner.num_embeddings
    if model.get_output_embeddings() in set(layers_of(model)):
        notices.warn(
            "the adapter changes the model's head, so updates hold its full logits; leave the head out to save memory"
        )


def active_adapter(model: nn.Module) -> str:
    """Return the name of the one active adapter.

    Raises:
        ModelError: there is none, or there are several.
    """
    active = {name for layer in layers_of(model) for name in layer.active_adapters}
    if len(active) != 1:
        raise ModelError(f"the model has {len(active)} active adapters; gvpo trains and saves exactly one")
    return str(active.pop())


def own_config(model: Any) -> Any:
    """Return the settings of the active adapter.

    Raises:
        ModelError: there is none.
    """
    if not is_adapted(model):
        raise ModelError("the model has no adapter; give it one with peft_config, lora.rank or lora.path")
    return model.peft_config[active_adapter(model)]


def _own(model: "PreTrainedModel") -> Mapping[str, Tensor]:
    """The active adapter's weights as PEFT names them, without its prefix; not copied.

    Never peft's "auto" for embeddings: it looks the base model up on the hub, and saves frozen weights.
    """
    _peft()
    from peft import get_peft_model_state_dict

    state = model.state_dict()  # given, since peft takes biases of an adapter in its own state for damaged weights
    found: dict[str, Tensor] = get_peft_model_state_dict(
        model, state, adapter_name=active_adapter(model), save_embedding_layers=False
    )
    return found


def _stored(directory: str | Path) -> Iterator[tuple[str, Tensor]]:
    """A stored adapter's weights, on the CPU, without PEFT's prefix."""
    from peft.utils import load_peft_weights

    try:
        weights = load_peft_weights(str(directory), device="cpu")
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise ModelError(f"the adapter in {directory} cannot be read: {one_line(error)}; copy it again") from error
    yield from ((name.removeprefix(_PREFIX), tensor) for name, tensor in weights.items())


def _base_files(directory: str | Path) -> str:
    """Return what a stored adapter tells of its base's weight files; "" if it tells nothing, or is on the hub."""
    file = Path(directory) / WEIGHTS_FILE
    if not file.is_file():
        return ""
    with safetensors.safe_open(file, "pt") as weights:
        return str((weights.metadata() or {}).get(_BASE_FILES, ""))
