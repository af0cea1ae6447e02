"""The learner: the log-probs of rows, the refreshes of the reference, and updates that are not finite."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from gvpo.config import TrainConfig
from gvpo.errors import TrainingError
from gvpo.rollout.usable import TrainingGroup, usable
from gvpo.training import learner as module
from gvpo.training.learner import Learner, Update
from gvpo.training.objective import build_objective
from gvpo.types import Completion, Group
from gvpo.update.group_backward import TokenLogprobs, group_backward, score
from tests.training.toy import config, groups, model, same, weights, with_reward

pytestmark = pytest.mark.filterwarnings("ignore:GVPO with objective.reference")


def learner(policy: Any = None, **settings: Any) -> Learner:
    config_: TrainConfig = config(**settings)
    return Learner(policy or model(), build_objective(config_), config_)


def training(of: Sequence[Group]) -> list[TrainingGroup]:
    return usable(of, rewarded=True, at_least=2)


def trained(updates: Sequence[Update]) -> list[Completion]:
    return [row for update in updates for entry in update.groups for row in entry.group.completions]


def assert_scores(rows: Sequence[Completion], name: str, scored: Sequence[TokenLogprobs]) -> None:
    for row, expected in zip(rows, scored, strict=True):
        torch.testing.assert_close(torch.as_tensor(getattr(row, name)), expected.logprobs, rtol=0, atol=1e-5)


def test_old_log_probs_are_those_at_the_start_of_the_rollout():
    one, batch = learner(objective="grpo", groups_per_update=1, passes=2, learning_rate=0.03), groups()
    before = score(one.model, batch)
    learned = one.learn(training(batch), 1)
    assert [len(update.groups) for update in learned.updates] == [1] * 8
    assert_scores(trained(learned.updates[:4]), "old_logprobs", before)
    assert_scores(trained(learned.updates[4:]), "old_logprobs", before)
    after = score(one.model, batch)
    assert max(float((a.logprobs - b.logprobs).abs().max()) for a, b in zip(after, before, strict=True)) > 0.1


def test_the_previous_reference_is_the_policy_at_the_start_of_the_rollout():
    one, batch = learner(reference="previous", groups_per_update=2, learning_rate=0.03), groups()
    for step in (1, 2):
        before = score(one.model, batch)
        assert_scores(trained(one.learn(training(batch), step).updates), "ref_logprobs", before)


def test_the_initial_reference_never_moves():
    one, batch = learner(learning_rate=0.03), groups()
    start, before = weights(one.model), score(one.model, batch)
    for step in (1, 2, 3):
        learned = one.learn(training(batch), step)
        assert_scores(trained(learned.updates), "ref_logprobs", before)
    assert one.reference is not None
    assert same(weights(one.reference.model), start)
    assert not same(weights(one.model), start)


def test_every_n_refreshes_after_n_steps_even_if_a_step_has_no_groups():
    one, batch = learner(reference="every:2", learning_rate=0.03), training(groups())
    assert one.reference is not None
    starts, references = [], []
    for step in range(1, 6):
        starts.append(weights(one.model))
        one.learn([] if step == 3 else batch, step)
        references.append(weights(one.reference.model))
    refreshed_at = [1, 1, 3, 3, 5]
    assert [same(reference, starts[at - 1]) for reference, at in zip(references, refreshed_at, strict=True)] == [
        True
    ] * 5
    assert not same(references[0], references[2])


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("settings", [{"objective": "grpo"}, {"objective": "dapo"}, {"objective": "gspo"}])
def test_the_first_update_has_a_ratio_of_exactly_one(settings: dict[str, Any], passes: int):
    one = learner(**settings, passes=passes, groups_per_update=2, learning_rate=0.03)
    first, second, *others = one.learn(training(groups()), 1).updates
    for key, value in first.output.metrics.items():
        if key.endswith("ratio_mean"):
            assert float(value) == 1.0
        if "clip" in key:
            assert float(value) == 0.0
    ratios = [
        float(v) for update in (second, *others) for k, v in update.output.metrics.items() if k.endswith("ratio_mean")
    ]
    assert ratios
    assert all(ratio != 1.0 for ratio in ratios)


def test_an_update_is_adamw_on_the_groups_exact_gradient():
    settings = {"objective": "rloo", "learning_rate": 0.01, "max_grad_norm": 0.05}
    batch, naive = groups(), model()
    output = group_backward(naive, batch, build_objective(config(**settings)).function, on_policy=True)
    optimizer = torch.optim.AdamW(naive.parameters(), lr=0.01, weight_decay=0.0)
    norm = float(torch.nn.utils.clip_grad_norm_(naive.parameters(), 0.05))
    optimizer.step()
    one = learner(**settings)
    (update,) = one.learn(training(batch), 1).updates
    assert (update.grad_norm, float(update.output.loss)) == (norm, float(output.loss))
    assert norm > 0.05
    assert same(weights(one.model), weights(naive))


def test_kl_in_reward_subtracts_beta_times_the_log_ratio_from_the_rewards():
    start = model(seed=0)
    one = learner(start, objective="rloo", kl_in_reward=0.5, groups_per_update=2)
    with torch.no_grad():
        for parameter in one.model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    assert one.reference is not None
    batch = groups()
    old, ref = score(one.model, batch), score(one.reference.model, batch)
    plain = [row.reward for group in batch for row in group.completions]
    expected = [r - 0.5 * float((a.logprobs - b.logprobs).sum()) for r, a, b in zip(plain, old, ref, strict=True)]
    rewards = [row.reward for row in trained(one.learn(training(batch), 2).updates)]
    assert rewards == pytest.approx(expected, abs=1e-4)
    assert rewards != pytest.approx(plain, abs=1e-2)


def test_kl_in_reward_ignores_masked_tokens():
    one = learner(objective="rloo", kl_in_reward=0.5)
    with torch.no_grad():
        for parameter in one.model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    batch = groups(1)
    masked = dataclasses.replace(batch[0].completions[0], mask=[0.0] * len(batch[0].completions[0].tokens))
    batch = [dataclasses.replace(batch[0], completions=[masked, *batch[0].completions[1:]])]
    first, *others = trained(one.learn(training(batch), 2).updates)
    assert first.reward == 0.0
    assert all(row.reward != plain.reward for row, plain in zip(others, batch[0].completions[1:], strict=True))


def test_gvpo_accepts_a_kl_in_reward_too():
    (update,) = learner(kl_in_reward=0.1).learn(training(groups()), 1).updates
    assert update.applied


def not_finite(of: Sequence[Group]) -> list[Group]:
    """Let the last group's rewards overflow."""
    *fine, last = of
    rows = [with_reward(row, 1e38 * (-1) ** i) for i, row in enumerate(last.completions)]
    return [*fine, dataclasses.replace(last, completions=rows)]


