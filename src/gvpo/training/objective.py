"""From settings to an objective: the callable, and what it needs besides log-probs."""

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gvpo.config import OBJECTIVE_INPUTS, OBJECTIVE_KEYWORDS, TrainConfig
from gvpo.config.combinations import PAIRED, SUPERVISED
from gvpo.errors import ConfigError, GvpoWarning
from gvpo.objectives import OBJECTIVES, ObjectiveOutput
from gvpo.rollout.sampling_params import sampling_params
from gvpo.sampling import ratio_warning, support_warning

CENTRED = frozenset(OBJECTIVES).difference(SUPERVISED)
EXAMPLES = {"segment_at": r'"\n" makes one of each line, say', "costs": "{ name_of_a_reward = 0.1 }, say"}


@dataclass(frozen=True)
class BoundObjective:
    """An objective with a run's keywords bound, and what the trainer has to bring for it.

    Args:
        function: called as an objective; its signature names what the update collates.
        name: its name in the registry.
        beta: GVPO's beta; for the others the scale of the implicit reward in reports, 1 if they have none.
        needs_reference: it reads `ref_logprobs`.
        needs_old: it reads `old_logprobs`.
        centred: it compares completions of a prompt, so a group needs at least two.
        divides_by_length: it divides by a maximum length.
    """

    function: Callable[..., ObjectiveOutput]
    name: str
    beta: float
    needs_reference: bool
    needs_old: bool
    centred: bool
    divides_by_length: bool = False


def build_objective(config: TrainConfig) -> BoundObjective:
    """The objective that the settings name.

    Raises:
        ConfigError: an unknown name, a keyword that this objective does not take, or a centred one with group_size 1.
    """
    name = config.objective
    if name not in OBJECTIVES:
        raise ConfigError(f"objective.name={name!r} does not exist; choose one of {', '.join(sorted(OBJECTIVES))}")
    takes = inspect.signature(OBJECTIVES[name]).parameters
    bindable = [key for key in OBJECTIVE_KEYWORDS if key not in OBJECTIVE_INPUTS]
    given = {key: getattr(config, key) for key in bindable if getattr(config, key) is not None}
    for key in given:
        if key not in takes:
            possible = ", ".join(k for k in bindable if k in takes) or "none of these"
            raise ConfigError(f"objective.{key} is not a keyword of {name}; it takes {possible}")
    _check_inputs(config, takes)
    if name in (*SUPERVISED, *PAIRED) and config.kl_in_reward > 0:
        raise ConfigError(f"objective.kl_in_reward changes rewards and {name} has none; leave it at 0")
    if name in CENTRED and config.group_size < 2 and config.groups_data is None:
        raise ConfigError(
            f"{name} compares a prompt's completions: set sampling.group_size to 2 or more (it is {config.group_size})"
        )
    defaults = {key: parameter.default for key, parameter in takes.items()}
    settings = {**defaults, **given}
    if settings.get("reduction") == "constant" and settings.get("max_length") is None:
        given["max_length"] = config.max_tokens
    bound = BoundObjective(
        function=functools.partial(OBJECTIVES[name], **given),
        name=name,
        beta=float(settings.get("beta", 1.0)),
        needs_reference=_reads_reference(takes, settings) or config.kl_in_reward > 0,
        needs_old="old_logprobs" in takes,
        centred=name in CENTRED,
        divides_by_length=settings.get("reduction") == "constant",
    )
    _warn_of_hollow_settings(config, bound)
    return bound


def _check_inputs(config: TrainConfig, takes: Mapping[str, Any]) -> None:
    """Refuse an objective without what it needs besides rewards, and settings of one that is not trained."""
    needs = {"segment_at": "segments", "costs": "costs"}
    for key, keyword in needs.items():
        given, wanted = getattr(config, key) is not None, keyword in takes
        if wanted and not given:
            raise ConfigError(f"{config.objective} needs {keyword}: set objective.{key} ({EXAMPLES[key]})")
        if given and not wanted:
            raise ConfigError(f"objective.{key} is not for {config.objective}, which takes no {keyword}; leave it out")
    if config.multiplier_rate is not None and config.costs is None:
        raise ConfigError("objective.multiplier_rate is for objective.costs, and there are none; leave it out")


def _reads_reference(takes: Any, settings: dict[str, Any]) -> bool:
    """GVPO always does; GRPO only for its KL term."""
    if "ref_logprobs" not in takes:
        return False
    return takes["ref_logprobs"].default is inspect.Parameter.empty or settings.get("kl_coef", 0.0) > 0


def updates_per_step(config: TrainConfig) -> int:
    """How many optimizer updates a full rollout gets."""
    batch = config.groups_per_update or config.prompts_per_step
    return config.passes * -(-config.prompts_per_step // batch)


def _warn_of_hollow_settings(config: TrainConfig, objective: BoundObjective) -> None:
    if objective.name == "gvpo" and config.reference == "previous" and updates_per_step(config) == 1:
        warnings.warn(
            "GVPO with objective.reference='previous' and one update per rollout is beta times RLOO: beta only scales "
            "the gradient; set reference='initial' or 'every:N', or train.groups_per_update below "
            "train.prompts_per_step",
            GvpoWarning,
            stacklevel=3,
        )
    if config.kl_in_reward > 0 and config.reference == "previous":
        warnings.warn(
            "objective.kl_in_reward with reference='previous' changes nothing: its log-probs are those of the policy "
            "before the step, which is the reference; set reference='initial' or 'every:N'",
            GvpoWarning,
            stacklevel=3,
        )
    params = sampling_params(config)
    cut_off = support_warning(params) if objective.name == "gvpo" else None
    if objective.needs_old and config.groups_data is None:
        cut_off = ratio_warning(params, objective.name)
    if cut_off is not None:
        warnings.warn(cut_off, GvpoWarning, stacklevel=3)
