"""How likely a written answer is under aligned models: scores that `gvpo score` puts beside the data.

Knows the column; the scores are made in `gvpo.training.score_answers`, and PoFT learns from them.
"""

import math
from collections.abc import Sequence
from statistics import fmean

from gvpo.errors import DataError
from gvpo.types import Problem

ALIGNED = "aligned_mean_logprobs"
"""Column, and keyword of PoFT: for each aligned model the mean log-prob per token of the row's answer, nats."""

MODELS = "aligned_models"
"""Column: which models those are."""

SCORE_FIRST = "score the data first: gvpo score MODEL... --data FILE --out FILE"


def aligned_scores(problem: Problem) -> list[float]:
    """The row's scores, one an aligned model.

    Raises:
        DataError: there are none, or they are no numbers.
    """
    values = problem.columns.get(ALIGNED)
    if values is None:
        raise DataError(f"problem {problem.id!r} has no `{ALIGNED}`; {SCORE_FIRST}")
    if not isinstance(values, list | tuple) or not values or not all(_is_finite(value) for value in values):
        raise DataError(
            f"problem {problem.id!r}: `{ALIGNED}` is {str(values)[:40]!r}; it is a list of numbers, one a model; "
            f"{SCORE_FIRST}"
        )
    return [float(value) for value in values]


def likeliest(written: Sequence[tuple[Problem, str]], share: float) -> list[tuple[Problem, str]]:
    """The share of the answers that are likeliest under the aligned models, in the order of the data.

    Args:
        written: prompts with answers.
        share: of them to keep, in (0, 1], rounded up; 1 keeps all and needs no scores.

    Raises:
        DataError: a row without scores.
    """
    if share == 1:
        return list(written)
    means = [fmean(aligned_scores(problem)) for problem, _ in written]
    kept = sorted(range(len(written)), key=lambda place: -means[place])[: math.ceil(share * len(written))]
    return [written[place] for place in sorted(kept)]


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
