"""Tests that an objective receives its keywords as tensors, or an error names the missing one with a remedy."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from gvpo.errors import MissingInput, MissingLogprobs, ShapeError
from gvpo.types import Completion, Group
from gvpo.update.collate import Batch, collate

PROMPT = (1, 2)


def collect(objective: Callable[..., Any], *rows: Completion, on_policy: bool = False) -> Batch:
    """Collate one group with the first row and one with the others."""
    groups = [Group(PROMPT, rows[:1]), Group(PROMPT, rows[1:])]
    return collate(groups, objective, dtype=torch.float32, device=torch.device("cpu"), on_policy=on_policy)


def row(*tokens: int, **values: Any) -> Completion:
    return Completion(tokens, **values)


def needs_reference(logprobs, *, ref_logprobs, rewards, group, mask, beta=0.1): ...
def needs_nothing(logprobs, *, mask): ...
def may_take_reference(logprobs, *, mask, ref_logprobs=None): ...
def needs_role(logprobs, *, mask, role): ...
def may_take_advantages(logprobs, *, mask, advantages=None): ...
def may_take_sampler(logprobs, *, mask, sampler_logprobs=None): ...
def needs_sampler(logprobs, *, mask, sampler_logprobs): ...
def takes_anything(logprobs, **inputs): ...


def test_exactly_the_named_keywords_are_collected():
    rows = [row(5, 6, reward=1.0, ref_logprobs=[-1.0, -2.0], extras={"role": 1}), row(7, reward=0, ref_logprobs=[-3.0])]
    inputs = collect(needs_reference, *rows).inputs
    assert inputs.keys() == {"ref_logprobs", "rewards", "group", "mask"}
    assert inputs["ref_logprobs"].tolist() == [[-1.0, -2.0], [-3.0, 0.0]]
    assert inputs["rewards"].tolist() == [1.0, 0.0]
    assert inputs["rewards"].dtype == torch.float64  # an offset of 2^24 would hide their differences in float32
    assert inputs["group"].tolist() == [0, 1]
    assert collect(needs_nothing, *rows).inputs.keys() == {"mask"}


def test_masks_cover_tokens_and_their_own_zeros_and_no_padding():
    batch = collect(needs_nothing, row(5, 6, 7, mask=[1, 0, 1]), row(8), row())
    assert batch.mask.tolist() == [[1, 0, 1], [1, 0, 0], [0, 0, 0]]
    assert batch.mask.dtype == torch.float32
    assert batch.lengths == (3, 1, 0)


def test_a_batch_of_empty_completions_has_one_masked_column():
    assert collect(needs_nothing, row(), row()).mask.tolist() == [[0.0], [0.0]]


def test_keywords_of_partial_objectives_are_found():
    bound = functools.partial(needs_reference, beta=0.5)
    rows = [row(5, reward=1.0, ref_logprobs=[-1.0]), row(6, reward=2.0, ref_logprobs=[-1.0])]
    assert collect(bound, *rows).inputs.keys() == {"ref_logprobs", "rewards", "group", "mask"}
    given = functools.partial(needs_reference, ref_logprobs=torch.zeros(2, 1))
    assert "ref_logprobs" not in collect(given, row(5, reward=1.0), row(6, reward=1.0)).inputs


def test_kwargs_receive_what_every_row_has():
    rows = [
        row(5, reward=1.0, old_logprobs=[-1.0], extras={"a": 1.0, "b": 1.0}),
        row(6, reward=1.0, old_logprobs=[-2.0], extras={"a": 2.0}),
    ]
    assert collect(takes_anything, *rows).inputs.keys() == {"mask", "group", "rewards", "old_logprobs", "a"}


@pytest.mark.parametrize("values", [[-1.5, -0.5], np.array([-1.5, -0.5], np.float32), torch.tensor([-1.5, -0.5])])
def test_log_probs_may_be_lists_arrays_or_tensors(values: Any):
    if isinstance(values, np.ndarray):
        values.flags.writeable = False  # as returned by pyarrow
    batch = collect(may_take_reference, row(5, 6, ref_logprobs=values), row(6, ref_logprobs=[-2.0]))
    assert batch.inputs["ref_logprobs"].tolist() == [[-1.5, -0.5], [-2.0, 0.0]]


def test_float32_log_probs_survive_a_trip_through_python_floats_bit_by_bit():
    values = -torch.rand(50)
    batch = collect(may_take_reference, row(*range(50), ref_logprobs=values.tolist()), row(6, ref_logprobs=[-2.0]))
    assert torch.equal(batch.inputs["ref_logprobs"][0], values)


@pytest.mark.parametrize("on_policy", [False, True])
@pytest.mark.parametrize("objective", [needs_reference, may_take_reference])
def test_log_probs_of_some_rows_only_are_an_error_always(objective: Callable[..., Any], on_policy: bool):
    rows = [row(5, reward=1.0, ref_logprobs=[-1.0]), row(6, reward=1.0)]
    with pytest.raises(
        MissingLogprobs, match=r"ref_logprobs is missing from 1 of 2 completions \(the first is row 1\)"
    ):
        collect(objective, *rows, on_policy=on_policy)


def test_log_probs_of_no_row_are_an_error_unless_on_policy_or_optional():
    rows = [row(5, reward=1.0), row(6, reward=1.0)]
    with pytest.raises(MissingLogprobs, match=r"ref_logprobs and no completion has them.*on_policy=True"):
        collect(needs_reference, *rows)
    assert collect(may_take_reference, *rows).own == ()
    assert collect(may_take_reference, *rows, on_policy=True).own == ("ref_logprobs",)
    batch = collect(needs_reference, *rows, on_policy=True)
    assert batch.own == ("ref_logprobs",)
    assert "ref_logprobs" not in batch.inputs


def test_the_samplers_log_probs_are_collected_where_every_row_has_them():
    rows = [row(5, 6, sampler_logprobs=[-1.0, -2.0]), row(6, sampler_logprobs=[-3.0])]
    for objective in (may_take_sampler, needs_sampler):
        assert collect(objective, *rows).inputs["sampler_logprobs"].tolist() == [[-1.0, -2.0], [-3.0, 0.0]]
    # A wrapper with **kwargs may call an objective that does not know them.
    assert "sampler_logprobs" not in collect(takes_anything, *rows).inputs


def test_rows_that_no_sampler_reported_are_an_error_only_where_they_are_required():
    reported, written = row(5, sampler_logprobs=[-1.0]), row(6)
    for rows in ((reported, written), (written, written)):
        assert collect(may_take_sampler, *rows, on_policy=True).inputs.keys() == {"mask"}
    with pytest.raises(MissingLogprobs, match=r"sampler_logprobs is missing from 1 of 2 completions"):
        collect(needs_sampler, reported, written)
    with pytest.raises(MissingLogprobs, match=r"needs sampler_logprobs and no completion has them: use rows"):
        collect(needs_sampler, written, written, on_policy=True)


def test_given_log_probs_are_used_on_policy_too():
    rows = [row(5, reward=1.0, ref_logprobs=[-1.0]), row(6, reward=1.0, ref_logprobs=[-1.0])]
    batch = collect(needs_reference, *rows, on_policy=True)
    assert batch.own == ()
    assert "ref_logprobs" in batch.inputs


def test_the_error_names_a_missing_reward_or_extra():
    references = {"ref_logprobs": [-1.0]}
    with pytest.raises(MissingInput, match="needs rewards and no completion has one"):
        collect(needs_reference, row(5, **references), row(6, **references))
    with pytest.raises(MissingInput, match="rewards is missing from 1 of 2"):
        collect(needs_reference, row(5, reward=1.0, **references), row(6, **references))
    with pytest.raises(MissingInput, match=r"needs 'role'.*Completion\.extras"):
        collect(needs_role, row(5), row(6))
    with pytest.raises(MissingInput, match="role is missing from 1 of 2"):
        collect(needs_role, row(5, extras={"role": 1}), row(6))


def test_extras_are_scalars_vectors_or_one_value_per_token():
    def extra(first: Any, second: Any) -> Any:
        rows = [row(5, 6, 7, extras={"advantages": first}), row(8, 9, extras={"advantages": second})]
        return collect(may_take_advantages, *rows).inputs["advantages"]

    assert extra(0.5, 1).tolist() == [0.5, 1.0]
    assert extra(2, 3).dtype == torch.int64
    assert extra("chosen", "weak") == ("chosen", "weak")
    assert extra([0.5, 1.0, 2.0], [3.0, 4.0]).tolist() == [[0.5, 1.0, 2.0], [3.0, 4.0, 0.0]]
    assert extra([1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]).tolist() == [[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]
    with pytest.raises(ShapeError, match="as long as the tokens of its row, or of one length"):
        extra([1.0], [1.0, 2.0])
    with pytest.raises(ShapeError, match="a scalar on every row or a list on every row"):
        extra(1.0, [1.0, 2.0])
