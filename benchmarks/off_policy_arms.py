"""The regimes of `off_policy.py`, the arms that it compares in them, and its grids."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

Settings = dict[str, Any]
RATE = "learning_rate"
LIVE_RATES = (1e-4, 3e-4, 1e-3)


@dataclass(frozen=True)
class Arm:
    """An objective with its settings, and the values to try for its learning rate and for one parameter.

    A parameter may consist of several settings, which then have the same value.
    """

    settings: Settings
    parameter: tuple[str, ...] = ()
    values: tuple[float, ...] = ()
    rates: tuple[float, ...] = (3e-5, 1e-4, 3e-4)


def gvpo(reference: str, beta: float, anchor: float | None = None) -> Settings:
    """Return the settings of GVPO; without an anchor the keyword is not set."""
    return {"objective": "gvpo", "reference": reference, "beta": beta, "anchor": anchor}


def ratio(objective: str, **settings: Any) -> Settings:
    """Return the settings of an objective with ratios, whose old log-probs are the sampler's."""
    return {"objective": objective, "reference": "auto", "beta": None, "rollout_old_logprobs": "sampler", **settings}


CLIP, BETA = ("clip_low", "clip_high"), ("beta",)
RATIOS = {
    "grpo": Arm(ratio("grpo", clip_low=0.2, clip_high=0.2), CLIP, (0.1, 0.2, 0.4)),
    "tis": Arm(ratio("grpo", rollout_old_logprobs="trainer", is_cap=2.0), ("is_cap",), (1.0, 2.0, 5.0)),
    "gspo": Arm(ratio("gspo", clip_low=0.01, clip_high=0.01), CLIP, (0.003, 0.01, 0.03)),
}
OFFLINE = {
    "gvpo": Arm(gvpo("initial", 0.2), BETA, (0.1, 0.2, 0.4)),
    "gvpo, anchor .1": Arm(gvpo("initial", 0.2, 0.1), BETA, (0.1, 0.2, 0.4)),
    **RATIOS,
    "pmd_mean": Arm({"objective": "pmd_mean", "reference": "initial", "beta": 0.2}, BETA, (0.1, 0.2, 0.4)),
}
ON_POLICY = {
    "gvpo": Arm(gvpo("initial", 0.1), BETA, (0.05, 0.1, 0.2), LIVE_RATES),
    "grpo": Arm({"objective": "grpo", "reference": "auto", "beta": None}, rates=LIVE_RATES),
    "gspo": Arm({"objective": "gspo", "reference": "auto", "beta": None}, rates=LIVE_RATES),
}
"""With one update per rollout every ratio is 1, so nothing is clipped or truncated."""
FEW, WIDE = (1e-4, 3e-4), (0.2, 0.8)
"""Two rates and two clips for the longer runs; offline, wide clips were best (docs/internals/measurements.md)."""
OLD = {
    "grpo": replace(RATIOS["grpo"], values=WIDE, rates=(1e-4,)),
    "tis": replace(RATIOS["tis"], values=(), rates=(3e-5, 1e-4)),
    "gspo": Arm(ratio("gspo", clip_low=0.03, clip_high=0.03), CLIP, (0.03, 0.09), FEW),
}
LATE = {
    "gvpo": Arm(gvpo("sampler", 0.3, 0.1), rates=FEW),
    "gvpo, no anchor": Arm(gvpo("sampler", 0.3, 0.0), rates=FEW),
    **OLD,
}
MIXED = {
    "gvpo": Arm(gvpo("initial", 0.2), BETA, (0.1, 0.2, 0.4)),
    "gvpo, anchor .1": Arm(gvpo("initial", 0.1, 0.1), rates=FEW),
    **OLD,
}
REGIMES: dict[str, tuple[Settings, dict[str, Arm]]] = {
    "offline": ({}, OFFLINE),
    "on-policy": ({}, ON_POLICY),
    "stale-4": ({"rollout_staleness": 4}, LATE),
    "stale-16": ({"rollout_staleness": 16}, LATE),
    "reuse-4": ({"rollout_reuse": 4}, LATE),
    "passes-4": ({"passes": 4, "steps": 24}, LATE),
    "100 problems": ({"train_problems": 100}, {"gvpo": Arm(gvpo("initial", 0.1), rates=FEW)}),
    "mixture": ({"rollout_live": 4, "rollout_history": 4, "train_problems": 100}, MIXED),
}
"""A regime's settings and its arms. Offline, all arms train on the groups that the warm start sampled."""
ANCHORS = (None, 0.1, 0.3)
GRIDS: dict[str, tuple[Sequence[str], Sequence[Settings]]] = {
    "anchor": (
        ("passes-4", "reuse-4", "stale-16"),
        [{**gvpo("sampler", 0.3, anchor or 0.0), RATE: rate} for anchor, rate in product(ANCHORS, LIVE_RATES)],
    ),
    "anchor-on-policy": (
        ("on-policy",),
        [{**gvpo("initial", 0.1, anchor), RATE: rate} for anchor, rate in product(ANCHORS, LIVE_RATES)],
    ),
}
"""Grids of settings without tuning: the regimes, and the settings of their cells."""
