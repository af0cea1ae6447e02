"""Objectives: pure functions from log-probs and rewards to a loss and its metrics, one paper a file.

Each takes `logprobs` [B, T] (rows are completions) and keywords, and is differentiable through `logprobs` only. None
knows a model, a device or a config; docs/reference/objectives/ has a page for each.
"""

from gvpo.objectives.base import Objective, ObjectiveOutput
from gvpo.objectives.constrained_grpo import constrained_grpo, updated_multipliers
from gvpo.objectives.dpo import dpo, dpo_rows
from gvpo.objectives.epa import epa, epa_rows
from gvpo.objectives.grpo import dapo, dr_grpo, grpo, rloo
from gvpo.objectives.gspo import gspo, gspo_token
from gvpo.objectives.gsspo import gsspo
from gvpo.objectives.gvpo import certificate, gvpo, gvpo_weights
from gvpo.objectives.kl_in_reward import kl_in_reward
from gvpo.objectives.poft import poft
from gvpo.objectives.sft import sft

OBJECTIVES: dict[str, Objective] = {
    "constrained_grpo": constrained_grpo,
    "dapo": dapo,
    "dpo": dpo_rows,
    "dr_grpo": dr_grpo,
    "epa": epa_rows,
    "grpo": grpo,
    "gspo": gspo,
    "gspo_token": gspo_token,
    "gsspo": gsspo,
    "gvpo": gvpo,
    "poft": poft,
    "rloo": rloo,
    "sft": sft,
}
"""Objectives by the name that recipes use (`objective.name`)."""

__all__ = [
    "OBJECTIVES",
    "Objective",
    "ObjectiveOutput",
    "certificate",
    "constrained_grpo",
    "dapo",
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
    "poft",
    "rloo",
    "sft",
    "updated_multipliers",
]
