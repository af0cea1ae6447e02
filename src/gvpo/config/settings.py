"""Settings of a run: the flat union of all sections of a recipe, for Python.

A recipe is TOML in sections and contains only the settings that differ from the defaults; `TrainConfig` has the same
settings without the sections. The name of a field is its key, prefixed with the section if the key alone would be
ambiguous:

    [run]        dir = "runs/a"       TrainConfig(run_dir="runs/a",
    [objective]  beta = 0.2                       beta=0.2,
    [checkpoint] every = 50                       checkpoint_every=50)
"""

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from gvpo import notices
from gvpo.config.aliases import answer_for
from gvpo.config.environment import EnvironmentSection
from gvpo.config.from_trl import convert
from gvpo.config.rollout import RolloutSection
from gvpo.config.sampling import SamplingConfig
from gvpo.config.sections import (
    SECTIONS,
    CheckpointConfig,
    DataConfig,
    EvalConfig,
    LoraSection,
    ModelConfig,
    ObjectiveConfig,
    RewardConfig,
    RunConfig,
    TrainSection,
    WarmStartConfig,
)
from gvpo.errors import ConfigError
from gvpo.nearest import did_you_mean

OBJECTIVE_KEYWORDS = tuple(
    name for name in ObjectiveConfig.model_fields if name not in ("objective", "reference", "kl_in_reward")
)
"""Settings of an objective; `gvpo.config.objectives` lists the objectives that accept each."""

OWN_REFERENCES = ("previous", "sampler")
"""References that are the policy itself at an earlier time, whose log-probs a step computes anyway or the rows carry.
No copy of the policy is stored for them."""

STEP_STARTS = ("previous", "every:1")
"""References that are the policy at the start of each step."""

_PREFIX = {"rewards": "reward"}
_KEY = {"objective": "name", "environment": "name", "train_data": "train", "eval_data": "eval", "groups_data": "groups"}


def _key(section: str, field: str) -> str:
    """Return the key of a field in its section of a recipe."""
    if field in _KEY:
        return _KEY[field]
    return field.removeprefix(f"{_PREFIX.get(section, section)}_")


FIELDS: dict[str, str] = {
    f"{section}.{_key(section, field)}": field for section, model in SECTIONS.items() for field in model.model_fields
}
"""Dotted recipe key -> TrainConfig field."""


class TrainConfig(
    CheckpointConfig,
    EvalConfig,
    TrainSection,
    ObjectiveConfig,
    RewardConfig,
    EnvironmentSection,
    RolloutSection,
    SamplingConfig,
    WarmStartConfig,
    DataConfig,
    LoraSection,
    ModelConfig,
    RunConfig,
):
    """All settings of a run, without sections: `TrainConfig(run_dir="runs/a", beta=0.2, group_size=8)`.

    Raises:
        ConfigError: If a key is unknown or a value has the wrong type. The message names the key as recipes write it.
            Settings that contradict each other are rejected by `gvpo.config.resolve`, before a run begins.
    """

    if not TYPE_CHECKING:  # type checkers and editors see pydantic's own signature, with every field

        def __init__(self, **settings: Any) -> None:
            unknown = [name for name in settings if name not in type(self).model_fields]
            if unknown:
                raise ConfigError(in_python(unknown_setting(unknown[0], type(self).model_fields)))
            try:
                super().__init__(**settings)
            except ValidationError as error:
                raise ConfigError(_explain(error)) from None

    @classmethod
    def from_trl(cls, options: object, *, kind: str = "GRPOConfig", **changes: Any) -> "TrainConfig":
        """Return the settings with which a run does what TRL's trainer does with these options.

        Warn once about the options that have no counterpart, if they differ from TRL's defaults. Neither TRL nor
        transformers is imported.

        Args:
            options: A `GRPOConfig`, `RLOOConfig`, `DPOConfig` or `SFTConfig`, or a mapping of their options.
            kind: Name of the configuration that a mapping belongs to; TRL's defaults complete it.
            changes: Settings of gvpo, which override the converted ones. Another objective drops the keywords of
                the converted one: `from_trl(config, objective="gvpo", beta=0.1)`.

        Raises:
            ConfigError: If `options` is something else, has unknown options, or a value is impossible.
        """
        converted, lost = convert(options, kind)
        if lost:
            notices.warn(in_python(f"options of TRL without a counterpart: {'; '.join(lost)}"))
        settings = {FIELDS[key]: value for key, value in converted.items()}
        return cls(**layer({name: value for name, value in settings.items() if value != _default(name)}, changes))

    def replace(self, **changes: Any) -> "TrainConfig":
        """Return a copy with some settings changed, and validate it."""
        return TrainConfig(**{**{name: getattr(self, name) for name in self.model_fields_set}, **changes})

    def to_recipe(self) -> dict[str, dict[str, Any]]:
        """Return every setting, including defaults, in the sections of a recipe, ready for JSON."""
        values = self.model_dump(mode="json")
        recipe: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
        for dotted, field in FIELDS.items():
            section, key = dotted.split(".")
            recipe[section][key] = values[field]
        return recipe


