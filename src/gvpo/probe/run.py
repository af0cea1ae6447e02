"""The three things that are done with a probe, on files: fit, evaluate, select.

Features are the long part. They are computed in chunks and kept on disk, so an interrupted call goes on where it was.
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
    """Completions of all prompts behind one another; N of them."""

    group: NDArray[np.int64]
    prompts: Sequence[Prompt]
    texts: Sequence[str]
    rewards: Sequence[float | None]

    @classmethod
    def of(cls, candidates: Sequence[Candidates], *, rated: bool) -> "_Rows":
        """All completions, or those with a reward alone."""
        found = [
            (number, one.prompt, text, reward)
            for number, one in enumerate(candidates)
            for text, reward in zip(one.completions, one.rewards, strict=True)
            if not rated or reward is not None
        ]
        if not found:
            raise DataError("no completion has a reward; give a list `rewards` beside `completions`")
        group, prompts, texts, rewards = zip(*found, strict=True)
        return cls(np.array(group), prompts, texts, rewards)

    def features(self, source: Source, cache: str | Path | None, progress: Progress | None) -> Features:
        """[N, D], computed or from the cache."""
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
        candidates: prompts with completions and rewards.
        source: of the features.
        settings: of the fit.
        cache: directory that keeps features; None holds them in memory.
        embedding: told of the progress of the first part.
        fitting: of the second, in epochs.

    Raises:
        DataError: rewards that the loss cannot use, or features that are not usable.
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
    """Expected reward of the probe's choice against the number of completions; see `curve.reward_curves`.

    Args:
        probe: the probe.
        candidates: held-out prompts with completions and rewards; completions without one are left out.
        source: of the features that the probe was fitted on.
        betas: temperatures of the choice.
        ks: numbers of completions.
        seed: of random orders and the bootstrap.
        cache: as `fit_candidates`.
        embedding: as `fit_candidates`.

    Raises:
        ConfigError: other features than the probe was fitted on.
        DataError: no rewards, or too few completions.
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
        probe: the probe.
        candidates: prompts with completions; rewards are not looked at.
        source: of the features that the probe was fitted on.
        beta: temperature of the choice; 0 takes the best.
        seed: of the choices; with a row's id it fixes its choice.
        cache: as `fit_candidates`.
        embedding: as `fit_candidates`.

    Returns:
        The rows as they were read, with `selected` (the text), `selected_index`, `scores` and `weights`.

    Raises:
        ConfigError: other features than the probe was fitted on; a negative beta.
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
