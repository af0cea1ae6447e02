"""Mixed groups, against samples that are kept by hand."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from gvpo.rewards import RewardPool
from gvpo.rollout.collect import EncodedProblem, Rollout, collect
from gvpo.rollout.given.history import History
from gvpo.rollout.given.logged import LoggedRows
from gvpo.rollout.given.mixture import Mixture
from gvpo.rollout.order import ShuffledOrder
from gvpo.rollout.rewards import NoRewards
from gvpo.rollout.sources.live import LiveSource
from gvpo.sampling.base import SamplingParams
from gvpo.sampling.transformers import TransformersSampler
from gvpo.types import Completion, Group, Verdict
from tests.training.toy import encoded, model, share, tokenizer

PARAMS = SamplingParams(group_size=5, max_tokens=3)
LOGGED = [
    Group(item.prompt, [Completion([token], text=str(token)) for token in range(3)], id=item.problem.id)
    for item in encoded()[:7]
]
"""Three rows for seven of the ten prompts."""


@pytest.fixture(scope="module")
def pool():
    with RewardPool({"digits": share()}, workers=1) as made:
        yield made


@pytest.fixture(scope="module")
def policy():
    return model()


class Counted:
    """A sampler that counts its rows."""

    def __init__(self, policy: Any) -> None:
        self.inner, self.rows = TransformersSampler(policy, tokenizer()), 0

    def sample(self, requests: Any, params: Any, *, seed: int, step: int) -> Any:
        self.rows += len(requests) * params.group_size
        return self.inner.sample(requests, params, seed=seed, step=step)


class Expert:
    """One row per prompt, except for odd digits."""

    name, per_group = "expert", 1

    def rows(self, items: Sequence[EncodedProblem], names: Sequence[str], step: int) -> list[list[Completion]]:
        text = [f"{item.problem.columns['digit']}{step % 10}" for item in items]
        return [
            [Completion(tokenizer()(words).input_ids, text=words, source="expert")] if int(words[0]) % 2 == 0 else []
            for words in text
        ]


def source(sampler: Any, pool: RewardPool, mixture: Mixture, per_step: int = 4) -> LiveSource:
    order = ShuffledOrder(encoded(), per_step=per_step, seed=0)
    return LiveSource(order, sampler, PARAMS, pool, seed=0, mixture=mixture)


def of(rollout: Rollout, name: str) -> list[list[Completion]]:
    return [[row for row in group.completions if row.source == name] for group in rollout.groups]


def same(one: Sequence[Completion], other: Sequence[Completion]) -> bool:
    """Return whether rows are equal, up to rounding of log-probs, which the size of a batch changes."""
    return len(one) == len(other) and all(
        dataclasses.replace(a, sampler_logprobs=None) == dataclasses.replace(b, sampler_logprobs=None)
        and (a.sampler_logprobs is None) == (b.sampler_logprobs is None)
        and (a.sampler_logprobs is None or a.sampler_logprobs == pytest.approx(b.sampler_logprobs, abs=1e-5))
        for a, b in zip(one, other, strict=True)
    )


def test_history_equals_samples_that_are_kept_by_hand(pool: RewardPool, policy: Any):
    """Sample whole groups by hand, keep the newest two rows of each prompt, and put them in front of the next group."""
    sampler = Counted(policy)
    mixed, order = source(sampler, pool, Mixture(History(2), [])), ShuffledOrder(encoded(), per_step=4, seed=0)
    kept: dict[str, list[Completion]] = {}
    for step in range(1, 9):
        rollout = mixed.rollout(step)
        again = mixed.rollout(step)
        assert (again.groups, again.verdicts, again.metrics) == (rollout.groups, rollout.verdicts, rollout.metrics)
        mixed.commit(step)
        whole = collect(order.at(step), sampler.inner, PARAMS, pool, seed=0, step=step)
        missing, sampled = 0, {}
        for group, live, problem in zip(rollout.groups, whole.groups, whole.problems, strict=True):
            old = [dataclasses.replace(row, source="history") for row in kept.get(problem.id, [])]
            missing += 2 - len(old)
            fresh = [dataclasses.replace(row, version=step - 1) for row in live.completions[: 5 - len(old)]]
            assert same(group.completions, [*old, *fresh])
            sampled[problem.id] = fresh
        for name, fresh in sampled.items():
            kept[name] = [*fresh, *kept.get(name, [])][:2]
        assert rollout.metrics == {"rows/history_missing": missing}
        assert [[v.reward for v in verdicts] for verdicts in rollout.verdicts] == [
            [row.reward for row in group.completions] for group in rollout.groups
        ]
    assert missing == 0
    assert all(row.version is not None and row.version < 7 for rows in of(rollout, "history") for row in rows)


def test_groups_begin_with_history_then_logged_then_expert_rows(pool: RewardPool, policy: Any):
    sampler = Counted(policy)
    written = [LoggedRows(LOGGED, 2, seed=0), Expert()]
    mixed = source(sampler, pool, Mixture(History(1), written), per_step=10)
    for step in (1, 2):
        before = sampler.rows
        rollout = mixed.rollout(step)
        mixed.commit(step)
    sources = Counter(tuple(row.source for row in group.completions) for group in rollout.groups)
    by_hand = Counter(
        ("history", *["logged"] * (2 * (digit < 7)), *["expert"] * (digit % 2 == 0)) for digit in range(10)
    )
    assert sources == Counter({(*given, *["live"] * (5 - len(given))): count for given, count in by_hand.items()})
    assert sampler.rows - before == 50 - 10 - 14 - 5
    assert rollout.metrics == {"rows/history_missing": 0, "rows/logged_missing": 6, "rows/expert_missing": 5}
    for group, verdicts, problem in zip(rollout.groups, rollout.verdicts, rollout.problems, strict=True):
        digit = problem.columns["digit"]
        assert [row.reward for row in group.completions] == [
            (row.text or "").count(digit) / 3 for row in group.completions
        ]
        assert [verdict.reward for verdict in verdicts] == [row.reward for row in group.completions]
        assert {row.source: row.version for row in group.completions}.items() >= {("live", 1), ("history", 0)}
        assert {row.version for row in group.completions if row.source in ("logged", "expert")} <= {None}


def test_groups_may_have_no_live_row(pool: RewardPool, policy: Any):
    """Groups of history alone, and of history and logged rows; the reward functions see no empty group."""
    sampler = Counted(policy)
    mixed = source(sampler, pool, Mixture(History(5), []), per_step=10)
    first = mixed.rollout(1)
    mixed.commit(1)
    sampled = sampler.rows
    second = mixed.rollout(2)
    assert sampler.rows == sampled == 50
    assert second.verdicts
    assert {row.source for group in second.groups for row in group.completions} == {"history"}
    by_id = {group.id: group for group in first.groups}
    for group in second.groups:
        assert [(row.tokens, row.reward) for row in group.completions] == [
            (row.tokens, row.reward) for row in by_id[group.id].completions
        ]


def test_a_prompt_that_occurs_twice_in_a_step_has_two_groups(pool: RewardPool, policy: Any):
    mixed = source(Counted(policy), pool, Mixture(History(2), [LoggedRows(LOGGED, 1, seed=0)]), per_step=15)
    mixed.rollout(1)
    mixed.commit(1)
    rollout = mixed.rollout(2)
    names = [group.id for group in rollout.groups]
    assert len(set(names)) == 15
    twice = [name for name in names if "#" in name]
    groups = {group.id: group for group in rollout.groups}
    assert len(twice) == 5
    pairs = [(groups[name.partition("#")[0]].completions, groups[name].completions) for name in twice]
    assert all(one[:2] == other[:2] for one, other in pairs)  # the same history
    assert any([row.tokens for row in one[-2:]] != [row.tokens for row in other[-2:]] for one, other in pairs)


def test_a_restored_source_continues_with_equal_bits(pool: RewardPool, policy: Any):
    def fresh() -> LiveSource:
        return source(
            Counted(policy), pool, Mixture(History(2, max_age=4, capacity=9), [LoggedRows(LOGGED, 1, seed=0)])
        )

    unbroken, resumed = fresh(), fresh()
    for step in range(1, 5):
        unbroken.rollout(step)
        unbroken.commit(step)
    resumed.load_state_dict(unbroken.state_dict())
    for step in range(5, 9):
        one, other = unbroken.rollout(step), resumed.rollout(step)
        assert (one.groups, one.verdicts, one.metrics) == (other.groups, other.verdicts, other.metrics)
        unbroken.commit(step)
        resumed.commit(step)
    assert any(of(one, "history"))


def test_verdicts_of_history_are_those_that_the_rows_received(pool: RewardPool, policy: Any):
    history = History(5)
    mixed = source(Counted(policy), pool, Mixture(history, []), per_step=10)
    first = mixed.rollout(1)
    mixed.commit(1)
    judged = {group.id: verdicts for group, verdicts in zip(first.groups, first.verdicts, strict=True)}
    second = mixed.rollout(2)
    assert [judged[group.id] for group in second.groups] == [list(verdicts) for verdicts in second.verdicts]
    assert isinstance(second.verdicts[0][0], Verdict)


def test_without_rewards_rows_become_history_too(policy: Any):
    mixture = Mixture(History(2, rewarded=False), [], rewarded=False)
    mixed = source(Counted(policy), NoRewards(), mixture, per_step=10)  # type: ignore[arg-type]
    for step in (1, 2):
        rollout = mixed.rollout(step)
        mixed.commit(step)
    assert rollout.verdicts == []
    assert {len(rows) for rows in of(rollout, "history")} == {2}