def updates_per_step(config: TrainConfig) -> int:
    """Return the number of optimizer updates for a full rollout."""
    batch = config.groups_per_update or config.prompts_per_step
    return config.passes * -(-config.prompts_per_step // batch)


def _explain(error: ValidationError) -> str:
    """Describe the first problem that pydantic found, with the key as recipes write it."""
    first = error.errors()[0]
    message = _WANTED.get(first["type"], first["msg"].removeprefix("Value error, "))
    if not first["loc"]:
        return message
    field, *inside = map(str, first["loc"])
    dotted = next((dotted for dotted, name in FIELDS.items() if name == field), field)
    if dotted in _WANTED:  # the failed branch of a union has no meaning for users
        message, inside = _WANTED[dotted], []
    return f"{'.'.join([dotted, *inside])}={first['input']!r}: {message}"


_WANTED = {
    "list_type": 'write a list, ["..."]',
    "dict_type": "write a table, { key = value }",
    "string_type": 'write text, "..."',
    "finite_number": "set a finite number",
    "objective.reference": "set auto, previous, sampler, initial, or every:N with N above 0",
    "train.tokens_per_microbatch": "set a number of tokens, 1 or more, or auto",
}
"""Messages that replace those of pydantic, by kind of error or by key."""


def unknown_setting(name: str, known: Iterable[str]) -> str:
    """Return the message for an unknown setting, which says what to use instead.

    It answers the names of other libraries (`gvpo.config.aliases`) and otherwise suggests the nearest known name.
    """
    return f"unknown setting {name!r}{instead_of(name, known)}"


def instead_of(name: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown setting, "; use 'train.steps': ...", or "" without an idea."""
    answer = answer_for(name)
    near = f"; {answer.sentence()}" if answer else did_you_mean(name, known)
    return near or did_you_mean(_DOTTED.get(name, name), known)


def _default(field: str) -> Any:
    return TrainConfig.model_fields[field].get_default(call_default_factory=True)


def in_python(text: str) -> str:
    """Return a text about settings with the names that they have in Python."""
    return re.sub(r"\b[a-z_]+\.[a-z_0-9]+", lambda found: FIELDS.get(found[0], found[0]), text)


_DOTTED = {field: dotted for dotted, field in FIELDS.items()}


def layer(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings over settings.

    A layer with another objective drops the lower layer's objective keywords, and a layer with a number of steps drops
    the lower layer's number of epochs, and vice versa.
    """
    if above.get("objective", below.get("objective")) != below.get("objective"):
        below = {name: value for name, value in below.items() if name not in OBJECTIVE_KEYWORDS}
    ends = {"steps", "epochs"}
    if ends & above.keys():
        below = {name: value for name, value in below.items() if name not in ends}
    return {**below, **above}
