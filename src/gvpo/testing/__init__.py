"""Checks of the gradient of another trainer, and of the episodes that a run has stored."""

from gvpo.testing.check import GradientCheck, GradientMismatch, check_gvpo_gradient
from gvpo.testing.check_episodes import EpisodeCheck, EpisodeMismatch, check_episodes
from gvpo.testing.mistakes import MISTAKES
from gvpo.testing.trials import random_groups

__all__ = [
    "MISTAKES",
    "EpisodeCheck",
    "EpisodeMismatch",
    "GradientCheck",
    "GradientMismatch",
    "check_episodes",
    "check_gvpo_gradient",
    "random_groups",
]
