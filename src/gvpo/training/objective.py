"""From settings to an objective: the callable, and what it needs besides log-probs."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

from gvpo import notices
from gvpo.config import OBJECTIVE_KEYWORDS, ObjectiveSpec, TrainConfig, find_objective
from gvpo.config.objectives import INPUT_OF
from gvpo.errors import ConfigError
from gvpo.objectives import ObjectiveOutput
from gvpo.rollout.sampling_params import sampling_params
from gvpo.sampling import ratio_warning, support_warning

EXAMPLES = {"segment_at": r'"\n" makes one of each line, say', "costs": "{ name_of_a_reward = 0.1 }, say"}


@dataclass(frozen=True)
class BoundObjective:
    """An objective with a run's keywords bound, and what the trainer has to bring for it.

    Args:
        function: called as an objective; its signature names what the update collates.
        name: its name in recipes.
        spec: its entry in the table of objectives.
        beta: GVPO's beta; for the others the scale of the implicit reward in reports, 1 if they have none.
        needs_reference: it reads `ref_logprobs`.
        divides_by_length: it divides by a maximum length.
    """

    function: Callable[..., ObjectiveOutput]
    name: str
    spec: ObjectiveSpec
    beta: float
    needs_reference: bool
    divides_by_length: bool = False

    @property
    def needs_old(self) -> bool:
        """Return whether it reads `old_logprobs`."""
        return "old_logprobs" in self.spec.needs


def build_objective(config: TrainConfig) -> BoundObjective:
    """The objective that the settings name.

    Raises:
        ConfigError: an unknown name, a keyword that this objective does not take, or too small a group_size.
    """
    name = config.objective
    spec = find_objective(name)
    bindable = [key for key in OBJECTIVE_KEYWORDS if key not in INPUT_OF]
    given = {key: getattr(config, key) for key in bindable if getattr(config, key) is not None}
    for key in given:
        if not spec.takes(key):
            possible = ", ".join(k for k in bindable if spec.takes(k)) or "none of these"
            raise ConfigError(f"objective.{key} is not a keyword of {name}; it takes {possible}")
    _check_inputs(config, spec)
    if "rewards" not in spec.needs and config.kl_in_reward > 0:
        raise ConfigError(f"objective.kl_in_reward changes rewards and {name} has none; leave it at 0")
    if config.group_size < spec.min_group and config.groups_data is None:
        raise ConfigError(
            f"{name} compares a prompt's completions: set sampling.group_size to {spec.min_group} or more "
            f"(it is {config.group_size})"
        )
    settings = {**spec.keywords, **given}
    if settings.get("reduction") == "constant" and settings.get("max_length") is None:
        given["max_length"] = config.max_tokens
    bound = BoundObjective(
        function=functools.partial(spec.load(), **given),
        name=name,
        spec=spec,
        beta=float(settings.get("beta", 1.0)),
        needs_reference=spec.reads_reference(settings) or config.kl_in_reward > 0,
        divides_by_length=settings.get("reduction") == "constant",
    )
    _warn_of_hollow_settings(config, bound)
    return bound


def _check_inputs(config: TrainConfig, spec: ObjectiveSpec) -> None:
    """Refuse an objective without what it needs besides rewards, and settings of one that is not trained."""
    for key in EXAMPLES:
        keyword = INPUT_OF[key]
        given, wanted = getattr(config, key) is not None, keyword in spec.needs
        if wanted and not given:
            raise ConfigError(f"{config.objective} needs {keyword}: set objective.{key} ({EXAMPLES[key]})")
        if given and not wanted:
            raise ConfigError(f"objective.{key} is not for {config.objective}, which takes no {keyword}; leave it out")
    if config.multiplier_rate is not None and config.costs is None:
        raise ConfigError("objective.multiplier_rate is for objective.costs, and there are none; leave it out")


def updates_per_step(config: TrainConfig) -> int:
    """How many optimizer updates a full rollout gets."""
    batch = config.groups_per_update or config.prompts_per_step
    return config.passes * -(-config.prompts_per_step // batch)


def _warn_of_hollow_settings(config: TrainConfig, objective: BoundObjective) -> None:
    name, at_reference = objective.name, objective.spec.at_reference
    if at_reference is not None and config.reference == "previous" and updates_per_step(config) == 1:
        notices.warn(
            f"{name.upper()} with objective.reference='previous' and one update per rollout is {at_reference}; "
            "set reference='initial' or 'every:N', or train.groups_per_update below train.prompts_per_step"
        )
    if config.kl_in_reward > 0 and config.reference == "previous":
        notices.warn(
            "objective.kl_in_reward with reference='previous' changes nothing: its log-probs are those of the policy "
            "before the step, which is the reference; set reference='initial' or 'every:N'"
        )
    params = sampling_params(config)
    cut_off = support_warning(params) if objective.spec.needs_support else None
    if objective.needs_old and config.groups_data is None:
        cut_off = ratio_warning(params, name)
    if cut_off is not None:
        notices.warn(cut_off)
