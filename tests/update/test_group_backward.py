"""Tests of the update against one row per forward pass, full logits and plain autograd on the whole batch."""

import functools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from gvpo.objectives import grpo, gspo, gvpo, sft
from gvpo.types import Completion, Group
from gvpo.update.group_backward import UpdateOutput, group_backward, score
from tests.fakes import CONFIGS, RECURRENT, tiny_model
from tests.naive import Naive, double_precision, gradients, naive_update, random_groups, relative_error

GROUPS = random_groups([(7, (5, 9, 1)), (1, (4, 2)), (12, (3, 11, 2, 6)), (3, (8, 8))])
LESS_THAN_A_COMPLETION, A_GROUP, EVERYTHING = 3, 40, 10**6
TEMPERATURE = 0.7


def near_old(kind: str, spread: float) -> list[Group]:
    """Return the groups with old log-probs near the model's own, so that some ratios are clipped and some are not."""
    generator = torch.Generator().manual_seed(1)
    scored = iter(score(tiny_model(kind, dtype=torch.float64), GROUPS, temperature=TEMPERATURE))

    def moved(row: Completion) -> Completion:
        old = next(scored).logprobs
        old = old + spread * torch.randn(old.shape, generator=generator)
        return Completion(row.tokens, row.reward, row.mask, row.ref_logprobs, old)

    return [Group(group.prompt, [moved(row) for row in group.completions]) for group in GROUPS]


