"""Building an objective from settings: the callable, and its needs besides log-probs."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

from gvpo.config import ObjectiveSpec, TrainConfig, find_objective
from gvpo.objectives import ObjectiveOutput


@dataclass(frozen=True)
class BoundObjective:
    """An objective with a run's keywords bound, and the inputs that the trainer must provide.

    Args:
        function: Callable objective; its signature names the inputs that the update collates.
        name: Name in recipes.
        spec: Entry in the table of objectives.
        beta: GVPO's beta; for other objectives the scale of the implicit reward in reports, 1 if they have none.
        needs_reference: Whether it reads `ref_logprobs`.
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


def build_objective(config: TrainConfig, spec: ObjectiveSpec | None = None) -> BoundObjective:
    """Return an objective with the keywords that the settings set; by default the one that they name."""
    spec = spec or find_objective(config.objective)
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
