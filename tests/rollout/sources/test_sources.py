"""Sources of groups."""

from typing import Any

from gvpo.rewards import RewardPool
from gvpo.rollout.collect import Rollout
from gvpo.rollout.order import ShuffledOrder
from gvpo.rollout.sources.demonstrations import DemonstrationSource
from gvpo.rollout.sources.live import LiveSource
from gvpo.sampling.base import SamplingParams
from gvpo.sampling.transformers import TransformersSampler
from gvpo.types import Completion
from tests.training.toy import encoded, model, share, tokenizer


def test_demonstrations_are_groups_of_one_in_the_shuffled_order():
    answers = [Completion([index], source="demonstration") for index in range(10)]
    order = ShuffledOrder(list(zip(encoded(), answers, strict=True)), per_step=4, seed=0)
    rollout = DemonstrationSource(order).rollout(2)
    assert [(g.id, g.completions[0]) for g in rollout.groups] == [(item.problem.id, row) for item, row in order.at(2)]
    assert rollout.verdicts == []


def test_the_live_source_repeats_its_groups_and_gives_others_at_another_step():
    order = ShuffledOrder(encoded(), per_step=3, seed=0)
    sampler, params = TransformersSampler(model(), tokenizer()), SamplingParams(group_size=2, max_tokens=3)
    with RewardPool({"digits": share()}, workers=1) as pool:
        source = LiveSource(order, sampler, params, pool, seed=0)
        first, again = source.rollout(1), source.rollout(1)
        source.commit(1)
        later = source.rollout(2)
    assert first.groups == again.groups
    assert first.verdicts == again.verdicts
    assert [g.id for g in first.groups] == [item.problem.id for item in order.at(1)]
    assert [row.version for g in later.groups for row in g.completions] == [1] * 6


def ids(rollout: Rollout) -> list[str]:
    return [problem.id for problem in rollout.problems]


def test_the_live_source_takes_the_next_problems_and_stores_its_position():
    order = ShuffledOrder(encoded(), per_step=3, seed=0)
    sampler, params = TransformersSampler(model(), tokenizer()), SamplingParams(group_size=2, max_tokens=3)
    with RewardPool({"digits": share()}, workers=1) as pool:

        def source(state: dict[str, Any]) -> LiveSource:
            made = LiveSource(order, sampler, params, pool, seed=0)
            made.load_state_dict(state)
            return made

        one = source({})
        assert one.state_dict() == {}
        taken = []
        for step, groups in enumerate([3, 1, 5, 0], start=1):
            taken += ids(one.rollout(step, groups))
            one.commit(step)
        assert taken == [item.problem.id for item in order.draw(0, 9)]
        assert one.state_dict() == {"position": 9}
        rollout, resumed = one.rollout(5), source(one.state_dict()).rollout(5)
        assert resumed.groups == rollout.groups
        assert ids(rollout) == [item.problem.id for item in order.draw(9, 3)]
        earlier = source({})  # the checkpoint of an earlier version has no position
        assert ids(earlier.rollout(4)) == [item.problem.id for item in order.at(4)]
        earlier.commit(4)
        assert earlier.state_dict() == {"position": 12}
