"""The policy that sampled as reference: log-probs that rows carry, or those of the start of the step."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from gvpo.config import Given, TrainConfig, resolve
from gvpo.errors import ConfigError
from gvpo.rollout.usable import usable
from gvpo.training.learner import Learner
from gvpo.training.objective import build_objective
from gvpo.types import Group
from gvpo.update.group_backward import TokenLogprobs, score
from tests.naive import naive_scores
from tests.training.toy import config, groups, model, same, weights

BETA = 0.3
MODEL = Given(model=True)


def learner(policy: Any, **settings: Any) -> Learner:
    fixed = {"passes": 2, "groups_per_update": 2, "learning_rate": 3e-3, "max_grad_norm": 1e9, "beta": BETA}
    config_ = config(**{**fixed, "reference": "sampler", **settings})
    return Learner(policy, build_objective(config_), config_)


def carrying(batch: Sequence[Group], scores: Sequence[TokenLogprobs]) -> list[Group]:
    """Return groups whose rows carry reference log-probs."""
    found = iter(scores)
    return [
        dataclasses.replace(
            group,
            completions=[dataclasses.replace(row, ref_logprobs=next(found).logprobs) for row in group.completions],
        )
        for group in batch
    ]


def gvpo_by_hand(policy: Any, batch: Sequence[Group]) -> torch.Tensor:
    losses = []
    for group in batch:
        gaps = []
        for row in group.completions:
            logprobs, _ = naive_scores(policy, group, row, 1.0)
            gaps.append(BETA * (logprobs - torch.as_tensor(row.ref_logprobs)).sum() - float(row.reward or 0.0))
        losses.append(torch.stack(gaps).var() / 2)
    return torch.stack(losses).mean()


def test_rows_of_another_policy_keep_the_reference_that_they_carry():
    older = model(seed=7)
    rows = carrying(groups(policy=older), score(older, groups(policy=older)))
    one, naive = learner(model()), model()
    optimizer, losses = torch.optim.AdamW(naive.parameters(), lr=3e-3, weight_decay=0.0), []
    for batch in (rows[:2], rows[2:], rows[:2], rows[2:]):
        optimizer.zero_grad()
        loss = gvpo_by_hand(naive, batch)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    learned = one.learn(usable(rows, rewarded=True, at_least=2), 3)
    assert [float(update.output.loss) for update in learned.updates] == pytest.approx(losses, abs=1e-6)
    assert one.reference is None
    trained = [row for update in learned.updates for entry in update.groups for row in entry.group.completions]
    carried = [row.ref_logprobs for group in [*rows, *rows] for row in group.completions]
    assert all(row.ref_logprobs is before for row, before in zip(trained, carried, strict=True))


def test_live_rows_are_relative_to_the_start_of_the_step():
    batch, ends = usable(groups(), rewarded=True, at_least=2), []
    for reference in ("sampler", "previous"):
        one = learner(model(), reference=reference)
        for step in (1, 2):
            one.learn(batch, step)
        ends.append(weights(one.model))
    assert same(*ends)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rollout_history": 2}, r"rollout\.history mixes them; set it to 'initial'"),
        ({"rollout_logged": 2, "rollout_logged_path": "a.jsonl"}, r"rollout\.logged mixes them"),
        ({"groups_data": "a.jsonl"}, "no policy of the run sampled logged groups"),
    ],
)
def test_it_is_refused_where_groups_have_several_samplers_or_none(settings: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        resolve(TrainConfig(reference="sampler", **settings), MODEL)


@pytest.mark.parametrize(
    "settings", [{"rollout_staleness": 2}, {"rollout_reuse": 2}, {"rollout_history": 2}, {"groups_data": "a.jsonl"}]
)
def test_the_start_of_the_step_is_refused_for_rows_that_it_did_not_sample(settings: dict[str, Any]):
    with pytest.raises(ConfigError, match=r"objective\.reference='previous' is the policy"):
        resolve(TrainConfig(reference="previous", **settings), MODEL)
