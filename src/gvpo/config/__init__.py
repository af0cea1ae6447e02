"""What a run can be told: settings, the rules between them, and recipes as files."""

from gvpo.config.objectives import OBJECTIVES, ObjectiveSpec, find_objective
from gvpo.config.sections import SECTIONS
from gvpo.config.settings import FIELDS, OBJECTIVE_KEYWORDS, TrainConfig, unknown_setting

__all__ = [
    "FIELDS",
    "OBJECTIVES",
    "OBJECTIVE_KEYWORDS",
    "SECTIONS",
    "ObjectiveSpec",
    "TrainConfig",
    "find_objective",
    "unknown_setting",
]
