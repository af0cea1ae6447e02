"""Evaluation of a policy during training, and of models and response files on benchmarks."""

from gvpo.evaluation.benchmarks import BENCHMARKS, Benchmark
from gvpo.evaluation.run import Evaluation, evaluate

__all__ = ["BENCHMARKS", "Benchmark", "Evaluation", "evaluate"]
