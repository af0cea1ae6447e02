"""Tests of splitting rows that fork from a prompt into micro-batches and calls."""

import itertools

import numpy as np
import pytest
import torch

from gvpo.types import Completion, Group
from gvpo.update.layouts.fork_cache import ForkedCalls
from gvpo.update.layouts.forked import _FEWEST, Forked, _cut
from tests.naive import random_groups

CPU = torch.device("cpu")
GROUPS = random_groups([(7, (5, 9, 1)), (12, (3, 41, 2, 6)), (7, (4, 2)), (1, (30, 2)), (12, (0, 8, 8))])


def tokens(calls: ForkedCalls) -> int:
    return sum(call.input_ids.numel() for call in calls.calls)


@pytest.mark.parametrize("layout", [Forked(0), Forked(), Forked(10**6)])
@pytest.mark.parametrize("budget", [1, 30, 80, 10**6])
def test_every_completion_with_a_token_is_in_one_micro_batch_within_the_budget(budget: int, layout: Forked):
    rows = [row for group in GROUPS for row in group.completions]
    seen = []
    for microbatch in layout.cut(GROUPS, budget):
        assert len({len(piece.prompt) for piece in microbatch}) == 1
        alone = len(microbatch) == 1 and len(microbatch[0].rows) == 1
        calls = layout.lay_out(microbatch, CPU)
        assert alone or tokens(calls) <= budget
        seen += zip(calls.row.tolist(), calls.token.tolist(), strict=True)
        target = torch.cat([call.target for call in calls.calls])
        assert target.tolist() == [rows[i].tokens[t] for i, t in zip(calls.row, calls.token, strict=True)]
    assert sorted(seen) == [(i, t) for i, row in enumerate(rows) for t in range(len(row.tokens))]


def test_a_worked_layout():
    groups = [Group([3, 4], [Completion([5]), Completion([6, 7, 8, 9])]), Group([10, 11], [Completion([12, 13, 14])])]
    (microbatch,) = Forked().cut(groups, 100)
    layout = Forked().lay_out(microbatch, CPU)
    (continuation,) = layout.rows
    rows = continuation.call
    assert layout.prompts.input_ids.tolist() == [[3, 4], [10, 11]]
    assert layout.prompts.source.tolist() == [1, 1, 3]
    assert layout.prompts.target.tolist() == [6, 5, 12]
    assert rows.input_ids.tolist() == [[6, 7, 8], [12, 13, 0], [0, 0, 0]]
    assert continuation.parent.tolist() == [0, 1, 0]
    assert rows.source.tolist() == [0, 1, 2, 3, 4]
    assert rows.target.tolist() == [7, 8, 9, 13, 14]
    assert layout.row.tolist() == [1, 0, 2, 1, 1, 1, 2, 2]
    assert layout.token.tolist() == [0, 0, 0, 1, 2, 3, 1, 2]


@pytest.mark.parametrize(
    ("cost", "most"), [(0, np.inf), (3, np.inf), (10, 20), (3, 1), (_FEWEST, 20), (_FEWEST, np.inf)]
)
def test_rows_are_split_where_that_costs_the_fewest_tokens(cost: float, most: float):
    widths = np.array([17, 9, 9, 8, 4, 2, 2])

    def price(ends: tuple[int, ...]) -> float:
        parts = itertools.pairwise((0, *ends, len(widths)))
        sizes = [(end - start, (end - start) * int(widths[start])) for start, end in parts]
        return sum(size + cost if size <= most or rows == 1 else np.inf for rows, size in sizes)

    places = range(1, len(widths))
    best = min(price(ends) for k in range(len(widths)) for ends in itertools.combinations(places, k))
    parts = _cut(widths, cost, most)
    assert price(tuple(part.start for part in parts[1:])) == best
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(len(widths)))


def test_a_long_tail_gets_its_own_call():
    groups = random_groups([(100, (300, 20, 20, 20, 20, 20))])
    (microbatch,) = Forked().cut(groups, 10**6)
    calls = Forked().lay_out(microbatch, CPU)
    assert [tuple(call.input_ids.shape) for call in calls.calls] == [(1, 100), (1, 299), (5, 19)]


def test_prompts_pay_when_they_are_long_and_repeated():
    assert Forked().pays(random_groups([(200, (5, 5, 5))]))
    assert Forked().pays(random_groups([(9, (5,) * 8)] * 4))
    assert not Forked().pays(random_groups([(9, (5,) * 8)]))
    assert not Forked().pays(random_groups([(200, (5,)), (200, (5, 0)), (200, ())]))
