"""Results: a benchmark's numbers from the rows of a groups file, differences between models, and a summary."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

from gvpo.evaluation import metrics
from gvpo.evaluation.metrics import Difference
from gvpo.evaluation.votes import VOTES, Vote
from gvpo.rollout.fill import has_failed
from gvpo.types import is_right


@dataclass(frozen=True)
class JudgedProblem:
    """One problem's samples.

    Args:
        id: ID of the problem.
        right: Whether each sample is correct; a sample whose reward failed is incorrect.
        votes: Vote of each sample; None if the reward has no votes.
        lengths: Number of tokens of each sample; None for responses whose tokens are not known.
        truncated: Whether each sample was truncated at the maximum length.
        failed: Number of samples whose rewards failed.
    """

    id: str
    right: Sequence[bool]
    votes: Sequence[Vote] | None
    lengths: Sequence[int] | None
    truncated: Sequence[bool]
    failed: int

    @property
    def score(self) -> float:
        """Fraction of correct samples."""
        return fmean(self.right)


def judged(row: Mapping[str, Any], reward: str) -> JudgedProblem:
    """Return the samples in a row of a groups file, judged by the named reward."""
    completions = row["completions"]
    vote = VOTES.get(reward)
    known = all(isinstance(completion, list) for completion in completions)
    return JudgedProblem(
        id=row["id"],
        right=[is_right(parts.get(reward)) for parts in row["reward_parts"]],
        votes=None if vote is None else [vote(text or "") for text in row["texts"]],
        lengths=[len(completion) for completion in completions] if known else None,
        truncated=[reason == "length" for reason in row["finish_reasons"]],
        failed=sum(itertools.starmap(has_failed, zip(row["rewards"], row["reasons"], strict=True))),
    )


@dataclass(frozen=True)
class Result:
    """Result of a model on a benchmark.

    Args:
        model: Name of the model.
        benchmark: Name of the benchmark.
        problems: Problems in the benchmark's order, at least one.
        ks: The k of pass@k and maj@k; a k above the number of samples is ignored. Default: for pass@k the powers of two
            and the number of samples, for maj@k the number of samples.
    """

    model: str
    benchmark: str
    problems: Sequence[JudgedProblem]
    ks: Sequence[int] | None = None

    @cached_property
    def samples(self) -> int:
        """Number of samples per problem: the minimum over the problems."""
        return min(len(problem.right) for problem in self.problems)

    @cached_property
    def scores(self) -> list[float]:
        """Fraction of correct samples of each problem; its mean is pass@1, also called avg@n."""
        return [problem.score for problem in self.problems]

    @property
    def passes(self) -> list[int]:
        """The k of pass@k."""
        powers = [2**power for power in range(self.samples.bit_length())]
        return self._possible(self.ks or [*powers, self.samples])

    @property
    def majorities(self) -> list[int]:
        """The k of maj@k."""
        return self._possible(self.ks or [self.samples])

    def _possible(self, ks: Sequence[int]) -> list[int]:
        return sorted({k for k in ks if 1 <= k <= self.samples})

    def pass_at(self, k: int) -> list[float]:
        """Return pass@k of each problem."""
        return [metrics.pass_at_k(sum(problem.right), len(problem.right), k) for problem in self.problems]

    def majority_at(self, k: int) -> list[float] | None:
        """Return maj@k of each problem, or None if there are no votes."""
        values = [
            metrics.majority_at_k(problem.votes, problem.right, k)
            for problem in self.problems
            if problem.votes is not None
        ]
        return values or None

    @property
    def length(self) -> float | None:
        """Mean number of tokens per sample; None if not known."""
        lengths = [length for problem in self.problems for length in problem.lengths or ()]
        return fmean(lengths) if lengths else None

    @property
    def truncated(self) -> float:
        """Fraction of samples that were truncated."""
        return fmean(cut for problem in self.problems for cut in problem.truncated)

    @property
    def failed(self) -> int:
        """Number of samples whose rewards failed; they count as incorrect."""
        return sum(problem.failed for problem in self.problems)

    @cached_property
    def values(self) -> dict[str, Any]:
        """The numbers as JSON: fractions from 0 to 1, each with its 95% interval."""
        return {
            "model": self.model,
            "benchmark": self.benchmark,
            "problems": len(self.problems),
            "samples": self.samples,
            "avg": _with_interval(self.scores),
            "pass_at": {str(k): _with_interval(self.pass_at(k)) for k in self.passes},
            "maj_at": {str(k): _with_interval(self.majority_at(k)) for k in self.majorities},
            "length": self.length,
            "truncated": self.truncated,
            "failed": self.failed,
        }


def _with_interval(scores: Sequence[float] | None) -> dict[str, Any] | None:
    return None if scores is None else {"mean": fmean(scores), "interval": list(metrics.interval(scores))}


@dataclass(frozen=True)
class Comparison:
    """Two models on the same problems of a benchmark.

    Args:
        benchmark: Name of the benchmark.
        first: Name of a model.
        second: Name of the model that it is compared with.
        difference: First minus second, in avg@n.
    """

    benchmark: str
    first: str
    second: str
    difference: Difference

    @property
    def values(self) -> dict[str, Any]:
        """The numbers as JSON."""
        return {
            "benchmark": self.benchmark,
            "first": self.first,
            "second": self.second,
            "difference": self.difference.mean,
            "interval": list(self.difference.interval),
            "problems": self.difference.problems,
            "settled": self.difference.settled,
            "problems_needed": self.difference.needed,
        }


def compare(results: Sequence[Result]) -> list[Comparison]:
    """Compare every pair of models on every benchmark: the later minus the earlier one, on the problems of both."""
    return [
        Comparison(later.benchmark, later.model, earlier.model, metrics.difference(*both))
        for earlier, later in itertools.combinations(results, 2)
        if earlier.benchmark == later.benchmark and (both := _of_both(later, earlier))[0]
    ]


def _of_both(one: Result, other: Result) -> tuple[list[float], list[float]]:
    """Return the scores of the problems that two results share, in the same order."""
    theirs = {problem.id: problem.score for problem in other.problems}
    shared = [problem for problem in one.problems if problem.id in theirs]
    return [problem.score for problem in shared], [theirs[problem.id] for problem in shared]


def averages(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return each model's mean over its benchmarks, as in the papers' tables: every benchmark has the same weight.

    The interval comes from bootstrap means of each benchmark, averaged. It is None if all problems of a benchmark have
    the same score, because the means of that benchmark would not vary.
    """
    found = []
    for model in dict.fromkeys(result.model for result in results):
        own = [result for result in results if result.model == model]
        if len(own) > 1:
            mean = fmean(fmean(result.scores) for result in own)
            found.append({"model": model, "benchmarks": len(own), "mean": mean, "interval": _average_interval(own)})
    return found


def _average_interval(results: Sequence[Result]) -> list[float] | None:
    if any(len(set(result.scores)) == 1 for result in results):
        return None
    draws = [metrics.bootstrap(result.scores, seed=seed) for seed, result in enumerate(results)]
    return list(metrics.quantiles(sum(draws[1:], start=draws[0]) / len(draws)))


def summary(results: Sequence[Result]) -> dict[str, Any]:
    """Return all numbers as JSON: `results`, `differences`, `averages`."""
    return {
        "results": [result.values for result in results],
        "differences": [comparison.values for comparison in compare(results)],
        "averages": averages(results),
    }
