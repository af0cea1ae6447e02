"""Metrics of episodes: their lengths in turns, what failed, and the environments' own numbers."""

from collections.abc import Iterable, Mapping
from statistics import fmean

from gvpo.rollout.episodes.sampler import OBSERVATION_CUT
from gvpo.types import Completion, EpisodeTurn

_OUTCOMES = {"env/errors": "error", "env/timeouts": "timeout", "env/died": "died"}
"""Metrics that are fractions of turns -> their outcomes."""
_REASONS = {"env/lost": "environment", "env/no_room": "context", "env/turn_limit": "turns"}
"""Metrics that are fractions of episodes -> their finish reasons."""


def episode_metrics(rows: Iterable[Completion]) -> dict[str, float]:
    """Return the metrics of the rows that are episodes; {} if none is."""
    episodes = [row for row in rows if row.turns]
    if not episodes:
        return {}
    turns = [turn for row in episodes for turn in row.turns]
    return {
        **{f"env/{name}": value for name, value in _own(turns).items()},
        "env/turns": fmean(sum(turn.stop > turn.start for turn in row.turns) for row in episodes),
        **{key: fmean(turn.outcome == outcome for turn in turns) for key, outcome in _OUTCOMES.items()},
        "env/cut_observations": fmean(OBSERVATION_CUT in turn.metrics for turn in turns),
        **{key: fmean(row.finish_reason == reason for row in episodes) for key, reason in _REASONS.items()},
    }


def _own(turns: Iterable[EpisodeTurn]) -> Mapping[str, float]:
    """Return the means of the environments' own numbers over the turns that have them."""
    values: dict[str, list[float]] = {}
    for turn in turns:
        for name in turn.metrics.keys() - {OBSERVATION_CUT}:
            values.setdefault(name, []).append(float(turn.metrics[name]))
    return {name: fmean(values[name]) for name in sorted(values)}
