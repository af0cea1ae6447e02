"""What a run can be told: settings, the rules between them, and recipes as files."""

from gvpo.config.settings import FIELDS, OBJECTIVE_INPUTS, OBJECTIVE_KEYWORDS, SECTIONS, TrainConfig, unknown_setting

__all__ = ["FIELDS", "OBJECTIVE_INPUTS", "OBJECTIVE_KEYWORDS", "SECTIONS", "TrainConfig", "unknown_setting"]
