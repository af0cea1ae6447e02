"""Evaluation: of a policy while it is trained, and of models and responses on benchmarks."""

from gvpo.evaluation.benchmarks import BENCHMARKS, Benchmark
from gvpo.evaluation.run import Evaluation, evaluate, is_right

__all__ = ["BENCHMARKS", "Benchmark", "Evaluation", "evaluate", "is_right"]
