"""Objectives: pure functions from log-probs and rewards to a loss and its metrics, one paper per file.

Each takes `logprobs` [B, T] (rows are completions) and keywords, and is differentiable through `logprobs` only. None
knows a model, a device or a config; docs/reference/objectives/ has a page for each. The table of the objectives that
recipes can name is `gvpo.config.OBJECTIVES`.
"""

from gvpo.objectives.base import Objective, ObjectiveOutput
from gvpo.objectives.cispo import cispo
from gvpo.objectives.constrained_grpo import constrained_grpo, updated_multipliers
from gvpo.objectives.distill import distill
from gvpo.objectives.dpo import dpo, dpo_rows
from gvpo.objectives.epa import epa, epa_rows
from gvpo.objectives.grpo import dapo, dr_grpo, grpo, rloo
from gvpo.objectives.gspo import gspo, gspo_token
from gvpo.objectives.gsspo import gsspo
from gvpo.objectives.gvpo import certificate, gvpo, gvpo_weights
from gvpo.objectives.kl_in_reward import kl_in_reward
from gvpo.objectives.poft import poft
from gvpo.objectives.regression import pmd_mean, regression
from gvpo.objectives.sft import sft

__all__ = [
    "Objective",
    "ObjectiveOutput",
    "certificate",
    "cispo",
    "constrained_grpo",
    "dapo",
    "distill",
    "dpo",
    "dpo_rows",
    "dr_grpo",
    "epa",
    "epa_rows",
    "grpo",
    "gspo",
    "gspo_token",
    "gsspo",
    "gvpo",
    "gvpo_weights",
    "kl_in_reward",
    "pmd_mean",
    "poft",
    "regression",
    "rloo",
    "sft",
    "updated_multipliers",
]
