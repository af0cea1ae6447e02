"""Tests of the update's forward passes, their bitwise agreement, and the state that it leaves unchanged."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gvpo.errors import ConfigError, DataError, MissingInput, MissingLogprobs, ObjectiveError
from gvpo.objectives import ObjectiveOutput, grpo, gspo, gvpo, rloo, sft
from gvpo.types import Completion, Group
from gvpo.update import head as head
from gvpo.update.group_backward import TokenLogprobs, group_backward, score
from tests.fakes import VOCABULARY, tiny_model
from tests.naive import LargestTensor, double_precision, gradients, random_groups, relative_error

GROUPS = random_groups([(7, (5, 9, 1)), (1, (4, 2)), (12, (3, 11, 2, 6)), (3, (8, 8))])
SMALL, LARGE = 30, 10**6


def with_logprobs(groups: Sequence[Group], scored: Sequence[TokenLogprobs] | None, *names: str) -> list[Group]:
    """Return the groups with these log-probs set from scores, in order, or with none."""
    remaining = iter(scored or ())

    def changed(row: Completion) -> Completion:
        values = None if scored is None else next(remaining).logprobs
        return dataclasses.replace(row, **dict.fromkeys(names, values))

    return [Group(group.prompt, [changed(row) for row in group.completions]) for group in groups]


BARE = with_logprobs(GROUPS, None, "ref_logprobs", "old_logprobs")


@contextmanager
def counted(model: nn.Module) -> Iterator[list[bool]]:
    """Return a list with one entry per forward pass: whether it had gradients."""
    seen: list[bool] = []
    hook = model.register_forward_pre_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    yield seen
    hook.remove()


def microbatches(model: nn.Module, budget: int) -> int:
    score(model, GROUPS, tokens_per_microbatch=budget)  # the first use also checks the fast paths
    with counted(model) as forwards:
        score(model, GROUPS, tokens_per_microbatch=budget)
    return len(forwards)


@pytest.mark.parametrize(
    ("objective", "groups", "on_policy"),
    [(gvpo, BARE, True), (grpo, BARE, True), (rloo, BARE, True), (gspo, BARE, True), (sft, BARE, False)],
    ids=["gvpo", "grpo", "rloo", "gspo", "sft"],
)
def test_if_log_probs_cannot_matter_there_is_no_score_pass(
    objective: Callable[..., Any], groups: list[Group], on_policy: bool
):
    model = tiny_model("llama")
    count = microbatches(model, SMALL)
    with counted(model) as forwards:
        group_backward(model, groups, objective, tokens_per_microbatch=SMALL, on_policy=on_policy)
    assert count > 2
    assert forwards == [True] * count


@pytest.mark.parametrize("objective", [gvpo, grpo, gspo])
def test_otherwise_every_microbatch_is_scored_and_pushed(objective: Callable[..., Any]):
    model = tiny_model("llama")
    count = microbatches(model, SMALL)
    with counted(model) as forwards:
        group_backward(model, GROUPS, objective, tokens_per_microbatch=SMALL)
    assert forwards == [False] * count + [True] * count


def test_one_microbatch_needs_one_forward():
    model = tiny_model("llama")
    assert microbatches(model, LARGE) == 1
    with counted(model) as forwards:
        group_backward(model, GROUPS, gvpo)
    assert forwards == [True]


def test_a_variance_weight_makes_the_on_policy_log_probs_matter():
    model = tiny_model("llama")
    count = microbatches(model, SMALL)
    objective = functools.partial(gvpo, variance_weight=0.5)
    with counted(model) as forwards:
        group_backward(model, BARE, objective, tokens_per_microbatch=SMALL, on_policy=True)
    assert forwards == [False] * count + [True] * count


@pytest.mark.parametrize("budget", [SMALL, LARGE])
@pytest.mark.parametrize("objective", [gvpo, grpo, gspo])
def test_on_policy_equals_the_models_own_log_probs(objective: Callable[..., Any], budget: int):
    model = tiny_model("llama", dtype=torch.float64)
    own = with_logprobs(GROUPS, score(model, GROUPS), "ref_logprobs", "old_logprobs")
    given = group_backward(model, own, objective)
    expected = gradients(model)
    model.zero_grad()
    tied = group_backward(model, BARE, objective, tokens_per_microbatch=budget, on_policy=True)
    assert tied.loss.item() == pytest.approx(given.loss.item(), rel=1e-6)
    assert relative_error(gradients(model), expected) < 1e-6
    for one, other in zip(tied.rows, given.rows, strict=True):
        torch.testing.assert_close(one.coefficients, other.coefficients, rtol=1e-6, atol=1e-9)


PRECISIONS = {
    "float32": (torch.float32, nullcontext),
    "bfloat16 weights": (torch.bfloat16, nullcontext),
    "bfloat16 autocast": (torch.float32, functools.partial(torch.autocast, "cpu", dtype=torch.bfloat16)),
}


@pytest.mark.parametrize("precision", sorted(PRECISIONS))
@pytest.mark.parametrize("budget", [3, SMALL, LARGE])
@pytest.mark.parametrize(
    ("kind", "sharing"), [("qwen2", "auto"), ("mistral", "auto"), ("qwen3_moe", "auto"), ("qwen3_next", "on")]
)
def test_scores_and_update_agree_bit_by_bit_at_unchanged_weights(kind: str, sharing: Any, budget: int, precision: str):
    dtype, autocast = PRECISIONS[precision]
    model = tiny_model(kind, dtype=dtype)
    settings: dict[str, Any] = {"tokens_per_microbatch": budget, "temperature": 0.9, "prefix_sharing": sharing}
    with autocast():
        scored = score(model, GROUPS, **settings)
        groups = with_logprobs(GROUPS, scored, "ref_logprobs", "old_logprobs")
        output = group_backward(model, groups, gspo, **settings)
        known = group_backward(model, GROUPS, sft, **settings)
    for before, unknown_c, known_c in zip(scored, output.rows, known.rows, strict=True):
        assert before.logprobs.dtype == torch.float32
        assert torch.equal(before.logprobs, unknown_c.logprobs)
        assert torch.equal(before.logprobs, known_c.logprobs)
        assert torch.equal(before.entropy, unknown_c.entropy)
    assert output.metrics["gspo/ratio_mean"].item() == 1.0
    assert output.metrics["gspo/clip_fraction"].item() == 0.0


@pytest.mark.parametrize("budget", [SMALL, LARGE])
@pytest.mark.parametrize("objective", [gvpo, sft], ids=["score first", "push first"])
def test_autocast_casts_are_neither_reused_without_gradient_nor_after_a_step(
    objective: Callable[..., Any], budget: int
):
    """Within one autocast context torch caches casts of weights. A no-grad pass or a step would make them wrong."""
    model = tiny_model("llama")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        score(model, GROUPS)
        stale = model(input_ids=torch.tensor([[3, 4]])).logits.detach()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.1)
        group_backward(model, GROUPS, objective, tokens_per_microbatch=budget)
        fresh = model(input_ids=torch.tensor([[3, 4]])).logits.detach()
    inside = gradients(model)
    assert not torch.equal(stale, fresh)
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
        group_backward(model, GROUPS, objective, tokens_per_microbatch=budget)
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert relative_error(inside, gradients(model)) == 0.0


def test_half_precision_gradients_are_close_to_the_float32_ones():
    model = tiny_model("llama")
    group_backward(model, GROUPS, gvpo, tokens_per_microbatch=SMALL)
    true = gradients(model)
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        group_backward(model, GROUPS, gvpo, tokens_per_microbatch=SMALL)
    assert relative_error(gradients(model), true) < 0.05


def test_autocast_leaves_a_float64_model_in_float64():
    model = tiny_model("llama", dtype=torch.float64)
    group_backward(model, GROUPS, gvpo, tokens_per_microbatch=SMALL)
    expected = gradients(model)
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = group_backward(model, GROUPS, gvpo, tokens_per_microbatch=SMALL)
    assert output.rows[0].logprobs.dtype == torch.float64
    assert relative_error(gradients(model), expected) == 0.0


def test_dropout_is_off_in_every_pass_and_restored_afterwards():
    noisy = tiny_model("llama", attention_dropout=0.5)
    calm = tiny_model("llama")
    group_backward(noisy, GROUPS, gvpo, tokens_per_microbatch=SMALL)
    group_backward(calm, GROUPS, gvpo, tokens_per_microbatch=SMALL)
    assert relative_error(gradients(noisy), gradients(calm)) == 0.0
    assert noisy.model.layers[0].self_attn.attention_dropout == 0.5
    assert noisy.training


@pytest.mark.parametrize("training", [True, False])
def test_mode_random_state_and_head_are_unchanged(training: bool):
    model = tiny_model("llama").train(training)
    before = torch.get_rng_state()
    group_backward(model, GROUPS, gvpo, tokens_per_microbatch=SMALL)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training == training
    assert "forward" not in vars(model.lm_head)


@pytest.mark.parametrize("budget", [SMALL, LARGE])
def test_the_logits_of_all_tokens_never_exist(budget: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(head.CHUNK_BYTES, "cpu", 8 * 4 * VOCABULARY)
    monkeypatch.setattr(head, "FEWEST_ROWS", 1)
    model = tiny_model("llama", dtype=torch.float64)
    score(model, GROUPS)
    groups = random_groups([(2, (20, 20, 20))])
    with LargestTensor() as seen:
        group_backward(model, groups, gvpo, tokens_per_microbatch=budget)
        score(model, groups, tokens_per_microbatch=budget)
    largest_parameter = max(parameter.numel() for parameter in model.parameters())
    assert seen.largest <= largest_parameter < 60 * VOCABULARY


def broken(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        model.lm_head.weight[7] = torch.nan
    return model


@pytest.mark.parametrize("budget", [SMALL, LARGE])
@pytest.mark.parametrize("objective", [gvpo, sft])
def test_nothing_is_pushed_if_the_model_is_not_finite(objective: Callable[..., Any], budget: int):
    model = broken(tiny_model("llama"))
    output = group_backward(model, GROUPS, objective, tokens_per_microbatch=budget)
    assert not output.loss.isfinite()
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("budget", [SMALL, LARGE])
def test_nothing_is_pushed_if_the_loss_is_not_finite(budget: int):
    model = tiny_model("llama")
    rows = list(GROUPS[0].completions)
    groups = [Group(GROUPS[0].prompt, [dataclasses.replace(rows[0], reward=float("nan")), *rows[1:]]), *GROUPS[1:]]
    output = group_backward(model, groups, gvpo, tokens_per_microbatch=budget)
    assert not output.loss.isfinite()
    assert all(parameter.grad is None for parameter in model.parameters())


class Fooling:
    """An objective that hides from the first two evaluations, the guesses, that c depends on the log-probs."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, logprobs: Tensor, *, mask: Tensor) -> ObjectiveOutput:
        self.calls += 1
        rows = (logprobs * mask).sum(1)
        return ObjectiveOutput(rows.sum() if self.calls < 3 else rows.square().sum(), {})


