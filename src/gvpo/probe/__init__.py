"""Q-Probe: a linear function of a frozen model's features chooses among k completions.

    sample() ──▶ k completions ──▶ embed() ──▶ features ──▶ probe ──▶ softmax(Q / beta) ──▶ one of them

Names are imported when they are first used: some need torch, which takes seconds to import.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gvpo.probe.curve import expected_rewards, reward_curves
    from gvpo.probe.data import read_candidates
    from gvpo.probe.draw import ModelSample
    from gvpo.probe.endpoint import EndpointFeatures
    from gvpo.probe.features import embed_all
    from gvpo.probe.fit import FitSettings, fit_probe
    from gvpo.probe.hidden import HiddenFeatures
    from gvpo.probe.qprobe import QProbe
    from gvpo.probe.select import best_of, tilted
    from gvpo.probe.store import FeatureStore

__all__ = [
    "EndpointFeatures",
    "FeatureStore",
    "FitSettings",
    "HiddenFeatures",
    "ModelSample",
    "QProbe",
    "best_of",
    "embed_all",
    "expected_rewards",
    "fit_probe",
    "read_candidates",
    "reward_curves",
    "tilted",
]

_MODULES = {
    "EndpointFeatures": "endpoint",
    "FeatureStore": "store",
    "FitSettings": "fit",
    "HiddenFeatures": "hidden",
    "ModelSample": "draw",
    "QProbe": "qprobe",
    "best_of": "select",
    "embed_all": "features",
    "expected_rewards": "curve",
    "fit_probe": "fit",
    "read_candidates": "data",
    "reward_curves": "curve",
    "tilted": "select",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
