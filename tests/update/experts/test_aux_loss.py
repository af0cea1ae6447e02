"""Tests of the router loss of the whole batch under any split, and of routing in the learner and in runs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

from gvpo.errors import ModelError
from gvpo.objectives import ObjectiveOutput, gvpo, sft
from gvpo.update.experts.routers import routers_of
from gvpo.update.group_backward import group_backward, score
from tests.fakes import tiny_model
from tests.naive import double_precision, gradients, random_groups, relative_error
from tests.training import toy
from tests.training.test_learner import learner, training

GROUPS = random_groups([(7, (5, 9, 1)), (1, (4, 2)), (12, (3, 11, 2, 6)), (3, (8, 8))])
SMALL, MIDDLE, LARGE = 3, 40, 10**6
SPARSE = {"architecture": "qwen3_moe", "moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}


def nothing(logprobs: Tensor, *, mask: Tensor) -> ObjectiveOutput:
    return ObjectiveOutput(0.0 * (logprobs * mask).sum(), {})


def naive_loss(model: Any) -> Tensor:
    """Compute transformers' own loss per layer on the positions that predict a scored token, of all rows together."""
    layers: list[list[Tensor]] = [[] for _ in routers_of(model)]
    hooks = [
        router.register_forward_hook(lambda _m, _i, out, layer=layer: layers[layer].append(out[0]))
        for layer, router in enumerate(routers_of(model))
    ]
    predicting = []
    for group in GROUPS:
        for row in group.completions:
            model(input_ids=torch.tensor([[*group.prompt, *row.tokens]]))
            mask = torch.zeros(len(group.prompt) + len(row.tokens), dtype=torch.bool)
            mask[len(group.prompt) - 1 : -1] = torch.tensor(row.mask) != 0
            predicting.append(mask)
    for hook in hooks:
        hook.remove()
    places = torch.cat(predicting)
    losses = [load_balancing_loss_func((torch.cat(each)[places],), 4, 2) for each in layers]
    return torch.stack([torch.as_tensor(loss) for loss in losses]).mean()


@pytest.mark.parametrize("budget", [SMALL, MIDDLE, LARGE])
@pytest.mark.parametrize(("kind", "sharing"), [("qwen3_moe", "on"), ("qwen3_moe", "off"), ("qwen3_next_moe", "on")])
def test_loss_and_gradient_equal_those_of_the_whole_batch(kind: str, sharing: Any, budget: int):
    model = tiny_model(kind, dtype=torch.float64)
    with double_precision(model):
        loss = 0.3 * naive_loss(model)
        loss.backward()
        expected = gradients(model)
        model.zero_grad()
        output = group_backward(
            model, GROUPS, nothing, router_aux_coef=0.3, tokens_per_microbatch=budget, prefix_sharing=sharing
        )
    assert relative_error(gradients(model), expected) < 1e-6  # transformers sums its counts in float32
    assert output.loss.item() == pytest.approx(loss.item(), rel=1e-6)
    assert output.metrics["moe/balance_loss"].item() == pytest.approx(loss.item() / 0.3, rel=1e-6)


@pytest.mark.parametrize("objective", [gvpo, sft], ids=["gvpo", "sft"])
def test_it_is_added_to_the_objective(objective: Any):
    model = tiny_model("qwen3_moe", dtype=torch.float64)
    parts, losses = [], []
    for function, coefficient in ((objective, 0.0), (nothing, 0.3), (objective, 0.3)):
        model.zero_grad()
        output = group_backward(model, GROUPS, function, router_aux_coef=coefficient, tokens_per_microbatch=MIDDLE)
        parts.append(gradients(model))
        losses.append(output.loss.item())
    both = {name: parts[0][name] + parts[1][name] for name in parts[0]}
    assert relative_error(parts[2], both) < 1e-6
    assert losses[2] == pytest.approx(losses[0] + losses[1], rel=1e-6)


def test_the_fullest_expert_is_measured_relative_to_a_uniform_load():
    model = tiny_model("qwen3_moe")
    with torch.no_grad():
        for router in routers_of(model):
            router.weight.zero_()  # equal logits: top-k selects the same two of four experts for every token
    output = group_backward(model, GROUPS, gvpo, routing="watch")
    assert output.metrics["moe/load_max"].item() == pytest.approx(2.0)
    assert output.metrics["moe/balance_loss"].item() == pytest.approx(2.0)