@pytest.mark.parametrize("budget", [8192, 16], ids=["one micro-batch", "several"])
def test_an_update_that_is_not_finite_is_skipped_and_leaves_no_gradient(budget: int):
    one, bad, good = learner(tokens_per_microbatch=budget), training(not_finite(groups())), training(groups())
    start = weights(one.model)
    (skipped,) = one.learn(bad, 1).updates
    assert not skipped.applied
    assert not math.isfinite(skipped.grad_norm)
    assert same(weights(one.model), start)
    assert all(parameter.grad is None for parameter in one.model.parameters())
    assert one.non_finite == 1
    (applied,) = one.learn(good, 2).updates
    assert applied.applied
    assert one.non_finite == 0


def test_a_loss_that_is_not_finite_leaves_no_gradient(monkeypatch: pytest.MonkeyPatch):
    """This is as if only a later micro-batch were not finite."""

    def half_pushed(policy: Any, of: Any, *args: Any, **keywords: Any) -> Any:
        output = group_backward(policy, of, *args, **keywords)
        return dataclasses.replace(output, loss=torch.tensor(math.nan))

    monkeypatch.setattr(module, "group_backward", half_pushed)
    one = learner()
    one.learn(training(groups()), 1)
    assert all(parameter.grad is None for parameter in one.model.parameters())


def test_five_in_a_row_end_the_run():
    one, bad, good = learner(), training(not_finite(groups())), training(groups())
    for step, batch in enumerate([bad, bad, bad, bad, good, bad, bad, bad, bad], start=1):
        one.learn(batch, step)
    with pytest.raises(TrainingError, match="5 updates in a row; lower"):
        one.learn(bad, 10)


def test_the_schedule_counts_updates_of_the_whole_run():
    one = learner(
        objective="rloo", schedule="linear", steps=2, groups_per_update=2, learning_rate=0.4, warmup_updates=0
    )
    rates = [update.rate for step in (1, 2) for update in one.learn(training(groups()), step).updates]
    assert rates == pytest.approx([0.4, 0.3, 0.2, 0.1])


def test_autocast_follows_the_compute_dtype():
    with learner(compute_dtype="bfloat16").autocast():
        assert torch.is_autocast_enabled("cpu")
        assert torch.get_autocast_dtype("cpu") == torch.bfloat16
    with learner(compute_dtype="auto").autocast():
        assert not torch.is_autocast_enabled("cpu")


def test_mixed_precision_trains_float32_weights():
    one = learner(compute_dtype="bfloat16", objective="grpo", passes=2)
    start = weights(one.model)
    first, _ = one.learn(training(groups()), 1).updates
    assert float(first.output.metrics["grpo/ratio_mean"]) == 1.0
    assert not same(weights(one.model), start)
    assert {parameter.dtype for parameter in one.model.parameters()} == {torch.float32}
