"""The three operations of a probe on files: fit, evaluate, select.

Features need most of the time. They are computed in chunks and stored on disk, so an interrupted call can be resumed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gvpo.errors import DataError
from gvpo.probe.curve import ScoredCandidates, reward_curves
from gvpo.probe.data import Candidates
from gvpo.probe.features import Progress, embed_all
from gvpo.probe.fit import FitResult, FitSettings, fit_probe
from gvpo.probe.qprobe import QProbe
from gvpo.probe.select import choose_among
from gvpo.probe.sources import Source
from gvpo.probe.store import Features, FeatureStore
from gvpo.types import Prompt


@dataclass(frozen=True)
class _Rows:
    """Concatenated completions of all prompts; N is their number."""

    group: NDArray[np.int64]
    prompts: Sequence[Prompt]
    texts: Sequence[str]
    rewards: Sequence[float | None]

    @classmethod
    def of(cls, candidates: Sequence[Candidates], *, rated: bool) -> "_Rows":
        """Return all completions, or only those with a reward."""
        found = [
            (number, one.prompt, text, reward)
            for number, one in enumerate(candidates)
            for text, reward in zip(one.completions, one.rewards, strict=True)
            if not rated or reward is not None
        ]
        if not found:
            raise DataError("no completion has a reward; give a list `rewards` in addition to `completions`")
        group, prompts, texts, rewards = zip(*found, strict=True)
        return cls(np.array(group), prompts, texts, rewards)

    def features(self, source: Source, cache: str | Path | None, progress: Progress | None) -> Features:
        """Return [N, D] features, computed or from the cache."""
        store = FeatureStore.at(cache, source.name)
        return embed_all(source.embed, self.prompts, self.texts, store=store, progress=progress)


def fit_candidates(
    candidates: Sequence[Candidates],
    source: Source,
    settings: FitSettings | None = None,
    *,
    cache: str | Path | None = None,
    embedding: Progress | None = None,
    fitting: Progress | None = None,
) -> FitResult:
    """Compute features of all completions that have a reward, and fit a probe.

    Args:
        candidates: Prompts with completions and rewards.
        source: Source of the features.
        settings: Settings of the fit.
        cache: Directory that stores features; None keeps them in memory.
        embedding: Function that is called with the progress of the features.
        fitting: Function that is called with the progress of the fit, in epochs.

    Raises:
        DataError: If the loss cannot use the rewards, or the features are not usable.
    """
    rows = _Rows.of(candidates, rated=True)
    features = rows.features(source, cache, embedding)
    metadata = {"features": source.metadata()}
    return fit_probe(features, rows.group, rows.rewards, settings, metadata=metadata, progress=fitting)


def evaluate_candidates(
    probe: QProbe,
    candidates: Sequence[Candidates],
    source: Source,
    *,
    betas: Sequence[float],
    ks: Sequence[int] | None = None,
    seed: int = 0,
    cache: str | Path | None = None,
    embedding: Progress | None = None,
) -> dict[str, Any]:
    """Compute the expected reward of the probe's choice by the number of completions; see `curve.reward_curves`.

    Args:
        probe: The probe.
        candidates: Held-out prompts with completions and rewards; completions without a reward are skipped.
        source: Source of the features that the probe was fitted on.
        betas: Temperatures of the choice.
        ks: Numbers of completions.
        seed: Random seed of the orders and the bootstrap.
        cache: See `fit_candidates`.
        embedding: See `fit_candidates`.

    Raises:
        ConfigError: If the features are not those that the probe was fitted on.
        DataError: If there are no rewards, or too few completions.
    """
    source.require(probe)
    rows = _Rows.of(candidates, rated=True)
    scores = probe(rows.features(source, cache, embedding))
    rewards = np.array(rows.rewards, dtype=np.float64)
    bounds = np.flatnonzero(np.diff(rows.group)) + 1
    pairs = zip(np.split(scores, bounds), np.split(rewards, bounds), strict=True)
    result = reward_curves([ScoredCandidates(*pair) for pair in pairs], betas=betas, ks=ks, seed=seed)
    return {**result, "left_out": len(candidates) - result["prompts"]}


def select_candidates(
    probe: QProbe,
    candidates: Sequence[Candidates],
    source: Source,
    *,
    beta: float,
    seed: int = 0,
    cache: str | Path | None = None,
    embedding: Progress | None = None,
) -> list[dict[str, Any]]:
    """Choose one completion of each prompt.

    Args:
        probe: The probe.
        candidates: Prompts with completions; rewards are ignored.
        source: Source of the features that the probe was fitted on.
        beta: Temperature of the choice; 0 chooses the best.
        seed: Random seed; the noise of a choice depends only on it and the row's ID.
        cache: See `fit_candidates`.
        embedding: See `fit_candidates`.

    Returns:
        The input rows with `selected` (the text), `selected_index`, `scores` and `weights`.

    Raises:
        ConfigError: If the features are not those that the probe was fitted on, or beta is negative.
    """
    source.require(probe)
    rows = _Rows.of(candidates, rated=False)
    scores = np.split(probe(rows.features(source, cache, embedding)), np.flatnonzero(np.diff(rows.group)) + 1)
    return [_selected(one, own, beta, seed) for one, own in zip(candidates, scores, strict=True)]


def _selected(one: Candidates, scores: NDArray[np.float64], beta: float, seed: int) -> dict[str, Any]:
    choice = choose_among(one.completions, scores, beta, name=one.id, seed=seed)
    return {
        "id": one.id,
        **one.row,
        "selected": choice.text,
        "selected_index": choice.index,
        "scores": choice.scores.tolist(),
        "weights": choice.weights.tolist(),
    }
