"""From settings to an objective: the callable, and what it needs besides log-probs."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

from gvpo.config import ObjectiveSpec, TrainConfig, find_objective
from gvpo.objectives import ObjectiveOutput


@dataclass(frozen=True)
class BoundObjective:
    """An objective with a run's keywords bound, and what the trainer has to bring for it.

    Args:
        function: called as an objective; its signature names what the update collates.
        name: its name in recipes.
        spec: its entry in the table of objectives.
        beta: GVPO's beta; for the others the scale of the implicit reward in reports, 1 if they have none.
        needs_reference: it reads `ref_logprobs`.
    """

    function: Callable[..., ObjectiveOutput]
    name: str
    spec: ObjectiveSpec
    beta: float
    needs_reference: bool

    @property
    def needs_old(self) -> bool:
        """Return whether it reads `old_logprobs`."""
        return "old_logprobs" in self.spec.needs


def build_objective(config: TrainConfig) -> BoundObjective:
    """Return the objective that the settings name, with the keywords that they set."""
    spec = find_objective(config.objective)
    given, keywords = spec.set_by(config), spec.bound(config)
    if keywords.get("reduction") == "constant" and keywords.get("max_length") is None:
        given["max_length"] = config.max_tokens
    return BoundObjective(
        function=functools.partial(spec.load(), **given),
        name=config.objective,
        spec=spec,
        beta=float(keywords.get("beta", 1.0)),
        needs_reference=spec.reads_reference(keywords) or config.kl_in_reward > 0,
    )