def test_a_wrong_guess_of_the_coefficients_is_corrected():
    def honest(logprobs: Tensor, *, mask: Tensor) -> ObjectiveOutput:
        return ObjectiveOutput((logprobs * mask).sum(1).square().sum(), {})

    model = tiny_model("llama", dtype=torch.float64)
    with double_precision(model):
        group_backward(model, GROUPS, honest, tokens_per_microbatch=SMALL)
        expected = gradients(model)
        model.zero_grad()
        group_backward(model, GROUPS, Fooling(), tokens_per_microbatch=SMALL)
        assert relative_error(gradients(model), expected) < 1e-12


def test_coefficients_of_masked_tokens_are_not_pushed():
    def careless(logprobs: Tensor) -> ObjectiveOutput:
        return ObjectiveOutput(logprobs.square().sum(), {})

    output = group_backward(tiny_model("llama"), GROUPS, careless)
    rows = [row for group in GROUPS for row in group.completions]
    for found, row in zip(output.rows, rows, strict=True):
        assert ((found.coefficients == 0) == (torch.tensor(row.mask) == 0)).all()


def test_a_loss_without_log_probs_pushes_nothing():
    def constant(logprobs: Tensor) -> ObjectiveOutput:
        return ObjectiveOutput(torch.ones(()), {"a/b": torch.zeros(())})

    model = tiny_model("llama")
    output = group_backward(model, GROUPS, constant)
    assert output.loss.item() == 1.0
    assert output.metrics.keys() == {"a/b"}
    assert all(float(value.abs().max()) == 0.0 for value in gradients(model).values())


