"""Checks for other people's code: does another trainer compute GVPO's gradient?"""

from gvpo.testing.check import GradientCheck, GradientMismatch, check_gvpo_gradient
from gvpo.testing.mistakes import MISTAKES
from gvpo.testing.trials import random_groups

__all__ = ["MISTAKES", "GradientCheck", "GradientMismatch", "check_gvpo_gradient", "random_groups"]
