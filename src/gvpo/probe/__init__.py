"""Q-Probe: a linear function of a frozen model's features chooses among k completions.

    sample() ──▶ k completions ──▶ embed() ──▶ features ──▶ probe ──▶ softmax(Q / beta) ──▶ one of them

Names are imported when they are first used: some need torch, which takes seconds to import.
"""

from typing import TYPE_CHECKING

from gvpo import lazy

if TYPE_CHECKING:
    from gvpo.probe.curve import expected_rewards as expected_rewards
    from gvpo.probe.curve import reward_curves as reward_curves
    from gvpo.probe.data import read_candidates as read_candidates
    from gvpo.probe.draw import ModelSample as ModelSample
    from gvpo.probe.endpoint import EndpointFeatures as EndpointFeatures
    from gvpo.probe.features import embed_all as embed_all
    from gvpo.probe.fit import FitSettings as FitSettings
    from gvpo.probe.fit import fit_probe as fit_probe
    from gvpo.probe.hidden import HiddenFeatures as HiddenFeatures
    from gvpo.probe.qprobe import QProbe as QProbe
    from gvpo.probe.select import best_of as best_of
    from gvpo.probe.select import tilted as tilted
    from gvpo.probe.store import FeatureStore as FeatureStore

__all__, __getattr__, __dir__ = lazy.exports(__name__)
