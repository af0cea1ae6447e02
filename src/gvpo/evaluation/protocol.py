"""Protocol of an evaluation: template, samples, temperature and seed, the same for every model that is compared."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from gvpo.errors import ConfigError
from gvpo.evaluation.benchmarks import Benchmark
from gvpo.evaluation.templates import AUTO
from gvpo.sampling import SamplingParams
from gvpo.types import Problem

TEMPERATURE, TOP_P = 0.6, 0.95
"""Defaults for several samples per problem, from DeepSeek-R1 (arXiv:2501.12948, section 3). One sample is greedy."""


@dataclass(frozen=True)
class EvalProtocol:
    """Prompt and sampling settings for every model; None chooses the benchmark's default, or one for the sample count.

    Args:
        template: A key of `TEMPLATES`, or "auto".
        examples: The user's own worked examples, for few-shot.
        samples: Number of completions per problem.
        max_tokens: Maximum number of tokens per completion.
        temperature: Sampling temperature.
        top_p: Cumulative probability of nucleus sampling.
        top_k: Number of most likely tokens to sample from; 0 for all.
        seed: Random seed of the sampling noise and of the choice of problems.
        limit: Maximum number of problems per benchmark; every model receives the same problems.
        at_once: Number of problems between two writes.
    """

    template: str = AUTO
    examples: Sequence[tuple[str, str]] | None = None
    samples: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int = 0
    seed: int = 0
    limit: int | None = None
    at_once: int | None = None

    def params(self, benchmark: Benchmark) -> SamplingParams:
        """Return the sampling parameters for a benchmark.

        Raises:
            ConfigError: If several samples per problem would all be the same.
        """
        samples = benchmark.samples if self.samples is None else self.samples
        several = samples > 1
        if several and self.temperature == 0:
            raise ConfigError(
                f"{samples} samples at temperature 0 are identical; use eval.samples=1, or a temperature above 0"
            )
        temperature = (TEMPERATURE if several else 0.0) if self.temperature is None else self.temperature
        top_p = (TOP_P if several and self.temperature is None else 1.0) if self.top_p is None else self.top_p
        tokens = benchmark.max_tokens if self.max_tokens is None else self.max_tokens
        return SamplingParams(samples, tokens, temperature=temperature, top_p=top_p, top_k=self.top_k)

    def chosen(self, problems: Sequence[Problem]) -> list[Problem]:
        """Return the problems to evaluate, in their order."""
        if self.limit is None or self.limit >= len(problems):
            return list(problems)
        places = random.Random(f"limit/{self.seed}").sample(range(len(problems)), self.limit)
        return [problems[place] for place in sorted(places)]
