"""Completions that end at a stop text. Base models often continue after their answer; that continuation is dropped."""

import dataclasses
from collections.abc import Iterator, Sequence

from gvpo.sampling.base import Request, Sampler, SamplingParams, streamed
from gvpo.types import Completion

FENCE = "```"


class StopTexts:
    """A sampler whose completions' texts end before the first stop text.

    Their tokens and lengths are left unchanged, because the engine has computed them. A completion that is truncated
    here has the finish reason "stop", regardless of where its sampling ended.

    Args:
        sampler: Sampler of the completions.
        stops: Stop texts. A completion ends before the earliest of them.
        before_fence: In a completion with a fenced block of code, search only up to the fence, because a function may
            begin inside the block.
    """

    def __init__(self, sampler: Sampler, stops: Sequence[str], *, before_fence: bool = False) -> None:
        self._sampler, self._stops, self._before_fence = sampler, tuple(stops), before_fence

    def sample(
        self, requests: Sequence[Request], params: SamplingParams, *, seed: int, step: int
    ) -> list[list[Completion]]:
        """Call the sampler's `sample`, then truncate the texts."""
        drawn = self._sampler.sample(requests, params, seed=seed, step=step)
        return [[self._cut(row) for row in rows] for rows in drawn]

    def stream(
        self, requests: Sequence[Request], params: SamplingParams, *, seed: int, step: int
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Yield the sampler's groups with truncated texts, as soon as the sampler yields them."""
        for place, rows in streamed(self._sampler, requests, params, seed=seed, step=step):
            yield place, [self._cut(row) for row in rows]

    def check(self, requests: Sequence[Request], params: SamplingParams) -> None:
        """Call the sampler's `check` if it has one."""
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
