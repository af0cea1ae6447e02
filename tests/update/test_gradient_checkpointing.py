"""Tests of model.gradient_checkpointing: every layer is computed twice, and the gradient is unchanged."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from gvpo.errors import ModelError
from gvpo.model.model import checkpoint_activations
from gvpo.objectives import gvpo
from gvpo.update.group_backward import group_backward, score
from tests.fakes import tiny_model
from tests.naive import gradients, random_groups, relative_error
from tests.training.toy import lines, model, same, stopped_at, trainer, weights

GROUPS = random_groups([(7, (5, 9, 1)), (1, (4, 2)), (12, (3, 11, 2, 6)), (3, (8, 8))])
SMALL, LARGE = 40, 10**6


@contextmanager
def layers_run(policy: Any) -> Iterator[list[bool]]:
    """Return a list that records, for each run of the first layer, whether it had gradients."""
    seen: list[bool] = []
    hook = policy.model.layers[0].mlp.register_forward_pre_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    yield seen
    hook.remove()


@pytest.mark.parametrize("budget", [SMALL, LARGE], ids=["several", "one micro-batch"])
@pytest.mark.parametrize("sharing", ["auto", "off"])
@pytest.mark.parametrize("kind", ["qwen2", "llama", "qwen3", "mistral", "qwen3_moe"])
def test_the_gradient_is_the_same_and_each_layer_runs_twice(kind: str, sharing: Any, budget: int):
    policy = tiny_model(kind, dtype=torch.float64)
    settings: dict[str, Any] = {"tokens_per_microbatch": budget, "prefix_sharing": sharing}
    plain = group_backward(policy, GROUPS, gvpo, **settings)
    expected = gradients(policy)
    policy.zero_grad()
    with layers_run(policy) as once:
        group_backward(policy, GROUPS, gvpo, **settings)
    policy.zero_grad()
    checkpoint_activations(policy)
    with layers_run(policy) as twice:
        output = group_backward(policy, GROUPS, gvpo, **settings)
    assert relative_error(gradients(policy), expected) < 1e-12
    assert float(output.loss) == float(plain.loss)
    assert len(twice) == len(once) + sum(once)
    with layers_run(policy) as scored:
        score(policy, GROUPS, **settings)
    assert len(scored) == len(once) - sum(once) or budget == LARGE  # nothing is recomputed without a gradient


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
def test_it_is_exact_bit_by_bit_also_in_mixed_precision(half: bool):
    policy = tiny_model("llama")
    score(policy, GROUPS)
    found = []
    for _ in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16) if half else nullcontext():
            group_backward(policy, GROUPS, gvpo, tokens_per_microbatch=SMALL)
        found.append(gradients(policy))
        policy.zero_grad()
        checkpoint_activations(policy)
    assert relative_error(found[1], found[0]) < 1e-6


def test_dropout_stays_off_when_a_layer_runs_again():
    calm, noisy = tiny_model("llama"), tiny_model("llama", attention_dropout=0.5)
    checkpoint_activations(noisy)
    group_backward(calm, GROUPS, gvpo, tokens_per_microbatch=SMALL)
    group_backward(noisy, GROUPS, gvpo, tokens_per_microbatch=SMALL)
    assert relative_error(gradients(noisy), gradients(calm)) < 1e-6


def test_a_run_is_the_same_with_and_without_and_may_change_on_resume(tmp_path: Path):
    policies = [model() for _ in range(3)]
    settings: dict[str, Any] = {"held": None, "eval_problems": 0, "checkpoint_every": 1}
    trainer(tmp_path / "without", policy=policies[0], **settings).train()
    train = trainer(tmp_path / "with", policy=policies[1], gradient_checkpointing=True, **settings)
    with layers_run(policies[1]) as seen:
        train.train()
    assert any(seen)
    assert policies[1].is_gradient_checkpointing
    assert not policies[0].is_gradient_checkpointing
    with stopped_at(2):
        trainer(tmp_path / "changed", policy=model(), **settings).train()
    trainer(tmp_path / "changed", policy=policies[2], gradient_checkpointing=True, **settings).train(resume=True)
    for other in (1, 2):
        assert same(weights(policies[0]), weights(policies[other]))
    assert lines(tmp_path / "without") == lines(tmp_path / "with") == lines(tmp_path / "changed")
    written = json.loads((tmp_path / "with/checkpoints/step-000003/config.json").read_text())
    assert not any("checkpoint" in key for key in written)


def test_the_error_names_an_unsupported_architecture(monkeypatch: pytest.MonkeyPatch):
    policy = tiny_model("llama")
    monkeypatch.setattr(type(policy), "supports_gradient_checkpointing", False)
    with pytest.raises(ModelError, match=r"model\.gradient_checkpointing: LlamaForCausalLM does not support"):
        checkpoint_activations(policy)
