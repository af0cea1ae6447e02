"""Evaluation of a policy during training, and of models and response files on benchmarks."""

from gvpo.evaluation.benchmarks import BENCHMARKS, Benchmark
from gvpo.evaluation.run import Evaluation, evaluate, is_right

__all__ = ["BENCHMARKS", "Benchmark", "Evaluation", "evaluate", "is_right"]
