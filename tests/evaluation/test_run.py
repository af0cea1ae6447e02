"""Tests of held-out evaluation."""

from collections.abc import Sequence
from typing import Any

import pytest

from gvpo.evaluation import Evaluation, evaluate
from gvpo.rewards import RewardPool
from gvpo.rollout.collect import EncodedProblem
from gvpo.sampling import Request, SamplingParams
from gvpo.sampling.transformers import TransformersSampler
from gvpo.types import Completion, Problem, is_right
from tests.training.toy import encoded, model, share, tokenizer


class Scripted:
    """A sampler that returns prepared answers and records its requests."""

    def __init__(self, *texts: str) -> None:
        self.texts = texts
        self.asked: list[tuple[list[str], int, int]] = []

    def sample(
        self, requests: Sequence[Request], params: SamplingParams, *, seed: int, step: int
    ) -> list[list[Completion]]:
        self.asked.append(([request.id for request in requests], seed, step))
        return [
            [
                Completion([0] * (len(text) + 1), text=text, finish_reason="length" if "..." in text else "stop")
                for text in self.texts
            ]
            for _ in requests
        ]


def judged(texts: Sequence[str], **weights: float) -> tuple[Evaluation, Scripted]:
    def right(completions: Any, **_: Any) -> list[float]:
        return [1.0 if text == "yes" else float("nan") if text == "fail" else 0.5 for text in completions]

    def short(completions: Any, **_: Any) -> list[float]:
        return [-float(len(text)) for text in completions]

    problems = [EncodedProblem(Problem("?", name), (1,)) for name in ("a", "b")]
    sampler = Scripted(*texts)
    params = SamplingParams(group_size=len(texts))
    with RewardPool({"short": short, "right": right}, weights or None, workers=1) as pool:
        return evaluate(problems, sampler, params, pool, judge="right", seed=9), sampler


def test_accuracy_depends_on_the_deciding_reward_and_not_on_weights():
    result, _ = judged(["yes", "no...", "no"], short=1.0, right=0.0)
    assert result.accuracy == pytest.approx(1 / 3)  # 0.5 is not above one half
    assert result.reward == pytest.approx(-(3 + 5 + 2) / 3)
    assert result.length == pytest.approx((4 + 6 + 3) / 3)
    assert result.truncated == pytest.approx(1 / 3)
    assert len(result.rollout.groups) == 2


def test_a_row_with_a_failed_reward_is_wrong_and_excluded_from_the_mean_reward():
    result, _ = judged(["yes", "fail"])
    assert result.accuracy == 0.5
    assert result.reward == pytest.approx(1 - 3)


def test_accuracy_is_0_if_every_reward_failed():
    result, _ = judged(["fail"])
    assert (result.accuracy, result.reward) == (0.0, 0.0)


def test_noise_depends_on_seed_and_problem_and_differs_from_training():
    _, sampler = judged(["yes"])
    ((names, seed, step),) = sampler.asked
    assert (seed, step) == (9, 0)
    assert not {"a", "b"} & set(names)


def test_two_evaluations_of_the_same_policy_are_the_same():
    sampler, params = TransformersSampler(model(), tokenizer()), SamplingParams(group_size=3, max_tokens=3)
    with RewardPool({"digits": share()}, workers=1) as pool:
        one, other, seed = (
            evaluate(encoded(), sampler, params, pool, judge="digits", seed=s).rollout.groups for s in (0, 0, 1)
        )
    assert one == other
    assert one != seed


@pytest.mark.parametrize(("part", "right"), [(None, False), (0.5, False), (0.51, True), (1.0, True), (-1.0, False)])
def test_right_is_above_one_half(part: float | None, right: bool):
    assert is_right(part) == right
