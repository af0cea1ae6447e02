"""Completions that end at a text: what base models write after their answer is dropped."""

import dataclasses
from collections.abc import Sequence

from gvpo.sampling.base import Request, Sampler, SamplingParams
from gvpo.types import Completion

FENCE = "```"


class StopTexts:
    """A sampler whose completions' texts end before the first of some texts.

    Their tokens stay as they were sampled, and so does their length: the engine has computed them. A completion that is
    cut here has stopped, wherever its sampling ended.

    Args:
        sampler: draws the completions.
        stops: texts; the earliest of them in a completion is where it ends.
        before_fence: look at a completion with a fenced block of code up to the fence alone: inside, a function may
            begin.
    """

    def __init__(self, sampler: Sampler, stops: Sequence[str], *, before_fence: bool = False) -> None:
        self._sampler, self._stops, self._before_fence = sampler, tuple(stops), before_fence

    def sample(
        self, requests: Sequence[Request], params: SamplingParams, *, seed: int, step: int
    ) -> list[list[Completion]]:
        """As the sampler's."""
        drawn = self._sampler.sample(requests, params, seed=seed, step=step)
        return [[self._cut(row) for row in rows] for rows in drawn]

    def check(self, requests: Sequence[Request], params: SamplingParams) -> None:
        """As the sampler's, where it has such a method."""
        check = getattr(self._sampler, "check", None)
        if check is not None:
            check(requests, params)

    def _cut(self, row: Completion) -> Completion:
        text = row.text or ""
        fence = text.find(FENCE) if self._before_fence else -1
        seen = text if fence < 0 else text[: fence + len(FENCE)]
        ends = [place for stop in self._stops if (place := seen.find(stop)) >= 0]
        if not ends:
            return row
        return dataclasses.replace(row, text=text[: min(ends)], finish_reason="stop")