def assert_agrees(model: Any, output: UpdateOutput, true: Naive, tolerance: float) -> None:
    assert output.loss.item() == pytest.approx(true.loss.item(), rel=tolerance)
    assert relative_error(gradients(model), true.gradients) < tolerance
    assert output.metrics.keys() == true.metrics.keys()
    for row, logprobs, entropy in zip(output.rows, true.logprobs, true.entropy, strict=True):
        torch.testing.assert_close(row.logprobs, logprobs, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(row.entropy, entropy, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("double", [True, False], ids=["double", "float32 norms"])
@pytest.mark.parametrize("budget", [LESS_THAN_A_COMPLETION, A_GROUP, EVERYTHING])
@pytest.mark.parametrize(
    ("kind", "sharing"),
    [(kind, sharing) for kind in sorted(CONFIGS) for sharing in ("on", "off", "auto")]
    + [(kind, "on") for kind in sorted(RECURRENT)],
)
def test_loss_and_gradient_equal_the_naive_ones(kind: str, sharing: Any, budget: int, double: bool):
    model = tiny_model(kind, dtype=torch.float64)
    with double_precision(model) if double else nullcontext():
        true = naive_update(model, GROUPS, gvpo, TEMPERATURE)
        output = group_backward(
            model, GROUPS, gvpo, tokens_per_microbatch=budget, prefix_sharing=sharing, temperature=TEMPERATURE
        )
    # a recurrence that is split elsewhere rounds differently, in transformers' float32
    assert_agrees(model, output, true, 1e-10 if double else 1e-4 if kind in RECURRENT else 1e-6)


@pytest.mark.parametrize("budget", [A_GROUP, EVERYTHING])
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen3_moe"])
@pytest.mark.parametrize(
    ("objective", "spread"),
    [
        (functools.partial(gvpo, beta=0.5, variance_weight=0.3, covariance_weight=1.7), 0.0),
        (grpo, 0.2),
        (functools.partial(grpo, kl_coef=0.1, reduction="token_mean", scale_rewards=False), 0.2),
        (gspo, 1e-3),
        (sft, 0.0),
    ],
    ids=["gvpo weights", "grpo", "grpo kl", "gspo", "sft"],
)
def test_every_objective_is_exact(objective: Callable[..., Any], spread: float, kind: str, budget: int):
    model = tiny_model(kind, dtype=torch.float64)
    groups = near_old(kind, spread)
    with double_precision(model):
        true = naive_update(model, groups, objective, TEMPERATURE)
        output = group_backward(model, groups, objective, tokens_per_microbatch=budget, temperature=TEMPERATURE)
    assert_agrees(model, output, true, 1e-10)
    for name, value in true.metrics.items():
        torch.testing.assert_close(output.metrics[name], value, rtol=1e-8, atol=1e-8)


def test_clipping_really_happens():
    output = group_backward(
        tiny_model("llama", dtype=torch.float64), near_old("llama", 0.2), grpo, temperature=TEMPERATURE
    )
    clipped = float(sum((row.coefficients == 0).sum() for row in output.rows)) / sum(
        len(row.coefficients) for row in output.rows
    )
    assert 0.2 < clipped < 0.8  # masked tokens are a fifth


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("budget", [A_GROUP, EVERYTHING])
def test_tied_and_untied_embeddings(tied: bool, budget: int):
    model = tiny_model("qwen2", dtype=torch.float64, tie_word_embeddings=tied)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    with double_precision(model):
        true = naive_update(model, GROUPS, gvpo)
        output = group_backward(model, GROUPS, gvpo, tokens_per_microbatch=budget)
    assert_agrees(model, output, true, 1e-10)


def test_the_coefficients_are_the_gradient_by_the_log_probs_and_zero_on_masked_tokens():
    model = tiny_model("llama", dtype=torch.float64)
    output = group_backward(model, GROUPS, gvpo)
    rows = [row for group in GROUPS for row in group.completions]
    step, wanted = 1e-6, rows[5]
    # the loss is a function of the reference too, and by it d loss / d ref = -c on scored tokens
    for token in range(len(wanted.tokens)):
        moved = list(wanted.ref_logprobs or ())
        moved[token] += step
        changed = Completion(wanted.tokens, wanted.reward, wanted.mask, moved)
        groups = [Group(g.prompt, [changed if row is wanted else row for row in g.completions]) for g in GROUPS]
        slope = (group_backward(model, groups, gvpo).loss - output.loss) / step
        assert output.rows[5].coefficients[token].item() == pytest.approx(-slope.item(), abs=1e-6)
        assert (output.rows[5].coefficients[token] == 0) == (wanted.mask is not None and wanted.mask[token] == 0)


def test_gradients_are_added_to_existing_ones():
    model = tiny_model("llama", dtype=torch.float64)
    group_backward(model, GROUPS, gvpo)
    once = gradients(model)
    group_backward(model, GROUPS, gvpo, tokens_per_microbatch=A_GROUP)
    twice = gradients(model)
    assert relative_error(twice, {name: 2 * value for name, value in once.items()}) < 1e-6


def test_empty_completions_and_groups_count_only_as_rows():
    model = tiny_model("llama", dtype=torch.float64)
    rows = [Completion([], 1.0, ref_logprobs=[]), Completion([5, 6], 0.0, ref_logprobs=[-1.0, -2.0])]
    groups = [Group([4], rows), Group([4], [])]
    with double_precision(model):
        output = group_backward(model, groups, gvpo)
        found = gradients(model)
        true = naive_update(model, groups, gvpo)
    assert relative_error(found, true.gradients) < 1e-10
    assert output.loss.item() == pytest.approx(true.loss.item(), rel=1e-10)
    assert [len(row.coefficients) for row in output.rows] == [0, 2]


def test_a_batch_without_any_token_has_a_loss_and_no_gradient():
    model = tiny_model("llama")
    rows = [Completion([], 1.0, ref_logprobs=[]), Completion([], 0.0, ref_logprobs=[])]
    output = group_backward(model, [Group([4], rows)], gvpo)
    assert output.loss.item() == pytest.approx(0.25)  # 1/2 ((1/2)^2 + (1/2)^2)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_score_gives_log_probs_entropies_and_no_gradient():
    model = tiny_model("qwen3_moe", dtype=torch.float64)
    with double_precision(model):
        true = naive_update(model, GROUPS, sft, TEMPERATURE)
        for budget in (LESS_THAN_A_COMPLETION, A_GROUP, EVERYTHING):
            found = score(model, GROUPS, tokens_per_microbatch=budget, temperature=TEMPERATURE)
            for row, logprobs, entropy in zip(found, true.logprobs, true.entropy, strict=True):
                torch.testing.assert_close(row.logprobs, logprobs, rtol=1e-12, atol=1e-12)
                torch.testing.assert_close(row.entropy, entropy, rtol=1e-12, atol=1e-12)
                assert not row.logprobs.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def test_stretched_rotary_embeddings_do_not_depend_on_the_budget():
    """Their factor comes from the longest row of a forward. Beyond the original length each row is computed alone."""
    stretched = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
    model = tiny_model("llama", dtype=torch.float64, max_position_embeddings=8, rope_parameters=stretched)
    rows = [Completion([5, 6], 1.0), Completion(list(range(10, 30)), 0.0)]
    alone = [score(model, [Group([4, 7], [row])])[0].logprobs for row in rows]
    for budget in (LESS_THAN_A_COMPLETION, EVERYTHING):
        found = group_backward(model, [Group([4, 7], rows)], sft, tokens_per_microbatch=budget)
        for row, logprobs in zip(found.rows, alone, strict=True):
            torch.testing.assert_close(row.logprobs, logprobs, rtol=1e-6, atol=1e-6)
