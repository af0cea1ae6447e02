"""The defaults of `objective.reference`, `beta` and `anchor`: one table, by objective and by regime.

`rollout.old_logprobs` and `objective.is_cap` are resolved here too, by whether the policy that is trained, or another
policy or engine, sampled the rows.

A regime says how often a run updates on its groups, and whether the groups are its own. `gvpo.config.resolve` reads the
table; `tools/objectives_table.py` writes it into the documentation.
"""

from dataclasses import dataclass
from typing import Any, Literal

from gvpo.config.objectives import ObjectiveSpec
from gvpo.config.settings import TrainConfig, updates_per_step

Regime = Literal[
    "one update per rollout",
    "several updates per rollout",
    "stale or reused groups",
    "mixed groups",
    "logged or frozen groups",
]
ONE: Regime = "one update per rollout"
SEVERAL: Regime = "several updates per rollout"
OLDER: Regime = "stale or reused groups"
MIXED: Regime = "mixed groups"
FROZEN: Regime = "logged or frozen groups"
AUTOMATIC = {
    "reference": "objective.reference",
    "beta": "objective.beta",
    "anchor": "objective.anchor",
    "rollout_old_logprobs": "rollout.old_logprobs",
    "is_cap": "objective.is_cap",
}
"""Fields that are resolved here if they are "auto" or not set, with their keys in a recipe."""


@dataclass(frozen=True)
class Default:
    """Values of a regime.

    Args:
        reference: Value of `objective.reference`.
        beta: Value of `objective.beta`; None is the default of the objective's function.
        anchor: Value of `objective.anchor`; None is the default of the objective's function.
    """

    reference: str
    beta: float | None = None
    anchor: float | None = None


_GVPO: dict[Regime, Default] = {
    ONE: Default("initial", 0.1),
    SEVERAL: Default("sampler", 0.3),
    OLDER: Default("sampler", 0.3, 0.1),
    MIXED: Default("initial", 0.1),
    FROZEN: Default("initial", 0.2),
}
_WITHOUT_ANCHOR = {regime: Default(each.reference, each.beta) for regime, each in _GVPO.items()}
DEFAULTS: dict[str, dict[Regime, Default]] = {
    "gvpo": _GVPO,
    "regression": _WITHOUT_ANCHOR,
    "pmd_mean": _WITHOUT_ANCHOR,
}
"""Defaults by regime of the objectives for which regimes differ."""
OTHERWISE = Default("initial")
"""Default of all other objectives in every regime."""


def regime(config: TrainConfig, source: str) -> Regime:
    """Return the regime of settings whose groups come from `source`."""
    if source in ("logged", "sampled once"):
        return FROZEN
    if _given(config) > 0:
        return MIXED
    if config.rollout_staleness > 0 or config.rollout_reuse > 1 or overlaps(config):
        return OLDER
    return ONE if updates_per_step(config) == 1 else SEVERAL


def overlaps(config: TrainConfig) -> bool:
    """Return whether later groups may be sampled before the update of earlier ones is done."""
    return config.rollout_asynchronous and config.rollout_max_staleness > 0


def samples_apart(config: TrainConfig) -> bool:
    """Return whether the engine samples from weights of its own, in an arithmetic that may differ from the trainer's.

    A copy of the policy in the trainer's own dtypes does not count: its log-probs are those of the policy.
    """
    return config.sampling_engine != "transformers" or config.sampling_dtype != "auto"


def engine_of(config: TrainConfig) -> str:
    """Return the engine of `samples_apart` in words."""
    dtype = "" if config.sampling_dtype == "auto" else f" in {config.sampling_dtype}"
    return f"sampled by engine {config.sampling_engine}{dtype}"


def _given(config: TrainConfig) -> int:
    """Return the number of rows per group that are not sampled live."""
    return config.rollout_history + config.rollout_logged + config.rollout_expert


def rows_may_be_old(config: TrainConfig, source: str) -> bool:
    """Return whether a step may train on rows that the policy did not sample in that step."""
    return regime(config, source) in (OLDER, MIXED, FROZEN)


def rows_may_differ(config: TrainConfig, source: str) -> bool:
    """Return whether a step samples its rows with an engine whose log-probs may differ from the trainer's."""
    return source == "live" and samples_apart(config)


IS_CAP = 2.0
"""Truncation of the importance weights of rows of another policy or engine whose old log-probs are the trainer's."""


def find_old_logprobs(config: TrainConfig, objective: ObjectiveSpec, source: str) -> dict[str, Any]:
    """Return where old log-probs come from, and the truncation of importance weights, as fields of the settings.

    Rows that may be old have those of their sampler, unless importance weights are asked for. These are relative to
    the trainer's, and would all be 1 otherwise. Rows of the current policy have the trainer's. If another engine
    sampled them, importance weights correct for it, because its rounding would move ratios out of the clip range.
    """
    has_ratios = "old_logprobs" in objective.needs
    old = has_ratios and rows_may_be_old(config, source)
    where, cap = config.rollout_old_logprobs, config.is_cap
    if where == "auto":
        where = "sampler" if old and cap is None else "trainer"
    other = old or (has_ratios and rows_may_differ(config, source))
    weighted = other and where == "trainer" and objective.takes("is_cap")
    return {"rollout_old_logprobs": where, "is_cap": IS_CAP if weighted and cap is None else cap}


def find_default(config: TrainConfig, objective: ObjectiveSpec, source: str) -> Default:
    """Return reference, beta and anchor for settings that leave them open.

    A KL penalty in the rewards is measured between the start of the step and the reference. It is always 0 if both are
    the same policy, so its reference is the initial one. An anchor holds the policy at the reference of its regime; at
    another reference it would move the optimum, so it is then not used unless it is set.
    """
    found = DEFAULTS.get(config.objective, {}).get(regime(config, source), OTHERWISE)
    reference = OTHERWISE.reference if config.kl_in_reward > 0 else found.reference
    used = reference if config.reference == "auto" else config.reference
    return Default(
        reference,
        beta=found.beta or objective.keywords.get("beta"),
        anchor=found.anchor if used == found.reference else None,
    )


def same_reference(reference: str, source: str) -> str:
    """Return the name under which the log-probs of a reference are found, for groups that come from `source`.

    The policy that sampled groups once, before the first step, is the initial one.
    """
    return "initial" if reference == "sampler" and source == "sampled once" else reference


def left_open(config: TrainConfig, objective: ObjectiveSpec) -> tuple[str, ...]:
    """Return the settings that have to be resolved, of those that the objective has."""
    is_open = {
        "reference": config.reference == "auto",
        "beta": objective.takes("beta") and config.beta is None,
        "anchor": objective.takes("anchor") and config.anchor is None,
        "rollout_old_logprobs": config.rollout_old_logprobs == "auto",
        "is_cap": objective.takes("is_cap") and config.is_cap is None,
    }
    return tuple(name for name in AUTOMATIC if is_open[name])
