"""Settings of a run, the rules between them, the plan that they result in, and recipes as files."""

from gvpo.config.objectives import OBJECTIVES, ObjectiveSpec, find_objective
from gvpo.config.plan import Given, RunPlan, resolve
from gvpo.config.sections import SECTIONS
from gvpo.config.settings import FIELDS, OBJECTIVE_KEYWORDS, TrainConfig, unknown_setting, updates_per_step

__all__ = [
    "FIELDS",
    "OBJECTIVES",
    "OBJECTIVE_KEYWORDS",
    "SECTIONS",
    "Given",
    "ObjectiveSpec",
    "RunPlan",
    "TrainConfig",
    "find_objective",
    "resolve",
    "unknown_setting",
    "updates_per_step",
]
