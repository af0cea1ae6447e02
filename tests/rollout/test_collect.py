"""Tests of the path from problems to scored groups."""

from collections.abc import Sequence

from gvpo.rewards import RewardBatch, RewardPool
from gvpo.rollout.collect import EncodedProblem, collect, reward_batch
from gvpo.sampling import Request, SamplingParams
from gvpo.types import Completion, Problem

PARAMS = SamplingParams(group_size=2, max_tokens=4)


class Echo:
    """A sampler whose rows are the request's id and the row, so that their order can be checked."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.noise: tuple[int, int] = (0, 0)

    def sample(
        self, requests: Sequence[Request], params: SamplingParams, *, seed: int, step: int
    ) -> list[list[Completion]]:
        self.requests, self.noise = list(requests), (seed, step)
        return [
            [Completion([row], text=f"{request.id}/{row}") for row in range(params.group_size)] for request in requests
        ]


def item(name: str, prompt: object = "?") -> EncodedProblem:
    return EncodedProblem(Problem(prompt, name, {"answer": f"{name}/1"}), (7, 8))  # type: ignore[arg-type]


def pool() -> RewardPool:
    return RewardPool(
        {
            "right": lambda completions, answer, **_: [
                1.0 if c == a else None for c, a in zip(completions, answer, strict=True)
            ]
        },
        workers=1,
    )


def test_groups_carry_rewards_ids_prompts_and_columns():
    sampler = Echo()
    with pool() as rewards:
        rollout = collect([item("a"), item("b")], sampler, PARAMS, rewards, seed=3, step=5)
    assert sampler.noise == (3, 5)
    assert [(g.id, g.prompt, g.columns) for g in rollout.groups] == [
        ("a", (7, 8), {"answer": "a/1"}),
        ("b", (7, 8), {"answer": "b/1"}),
    ]
    assert [[row.reward for row in g.completions] for g in rollout.groups] == [[None, 1.0], [None, 1.0]]
    assert [[verdict.reward for verdict in group] for group in rollout.verdicts] == [[None, 1.0], [None, 1.0]]
    assert rollout.verdicts[0][0].reason.startswith("abstained")
    assert set(rollout.seconds) == {"sampling", "rewarding"}


def test_a_problem_drawn_twice_in_a_step_is_two_groups_with_separate_noise():
    sampler = Echo()
    with pool() as rewards:
        rollout = collect([item("a"), item("b"), item("a")], sampler, PARAMS, rewards, seed=0, step=1)
    names = [request.id for request in sampler.requests]
    assert names == [group.id for group in rollout.groups]
    assert len(set(names)) == 3
    assert [problem.id for problem in rollout.problems] == ["a", "b", "a"]


def test_rewards_receive_text_for_text_and_messages_for_messages():
    rows = [Completion([1, 2], text="yes"), Completion([3], text=None)]
    messages = [{"role": "user", "content": "?"}]
    assert reward_batch(Problem("?", "a", {"answer": 4}), rows) == RewardBatch(
        "?", ["yes", ""], {"answer": 4}, [[1, 2], [3]]
    )
    assert reward_batch(Problem(messages, "a"), rows).completions == [
        [{"role": "assistant", "content": "yes"}],
        [{"role": "assistant", "content": ""}],
    ]
