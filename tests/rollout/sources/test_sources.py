"""Sources of groups."""

from gvpo.rewards import RewardPool
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
        first, again, later = source.rollout(1), source.rollout(1), source.rollout(2)
    assert first.groups == again.groups
    assert first.verdicts == again.verdicts
    assert [g.id for g in first.groups] == [item.problem.id for item in order.at(1)]
    assert [row.version for g in later.groups for row in g.completions] == [1] * 6