def test_training_only_on_it_balances_the_load():
    model = tiny_model("qwen3_moe")
    optimizer = torch.optim.Adam([router.weight for router in routers_of(model)], lr=0.05)
    seen = []
    for _ in range(30):
        model.zero_grad()
        seen.append(float(group_backward(model, GROUPS, nothing, router_aux_coef=1.0).metrics["moe/load_max"]))
        optimizer.step()
    assert seen[-1] < seen[0] - 0.1


# In the learner


def sparse(seed: int = 0) -> Any:
    return toy.model(seed, **SPARSE)


OLDER = {"objective": "grpo", "rollout_old_logprobs": "sampler"}
"""Settings with which rows of an older policy are compared with it, while the experts are the current policy's."""


@pytest.mark.parametrize("settings", [{"objective": "grpo"}, {"objective": "gspo"}, {"objective": "gvpo"}, OLDER])
def test_the_experts_of_the_steps_start_are_used_in_every_update(settings: dict[str, Any]):
    one = learner(sparse(), **settings, routing="replay", groups_per_update=1, passes=2, learning_rate=0.03)
    batch = toy.groups(policy=sparse(3) if settings is OLDER else one.model)
    start = score(one.model, batch, routing="watch")
    learned = one.learn(training(batch), 1)
    rows = [row for update in learned.updates[:4] for entry in update.groups for row in entry.group.completions]
    for row, expected in zip(rows, start, strict=True):
        assert row.experts is not None
        assert expected.experts is not None
        assert torch.equal(row.experts.own, expected.experts.own)
    changed = [float(update.output.metrics["moe/changed"]) for update in learned.updates]
    assert changed[0] == 0.0
    assert max(changed) > 0.02
    for first, again in zip(learned.updates[:4], learned.updates[4:], strict=True):
        for before, after in zip(first.groups, again.groups, strict=True):
            for row, same in zip(before.group.completions, after.group.completions, strict=True):
                assert row.experts is not None
                assert torch.equal(row.experts.own, same.experts.own)


def test_at_learning_rate_zero_all_ratios_stay_one():
    one = learner(sparse(), objective="gspo", routing="replay", groups_per_update=1, passes=2, learning_rate=1e-30)
    for update in one.learn(training(toy.groups(policy=one.model)), 1).updates:
        assert update.output.metrics["gspo/ratio_mean"].item() == 1.0
        assert update.output.metrics["moe/changed"].item() == 0.0


def test_watching_changes_nothing_and_replaying_does():
    ends = {}
    for routing in ("free", "watch", "replay"):
        policy = sparse()
        one = learner(policy, objective="grpo", routing=routing, groups_per_update=1, passes=2, learning_rate=0.03)
        learned = one.learn(training(toy.groups(policy=policy)), 1)
        ends[routing] = toy.weights(policy)
        assert ("moe/changed" in learned.updates[-1].output.metrics) == (routing != "free")
    assert toy.same(ends["free"], ends["watch"])
    assert not toy.same(ends["free"], ends["replay"])


def test_a_dense_model_is_rejected_immediately():
    for settings in ({"routing": "replay"}, {"router_aux_coef": 0.1}):
        with pytest.raises(ModelError, match="Qwen2ForCausalLM has no supported router"):
            toy.trainer(None, **settings)


def test_a_run_with_replay_and_router_loss_resumes_exactly(tmp_path: Path):
    settings: dict[str, Any] = {
        "objective": "grpo", "reference": "previous", "routing": "replay", "router_aux_coef": 0.01,
        "groups_per_update": 2, "steps": 4, "checkpoint_every": 2, "eval_problems": 0, "held": [],
    }  # fmt: skip

    def run(path: Path, *, resume: bool = False) -> dict[str, Tensor]:
        policy = sparse()
        toy.trainer(path, policy=policy, **settings).train(resume=resume)
        return toy.weights(policy)

    with toy.stopped_at(4):
        run(tmp_path / "stopped")
    assert toy.same(run(tmp_path / "stopped", resume=True), run(tmp_path / "unbroken"))
    assert toy.lines(tmp_path / "stopped") == toy.lines(tmp_path / "unbroken")
    assert {"moe/changed", "moe/changed/last", "moe/load_max", "moe/balance_loss"} <= toy.lines(tmp_path / "stopped")[
        -1
    ].keys()
