"""Tests of the exact update with roles and scores in extras: the gradient is the same for every split."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from gvpo.errors import MissingInput
from gvpo.objectives import dpo_rows, epa_rows, poft
from gvpo.types import Completion, Group
from gvpo.update.group_backward import UpdateOutput, group_backward
from tests.naive import gradients, relative_error
from tests.training.toy import groups, model

ROLES = ("chosen", "strong", "strong", "weak")


def with_extras(group: Group, made: Callable[[int], dict[str, Any]]) -> Group:
    def changed(place: int, row: Completion) -> Completion:
        reference = [-2.0 - 0.1 * place] * len(row.tokens)
        return replace(row, extras=made(place), ref_logprobs=reference)

    return replace(group, completions=[changed(place, row) for place, row in enumerate(group.completions)])


CASES: dict[str, tuple[Any, Callable[[int], dict[str, Any]]]] = {
    "dpo": (dpo_rows, lambda place: {"role": "strong" if place else "chosen"}),
    "epa": (epa_rows, lambda place: {"role": ROLES[place]}),
    "poft": (poft, lambda place: {"aligned_mean_logprobs": [-1.0 - place, -2.0]}),
}


def update(batch: list[Group], objective: Any, budget: int) -> tuple[UpdateOutput, dict[str, torch.Tensor]]:
    policy = model()
    output = group_backward(policy, batch, functools.partial(objective), tokens_per_microbatch=budget)
    return output, gradients(policy)


@pytest.mark.parametrize("name", CASES)
def test_micro_batches_change_nothing(name: str):
    objective, extras = CASES[name]
    batch = [with_extras(group, extras) for group in groups(4)]
    (whole, expected), (cut, found) = (update(batch, objective, budget) for budget in (8192, 6))
    assert cut.loss.item() == pytest.approx(whole.loss.item(), rel=1e-6)
    assert {key: value.item() for key, value in cut.metrics.items()} == pytest.approx(
        {key: value.item() for key, value in whole.metrics.items()}, rel=1e-5, abs=1e-6
    )
    assert relative_error(found, expected) < 1e-5


@pytest.mark.parametrize("name", CASES)
def test_the_error_names_missing_extras(name: str):
    objective, _ = CASES[name]
    batch = [with_extras(group, lambda place: {}) for group in groups(1)]
    with pytest.raises(MissingInput, match="put it into Completion.extras".replace(".", r"\.")):
        group_backward(model(), batch, objective)
