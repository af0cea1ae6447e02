"""Implementation of `sample` with a model in this process."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gvpo.model.tokenizer import encode_prompt
from gvpo.probe.data import Candidates
from gvpo.probe.features import Progress
from gvpo.sampling import Request, Sampler, SamplingParams
from gvpo.types import Problem, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

AT_ONCE = 16
"""Number of prompts that are sampled between two progress reports."""


class ModelSample:
    """A function that samples texts.

    Args:
        sampler: Any sampler.
        tokenizer: The sampler's tokenizer.
        params: Sampling parameters; the number of completions comes from the call.
        seed: Random seed; the completions depend only on it and the prompt.
    """

    def __init__(
        self, sampler: Sampler, tokenizer: "PreTrainedTokenizerBase", params: SamplingParams, *, seed: int = 0
    ) -> None:
        self._sampler, self._tokenizer, self._params, self._seed = sampler, tokenizer, params, seed

    def __call__(self, prompt: Prompt, k: int, /) -> list[str]:
        """Sample k completions."""
        return self.of([Problem(prompt, repr(prompt))], k)[0]

    def of(self, problems: Sequence[Problem], k: int) -> list[list[str]]:
        """Sample k completions of each problem in one call; problem IDs must differ, because they seed the noise."""
        requests = [Request(one.id, tuple(encode_prompt(self._tokenizer, one.prompt))) for one in problems]
        params = dataclasses.replace(self._params, group_size=k)
        drawn = self._sampler.sample(requests, params, seed=self._seed, step=0)
        return [[row.text or "" for row in rows] for rows in drawn]


def drawn_candidates(
    problems: Sequence[Problem], sample: ModelSample, k: int, progress: Progress | None = None
) -> list[Candidates]:
    """Sample k completions of each problem, some problems at a time, as candidates without rewards."""
    found: list[Candidates] = []
    for start in range(0, len(problems), AT_ONCE):
        part = problems[start : start + AT_ONCE]
        found += [_candidates(*pair) for pair in zip(part, sample.of(part, k), strict=True)]
        if progress is not None:
            progress(len(found), len(problems))
    return found


def _candidates(problem: Problem, texts: Sequence[str]) -> Candidates:
    row = {"prompt": problem.prompt, **problem.columns, "completions": list(texts)}
    return Candidates(problem.prompt, texts, [None] * len(texts), problem.id, row)
