"""The generation config that is saved with a model. It ends answers as in training, and transformers can save it.

transformers loads a generation config with settings that have no effect, such as `temperature` without `do_sample`, but
raises an error when the same config is saved later. The config is therefore repaired before it is saved.
"""

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedModel

from gvpo import notices
from gvpo.model.tokenizer import token_ids

GENERATION_CONFIG = "generation_config.json"

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
_FIRST = ("eos_token_id", "bos_token_id", "pad_token_id", "do_sample", "num_beams")
"""Settings that other settings depend on. They are kept before the others."""


def generation_config_of(model: PreTrainedModel | GenerationConfig | None) -> GenerationConfig | None:
    """Return a model's generation config, or None for a model that does not generate. A config returns itself."""
    return model if isinstance(model, GenerationConfig) else getattr(model, "generation_config", None)


def stored_generation_config(path_or_id: str) -> GenerationConfig | None:
    """Return the generation config in a model's directory or on the Hub, or None if there is none."""
    try:
        return GenerationConfig.from_pretrained(path_or_id)
    except OSError:
        return None


def settle(model: PreTrainedModel, stops: Iterable[int]) -> None:
    """Replace the model's generation config by one that can be saved and that stops at the end of answers.

    Args:
        model: Model. A model that does not generate is left unchanged.
        stops: Token ids that end an answer, in addition to those in the config.
    """
    if (config := generation_config_of(model)) is not None:
        model.generation_config = savable(_with_stops(config, stops))


def savable(config: GenerationConfig) -> GenerationConfig:
    """Return the config if transformers can save it, else a repaired one, with a warning about the changed settings.

    Sampling settings set `do_sample` to true, unless `do_sample` is false or the temperature is 0. Settings that
    transformers still rejects are removed.
    """
    if _can_be_saved(config):
        return config
    settings = {name: getattr(config, name) for name in config.to_diff_dict() if name != "transformers_version"}
    wanted = {**settings, "do_sample": True} if _means_to_sample(settings) else settings
    kept, dropped = _kept(type(config)(), wanted)
    asking = [name for name in _SAMPLING if name in settings]
    changes = [f"{' and '.join(asking)} set do_sample to true"] if wanted is not settings else []
    changes += [f"{name} is removed" for name in dropped]
    notices.warn(
        f"transformers cannot save the model's generation config, so {', '.join(changes)}. Checkpoints contain "
        "the changed config, which training does not use; correct generation_config.json to choose other values"
    )
    return kept


def save_beside(model: PreTrainedModel, directory: str | Path) -> None:
    """Write the model's generation config next to an adapter, whose base may have another one."""
    if (config := generation_config_of(model)) is not None:
        config.save_pretrained(str(directory))


def restore(model: PreTrainedModel, directory: str | Path) -> None:
    """Read the generation config that was saved with an adapter into a model, if there is one."""
    if (Path(directory) / GENERATION_CONFIG).is_file():
        model.generation_config = GenerationConfig.from_pretrained(str(directory))


def _with_stops(config: GenerationConfig, stops: Iterable[int]) -> GenerationConfig:
    configured = token_ids(config.eos_token_id)
    known = [each for each in configured if each >= 0]  # some configs use -1 for "none"
    ends = [*known, *sorted({*stops} - {*known})]
    if ends == configured or not ends:
        return config
    changed = copy.deepcopy(config)
    changed.eos_token_id = ends if len(ends) > 1 else ends[0]
    return changed


def _means_to_sample(settings: dict[str, Any]) -> bool:
    temperature = settings.get("temperature")
    can = temperature is None or (isinstance(temperature, int | float) and temperature > 0)
    return can and "do_sample" not in settings and any(name in settings for name in _SAMPLING)


def _kept(config: GenerationConfig, settings: dict[str, Any]) -> tuple[GenerationConfig, list[str]]:
    """Add settings one by one as long as the config can be saved. Return it, and the names of the rejected settings."""
    dropped = []
    for name in sorted(settings, key=lambda name: name not in _FIRST):
        trial = copy.copy(config)
        setattr(trial, name, settings[name])
        if _can_be_saved(trial):
            config = trial
        else:
            dropped.append(name)
    return config, dropped


def _can_be_saved(config: GenerationConfig) -> bool:
    try:
        config.validate(strict=True)
        config.to_json_string(use_diff=True, keys_to_pop=["compile_config"])
    except Exception:  # the user's settings must not cost a checkpoint
        return False
    return True
