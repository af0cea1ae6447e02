"""Samplers with scripted answers."""

from collections.abc import Callable, Sequence

from gvpo.rollout.collect import EncodedProblem
from gvpo.sampling import Request, SamplingParams
from gvpo.types import Completion, Problem


class Scripted:
    """Samples `answer(prompt id, row)`, one token per character, and counts its calls."""

    def __init__(self, answer: Callable[[str, int], str]) -> None:
        self.answer = answer
        self.asked: list[list[str]] = []

    def sample(
        self, requests: Sequence[Request], params: SamplingParams, *, seed: int, step: int
    ) -> list[list[Completion]]:
        self.asked.append([request.id for request in requests])
        return [[_completion(self.answer(r.id, row)) for row in range(params.group_size)] for r in requests]


def _completion(text: str) -> Completion:
    reason = "length" if text.endswith("...") else "stop"
    return Completion(
        [ord(letter) for letter in text] or [0],
        sampler_logprobs=[-1.0] * max(1, len(text)),
        text=text,
        finish_reason=reason,
    )


def asked(*names: str) -> list[EncodedProblem]:
    """Return problems whose answer is their name."""
    return [EncodedProblem(Problem(f"{name}?", name, {"answer": name}), (1,)) for name in names]
