"""Evaluation on held-out problems."""

from gvpo.evaluation.run import Evaluation, evaluate, is_right

__all__ = ["Evaluation", "evaluate", "is_right"]
