"""How an evaluation asks: template, samples, temperature, seed; the same for everybody who is compared."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from gvpo.errors import ConfigError
from gvpo.evaluation.benchmarks import Benchmark
from gvpo.evaluation.templates import AUTO
from gvpo.sampling import SamplingParams
from gvpo.types import Problem

TEMPERATURE, TOP_P = 0.6, 0.95
"""Of several samples a problem, by default: DeepSeek-R1's (arXiv:2501.12948, section 3). One sample is greedy."""


@dataclass(frozen=True)
class EvalProtocol:
    """How every entrant is asked; None leaves a value to the benchmark, or to whether there are several samples.

    Args:
        template: a key of `TEMPLATES`, or "auto".
        examples: the user's own worked examples, for few-shot.
        samples: completions a problem.
        max_tokens: tokens a completion.
        temperature: of the sampling.
        top_p: of the sampling.
        top_k: of the sampling.
        seed: of the sampling noise, and of the choice of problems.
        limit: at most so many problems a benchmark, the same ones for everybody.
        at_once: problems between two writes.
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
        """How completions of a benchmark are drawn.

        Raises:
            ConfigError: several samples that would all be the same.
        """
        samples = benchmark.samples if self.samples is None else self.samples
        several = samples > 1
        if several and self.temperature == 0:
            raise ConfigError(
                f"{samples} samples at temperature 0 are the same one; use eval.samples=1, or a temperature above 0"
            )
        temperature = (TEMPERATURE if several else 0.0) if self.temperature is None else self.temperature
        top_p = (TOP_P if several and self.temperature is None else 1.0) if self.top_p is None else self.top_p
        tokens = benchmark.max_tokens if self.max_tokens is None else self.max_tokens
        return SamplingParams(samples, tokens, temperature=temperature, top_p=top_p, top_k=self.top_k)

    def chosen(self, problems: Sequence[Problem]) -> list[Problem]:
        """The problems that are asked, in their order."""
        if self.limit is None or self.limit >= len(problems):
            return list(problems)
        places = random.Random(f"limit/{self.seed}").sample(range(len(problems)), self.limit)
        return [problems[place] for place in sorted(places)]
