"""Scores of a written answer under aligned models, which `gvpo score` adds to the data.

This module describes the column; `gvpo.training.score_answers` computes the scores, and PoFT trains with them.
"""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import TypeVar

from gvpo.errors import DataError
from gvpo.types import Problem

T = TypeVar("T")

ALIGNED = "aligned_mean_logprobs"
"""Column, and keyword of PoFT: for each aligned model the mean log-prob per token of the row's answer, nats."""

MODELS = "aligned_models"
"""Column with the names of these models."""

SCORE_FIRST = "score the data first: gvpo score MODEL... --data FILE --out FILE"


def aligned_scores(problem: Problem) -> list[float]:
    """Return the row's scores, one per aligned model.

    Raises:
        DataError: If there are no scores, or they are not numbers.
    """
    values = problem.columns.get(ALIGNED)
    if values is None:
        raise DataError(f"problem {problem.id!r} has no `{ALIGNED}`; {SCORE_FIRST}")
    numbers = isinstance(values, list | tuple) and all(isinstance(v, int | float) and math.isfinite(v) for v in values)
    if not numbers or not values:
        raise DataError(
            f"problem {problem.id!r}: `{ALIGNED}` is {str(values)[:40]!r}; it must list one number per model; "
            f"{SCORE_FIRST}"
        )
    return [float(value) for value in values]


def likeliest(written: Sequence[tuple[Problem, T]], share: float) -> list[tuple[Problem, T]]:
    """Return the fraction of the answers that are most likely under the aligned models, in the order of the data.

    Args:
        written: Prompts with answers.
        share: Fraction of the answers to keep, in (0, 1], rounded up; 1 keeps all and needs no scores.

    Raises:
        DataError: If a row has no scores.
    """
    if share == 1:
        return list(written)
    means = [fmean(aligned_scores(problem)) for problem, _ in written]
    kept = sorted(range(len(written)), key=lambda place: -means[place])[: math.ceil(share * len(written))]
    return [written[place] for place in sorted(kept)]
