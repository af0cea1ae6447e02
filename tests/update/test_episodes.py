"""Updates on episodes: the gradient of several turns equals that of one row per forward, and observations have none."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from gvpo.objectives import cispo, grpo, gspo, gspo_token, gsspo, gvpo
from gvpo.types import Completion, Group
from gvpo.update.group_backward import UpdateOutput, group_backward, score
from tests.fakes import tiny_model
from tests.naive import double_precision, gradients, naive_scores, naive_update, random_episodes, relative_error
from tests.update.experts.test_routing import forced_by_hand, moved, rows_of

OBJECTIVES: dict[str, Callable[..., Any]] = {
    "gvpo": gvpo,
    "grpo": grpo,
    "grpo, sums of tokens": functools.partial(grpo, reduction="token_mean", kl_coef=0.1),
    "cispo": cispo,
    "gspo": gspo,
    "gspo_token": gspo_token,
    "gsspo": gsspo,
}
TURNS = {"grpo", "grpo, sums of tokens", "cispo", "gspo_token", "gsspo"}
"""Objectives that take an advantage per turn."""
EPISODES = random_episodes()


def without(groups: list[Group], *names: str) -> list[Group]:
    """Return groups whose rows lack some extras."""

    def changed(row: Completion) -> Completion:
        return dataclasses.replace(row, extras={name: each for name, each in row.extras.items() if name not in names})

    return [dataclasses.replace(group, completions=[changed(row) for row in group.completions]) for group in groups]


def near_old(groups: list[Group]) -> list[Group]:
    """Return groups whose old log-probs are near the model's, so that some ratios are clipped and some are not."""
    generator = torch.Generator().manual_seed(2)
    scored = iter(score(tiny_model("llama", dtype=torch.float64), groups))

    def moved_by(row: Completion) -> Completion:
        old = next(scored).logprobs
        return dataclasses.replace(row, old_logprobs=old + 0.1 * torch.randn(old.shape, generator=generator))

    return [dataclasses.replace(group, completions=[moved_by(row) for row in group.completions]) for group in groups]


@pytest.mark.parametrize("sharing", ["on", "off"])
@pytest.mark.parametrize("budget", [3, 40, 10**6])
@pytest.mark.parametrize("name", [*OBJECTIVES, *(f"{name}, to go" for name in sorted(TURNS))])
def test_the_gradient_of_episodes_equals_the_naive_one(name: str, budget: int, sharing: Any):
    objective = OBJECTIVES[name.removesuffix(", to go")]
    groups = near_old(EPISODES if name.endswith("to go") else without(EPISODES, "advantages"))
    model = tiny_model("llama", dtype=torch.float64)
    with double_precision(model):
        true = naive_update(model, groups, objective)
        output = group_backward(model, groups, objective, tokens_per_microbatch=budget, prefix_sharing=sharing)
    assert relative_error(gradients(model), true.gradients) < 1e-10
    assert output.loss.item() == pytest.approx(true.loss.item(), rel=1e-10)
    assert_observations_have_no_coefficient(groups, output)


def assert_observations_have_no_coefficient(groups: list[Group], output: UpdateOutput) -> None:
    rows = [row for group in groups for row in group.completions]
    for row, found in zip(rows, output.rows, strict=True):
        assert not found.coefficients[torch.tensor(row.mask) == 0].any()
    assert any(found.coefficients.any() for found in output.rows)


@pytest.mark.parametrize("kind", ["qwen2", "mistral", "gemma3"])
def test_architectures_agree_on_episodes(kind: str):
    model = tiny_model(kind, dtype=torch.float64)
    with double_precision(model):
        true = naive_update(model, EPISODES, gvpo)
        group_backward(model, EPISODES, gvpo, tokens_per_microbatch=40)
    assert relative_error(gradients(model), true.gradients) < 1e-10


def test_replayed_experts_of_episodes_include_those_of_observations():
    model = tiny_model("qwen3_moe", dtype=torch.float64, norm_topk_prob=True)
    with double_precision(model):
        kept = iter(score(model, EPISODES, routing="watch"))
        groups = [
            dataclasses.replace(
                group, completions=[dataclasses.replace(row, experts=next(kept).experts) for row in group.completions]
            )
            for group in EPISODES
        ]
        moved(model)
        output = group_backward(model, groups, gvpo, routing="replay", tokens_per_microbatch=40)
        found = gradients(model)
        model.zero_grad()
        for (group, row), trained in zip(rows_of(groups), output.rows, strict=True):
            assert row.experts.own.shape[1] == len(row.tokens) - 1  # the last token is not read
            chosen = torch.cat([row.experts.prompt, row.experts.own], dim=1).long()
            last = torch.zeros(chosen.shape[0], 1, chosen.shape[2], dtype=torch.int64)
            with forced_by_hand(model, torch.cat([chosen, last], dim=1)):
                logprobs, _ = naive_scores(model, group, row, 1.0)
                (logprobs * trained.coefficients).sum().backward()
    assert relative_error(found, gradients(model)) < 1e-10
    assert_observations_have_no_coefficient(groups, output)