def test_the_error_names_missing_inputs_before_any_forward():
    model = tiny_model("llama")
    rewardless = [Group([3], [Completion([5], ref_logprobs=[-1.0]), Completion([6], ref_logprobs=[-1.0])])]
    microbatches(model, LARGE)
    with counted(model) as forwards:
        with pytest.raises(MissingLogprobs, match="on_policy=True"):
            group_backward(model, BARE, gvpo)
        with pytest.raises(MissingInput, match="rewards"):
            group_backward(model, rewardless, gvpo)
    assert forwards == []


def test_the_error_names_settings_out_of_range():
    with pytest.raises(ConfigError, match=r"temperature is 0\.0; log-probs need one above 0"):
        score(tiny_model("llama"), GROUPS, temperature=0.0)
    with pytest.raises(ConfigError, match="tokens_per_microbatch is 0"):
        group_backward(tiny_model("llama"), GROUPS, gvpo, tokens_per_microbatch=0)


def test_the_error_names_an_empty_batch_and_a_wrong_objective():
    with pytest.raises(DataError, match="no completion"):
        group_backward(tiny_model("llama"), [], gvpo)
    with pytest.raises(DataError, match="no completion"):
        score(tiny_model("llama"), [Group([1], [])])
    with pytest.raises(ObjectiveError, match="returned a Tensor; return ObjectiveOutput"):
        group_backward(tiny_model("llama"), GROUPS, lambda logprobs: logprobs.sum())
