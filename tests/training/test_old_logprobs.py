"""Old log-probs: recorded by the sampler or computed at the start of the step, against a script by hand."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from gvpo import runfiles
from gvpo.config import Given, TrainConfig, resolve
from gvpo.errors import ConfigError, DataError
from gvpo.rollout.usable import usable
from gvpo.training.learner import Learner
from gvpo.training.objective import build_objective
from gvpo.types import Completion, Group
from gvpo.update.group_backward import score
from tests.naive import naive_scores
from tests.training.engines import Half, engines_of
from tests.training.toy import config, groups, lines, model, trainer

MODEL, GROUPS = Given(model=True), Given(model=True, train="groups")
TRAINED = {"passes": 2, "groups_per_update": 2, "learning_rate": 3e-3, "max_grad_norm": 1e9}


def grpo_by_hand(policy: Any, batch: Sequence[Group]) -> torch.Tensor:
    """Return GRPO's loss with ratios to the rows' recorded log-probs."""
    losses = []
    for group in batch:
        rewards = torch.tensor([row.reward for row in group.completions], dtype=torch.float64)
        advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
        for row, advantage in zip(group.completions, advantages.tolist(), strict=True):
            logprobs, _ = naive_scores(policy, group, row, 1.0)
            ratio = (logprobs - torch.tensor(row.sampler_logprobs)).exp()
            losses.append(-torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean())
    return torch.stack(losses).mean()


def weighted_by_hand(
    policy: Any, batch: Sequence[Group], old: dict[int, torch.Tensor], cap: float = 1.02
) -> torch.Tensor:
    """Return the loss of `grpo_by_hand` with ratios to `old`, and the truncated weight min(old / sampler, cap)."""
    losses = []
    for group in batch:
        rewards = torch.tensor([row.reward for row in group.completions], dtype=torch.float64)
        advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
        for row, advantage in zip(group.completions, advantages.tolist(), strict=True):
            logprobs, _ = naive_scores(policy, group, row, 1.0)
            before = old[id(row)]
            weight = (before - torch.tensor(row.sampler_logprobs)).exp().clamp(max=cap)
            ratio = (logprobs - before).exp()
            losses.append(-(weight * torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)).mean())
    return torch.stack(losses).mean()


def learned_by_hand(policy: Any, batches: Sequence[Sequence[Group]], loss_of: Any = grpo_by_hand) -> list[float]:
    """Take the steps of two passes and return the losses."""
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3, weight_decay=0.0)
    losses = []
    for batch in [*batches, *batches]:
        optimizer.zero_grad()
        loss = loss_of(policy, batch)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def learner(policy: Any, **settings: Any) -> Learner:
    config_ = config(objective="grpo", **TRAINED, **settings)
    return Learner(policy, build_objective(config_), config_)


def test_recorded_log_probs_are_the_old_ones_of_rows_of_another_policy():
    """The rows are those of a policy with other weights, so no ratio is 1, and the clip acts from the first update."""
    rows = groups(policy=model(seed=7))
    one, naive = learner(model(), rollout_old_logprobs="sampler"), model()
    losses = learned_by_hand(naive, [rows[:2], rows[2:]])
    learned = one.learn(usable(rows, rewarded=True, at_least=2), 1)
    assert [float(update.output.loss) for update in learned.updates] == pytest.approx(losses, abs=1e-6)
    assert all(float(update.output.metrics["grpo/clip_fraction"]) > 0 for update in learned.updates)
    assert all(float(update.output.metrics["grpo/ratio_mean"]) != 1 for update in learned.updates)
    for name, parameter in one.model.named_parameters():
        assert torch.allclose(parameter, naive.get_parameter(name), rtol=0, atol=2e-5), name


def test_the_trainers_log_probs_carry_truncated_weights_for_rows_of_another_policy():
    rows = groups(policy=model(seed=7))
    one, naive = learner(model(), rollout_old_logprobs="trainer", is_cap=1.02), model()
    with torch.no_grad():
        old = {id(row): naive_scores(naive, group, row, 1.0)[0] for group in rows for row in group.completions}
    losses = learned_by_hand(naive, [rows[:2], rows[2:]], functools.partial(weighted_by_hand, old=old))
    learned = one.learn(usable(rows, rewarded=True, at_least=2), 1)
    assert [float(update.output.loss) for update in learned.updates] == pytest.approx(losses, abs=1e-6)
    first = learned.updates[0].output.metrics
    assert float(first["grpo/ratio_mean"]) == 1
    assert 0 < float(first["grpo/is_capped_fraction"]) < 1


def test_on_own_rows_recorded_log_probs_give_the_same_update_as_computed_ones():
    rows = usable(groups(), rewarded=True, at_least=2)
    losses = [
        [float(update.output.loss) for update in learner(model(), rollout_old_logprobs=where).learn(rows, 1).updates]
        for where in ("sampler", "trainer")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_a_kl_penalty_in_the_reward_is_relative_to_the_recorded_log_probs():
    rows, policy = groups(policy=model(seed=7)), model()
    reference = score(policy, rows)
    one = learner(policy, rollout_old_logprobs="sampler", kl_in_reward=0.5)
    learned = one.learn(usable(rows, rewarded=True, at_least=2), 1)
    trained = [row for update in learned.updates[:2] for entry in update.groups for row in entry.group.completions]
    sampled = [row for group in rows for row in group.completions]
    for row, own, ref in zip(trained, sampled, reference, strict=True):
        gap = float((torch.tensor(own.sampler_logprobs) - ref.logprobs).double().sum())
        assert row.reward == pytest.approx(own.reward - 0.5 * gap, abs=1e-4)
        assert row.old_logprobs is own.sampler_logprobs


@pytest.mark.parametrize("where", ["sampler", "trainer"])
def test_a_run_that_truncates_reports_no_log_ratios_to_recorded_log_probs(tmp_path: Path, where: Any):
    """Recorded log-probs are larger than the trainer's from the start, which says nothing about the policy's way."""
    settings: dict[str, Any] = {"objective": "grpo", "top_k": 3, "groups_per_update": 2, "steps": 1, "held": []}
    trainer(tmp_path, **settings, rollout_old_logprobs=where, eval_problems=0).train()
    (line,) = lines(tmp_path)
    assert "sampler/mismatch" not in line
    assert ("offpolicy/logratio_mean/last" in line) == (where == "trainer")
    assert 0 < line["offpolicy/ess/last"] <= 1
    ratio = line["grpo/ratio_mean/last"]
    assert ratio == pytest.approx(1, abs=0.05) if where == "trainer" else ratio < 0.9
    for row in runfiles.read_rollouts(runfiles.rollout_path(tmp_path, 1)):
        sampled = torch.tensor(row.sampler_logprobs)
        assert bool((sampled >= torch.tensor(row.logprobs) - 0.05).all())


@pytest.mark.parametrize("where", ["auto", "trainer"])
def test_stale_rows_are_compared_with_their_sampler_or_weighted(tmp_path: Path, where: Any):
    settings: dict[str, Any] = {"objective": "grpo", "rollout_staleness": 2, "steps": 3, "learning_rate": 1e-2}
    trainer(tmp_path, **settings, rollout_old_logprobs=where, held=[], eval_problems=0).train()
    *_, line = lines(tmp_path)
    ratio = line["grpo/ratio_mean"]
    assert (ratio == 1, "grpo/is_weight_mean" in line) == ((False, False) if where == "auto" else (True, True))
    for row in runfiles.read_rollouts(runfiles.rollout_path(tmp_path, 3)):
        assert row.version == 0
        if where == "auto":
            assert row.old_logprobs == pytest.approx(row.sampler_logprobs, abs=1e-6)


def test_a_sampler_that_records_no_log_probs_is_an_error():
    bare = [
        dataclasses.replace(
            group, completions=[dataclasses.replace(row, sampler_logprobs=None) for row in group.completions]
        )
        for group in groups()
    ]
    with pytest.raises(DataError, match="without recorded log-probs"):
        learner(model(), rollout_old_logprobs="sampler").learn(usable(bare, rewarded=True, at_least=2), 1)


@pytest.mark.parametrize(
    ("settings", "given", "expected"),
    [
        ({"objective": "grpo"}, MODEL, "trainer"),
        ({"objective": "grpo", "passes": 4}, MODEL, "trainer"),
        ({"objective": "grpo", "rollout_old_logprobs": "sampler"}, MODEL, "sampler"),
        ({"objective": "grpo", "sample_groups": 8}, MODEL, "sampler"),
        ({"objective": "gspo"}, GROUPS, "sampler"),
        ({"objective": "gvpo"}, GROUPS, "trainer"),  # it reads none
        ({"objective": "grpo", "is_cap": 3.0}, GROUPS, "trainer"),  # weights relative to the sampler's would all be 1
    ],
)
def test_auto_is_the_sampler_where_rows_may_be_old(settings: dict[str, Any], given: Given, expected: str):
    assert resolve(TrainConfig(**settings), given).settings.rollout_old_logprobs == expected


@pytest.mark.parametrize(
    ("settings", "given", "expected"),
    [
        ({"rollout_old_logprobs": "trainer"}, GROUPS, 2.0),
        ({"rollout_old_logprobs": "trainer", "is_cap": 3.0}, GROUPS, 3.0),
        ({"rollout_old_logprobs": "trainer"}, MODEL, None),
        ({}, GROUPS, None),
    ],
)
def test_the_trainers_log_probs_of_old_rows_need_a_cap(settings: dict[str, Any], given: Given, expected: float | None):
    assert resolve(TrainConfig(objective="rloo", **settings), given).settings.is_cap == expected


def test_a_cap_of_weights_that_are_all_one_has_no_effect():
    (notice,) = resolve(TrainConfig(objective="grpo", is_cap=2.0, rollout_old_logprobs="sampler"), GROUPS).notices
    assert notice.startswith("objective.is_cap has no effect: old log-probs are the sampler's")


def test_one_line_introduces_recorded_log_probs():
    line = "old_logprobs sampler (logged or frozen groups; `gvpo docs objectives`)"
    assert resolve(TrainConfig(objective="gspo"), GROUPS).introduction == line


def test_the_policy_of_the_step_is_refused_for_old_rows_without_truncated_weights():
    with pytest.raises(ConfigError, match=r"truncated importance weights .* gspo does not have; set it to 'sampler'"):
        resolve(TrainConfig(objective="gspo", rollout_old_logprobs="trainer"), GROUPS)


def test_it_has_no_effect_on_objectives_without_ratios():
    (notice,) = resolve(TrainConfig(rollout_old_logprobs="sampler"), MODEL).notices
    assert notice == "rollout.old_logprobs has no effect: gvpo reads no old log-probs"


SERVER = {"sampling_engine": "server", "sampling_server_urls": ["http://localhost:1"]}
HALF = {"sampling_dtype": "bfloat16"}


@pytest.mark.parametrize(
    ("objective", "settings", "expected"),
    [
        ("grpo", {"sampling_engine": "vllm"}, ("trainer", 2.0)),
        ("cispo", SERVER, ("trainer", 2.0)),
        ("rloo", HALF, ("trainer", 2.0)),
        ("grpo", {**HALF, "is_cap": 1.5}, ("trainer", 1.5)),
        ("grpo", {**HALF, "rollout_old_logprobs": "sampler"}, ("sampler", None)),
        ("grpo", {**HALF, "rollout_staleness": 1}, ("sampler", None)),
        ("grpo", {**HALF, "rollout_staleness": 1, "rollout_old_logprobs": "trainer"}, ("trainer", 2.0)),
        ("grpo", {"rollout_asynchronous": True}, ("sampler", None)),
        ("grpo", {"rollout_asynchronous": True, "rollout_max_staleness": 0}, ("trainer", None)),
        ("grpo", {"rollout_asynchronous": True, "rollout_max_staleness": 0, **SERVER}, ("trainer", 2.0)),
        ("gspo", {"sampling_engine": "vllm"}, ("trainer", None)),
        ("gvpo", {"sampling_engine": "vllm"}, ("trainer", None)),  # it reads none
    ],
)
def test_rows_of_another_engine_have_truncated_weights(objective: str, settings: dict[str, Any], expected: Any):
    found = resolve(TrainConfig(objective=objective, **settings), MODEL).settings
    assert (found.rollout_old_logprobs, found.is_cap) == expected


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"objective": "grpo", **HALF}, "old_logprobs trainer, is_cap 2.0 (one update per rollout, sampled by engine "
         "transformers in bfloat16; `gvpo docs objectives`)"),
        ({"objective": "grpo", **SERVER, "passes": 2}, "old_logprobs trainer, is_cap 2.0 (several updates per rollout, "
         "sampled by engine server; `gvpo docs objectives`)"),
        ({"objective": "gspo", **HALF}, "old_logprobs trainer (one update per rollout, sampled by engine transformers "
         "in bfloat16; `gvpo docs objectives`)"),
        ({"objective": "gvpo", **HALF}, "reference initial, beta 0.1 (one update per rollout; `gvpo docs objectives`)"),
        ({"objective": "grpo"}, None),
    ],
)  # fmt: skip
def test_one_line_introduces_the_correction_for_an_engine(settings: dict[str, Any], line: str | None):
    assert resolve(TrainConfig(**settings), MODEL).introduction == line


@pytest.mark.parametrize(
    ("objective", "settings", "warns"),
    [
        ("gspo", {**HALF, "rollout_old_logprobs": "sampler"}, True),
        ("gspo_token", {**SERVER, "rollout_asynchronous": True}, True),
        ("gspo", {**SERVER, "rollout_asynchronous": True, "clip_low": 0.03, "clip_high": 0.03}, False),
        ("gspo", {"rollout_asynchronous": True}, False),
        ("gspo", HALF, False),
        ("grpo", {**HALF, "rollout_old_logprobs": "sampler"}, False),
    ],
)
def test_a_clip_range_below_an_engines_rounding_is_doubtful(objective: str, settings: dict[str, Any], warns: bool):
    notices = resolve(TrainConfig(objective=objective, **settings), MODEL).notices
    assert any("rounding of another engine" in notice for notice in notices) is warns


@pytest.mark.parametrize("budget", [8192, 24])
def test_a_run_with_another_engine_weighs_its_rows(tmp_path: Path, budget: int):
    """The weights depend on the log-probs, so an update must not take its coefficients for known before its pass."""
    policy, naive = model(initializer_range=0.3), model(initializer_range=0.3)
    settings: dict[str, Any] = {"objective": "grpo", "learning_rate": 3e-3, "max_grad_norm": 1e9, "passes": 2}
    with engines_of(Half):
        trainer(
            tmp_path, policy=policy, held=[], eval_problems=0, steps=1, is_cap=1.001, tokens_per_microbatch=budget,
            sampling_engine="vllm", sampling_dtype="bfloat16", **settings,
        ).train()  # fmt: skip
    batch = recorded_groups(runfiles.read_rollouts(runfiles.rollout_path(tmp_path, 1)))
    with torch.no_grad():
        old = {id(row): naive_scores(naive, group, row, 1.0)[0] for group in batch for row in group.completions}
    losses = learned_by_hand(naive, [batch], functools.partial(weighted_by_hand, old=old, cap=1.001))
    (line,) = lines(tmp_path)
    assert line["train/loss/last"] == pytest.approx(losses[1], abs=1e-6)
    assert 0 < line["grpo/is_capped_fraction"] < 1
    for name, parameter in policy.named_parameters():
        if name.endswith("k_proj.bias"):
            continue  # attention does not depend on it, so Adam follows the rounding of its gradient
        assert torch.allclose(parameter, naive.get_parameter(name), rtol=0, atol=2e-5), name


def recorded_groups(rows: Sequence[runfiles.RolloutRow]) -> list[Group]:
    """Return the groups of a rollout file with what the sampler reported and the rewards."""
    found: dict[str, Group] = {}
    for row in rows:
        one = Completion(row.tokens, row.reward, sampler_logprobs=row.sampler_logprobs)
        known = found.get(row.group, Group(row.prompt_tokens, [], id=row.group))
        found[row.group] = dataclasses.replace(known, completions=[*known.completions, one])
    return list(found.values())
