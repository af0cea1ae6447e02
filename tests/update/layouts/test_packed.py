"""The layout: what a token may see, where it is, what predicts it, and how much room it all takes."""

import pytest
import torch

from gvpo.types import Completion, Group
from gvpo.update.layouts.packed import Layout, MicroBatch, lay_out, plan
from gvpo.update.layouts.tree import Tree
from tests.naive import random_groups

CPU = torch.device("cpu")


def group(prompt: int, *rows: int, start: int = 0) -> Group:
    """A group whose tokens count upwards from `start`, prompt first, so that a token tells whose it is."""
    tokens = iter(range(start, start + 1000))
    take = lambda count: [next(tokens) for _ in range(count)]  # noqa: E731
    return Group(take(prompt), [Completion(take(size)) for size in rows])


def draw(microbatch: MicroBatch, *, shared: bool = True) -> Layout:
    return lay_out(microbatch, shared=shared, device=CPU)


def lengths(microbatches: list[MicroBatch]) -> list[list[int]]:
    return [[piece.length for piece in pieces] for pieces in microbatches]


def trees(layout: Layout) -> tuple[Tree, ...]:
    assert layout.trees is not None
    return layout.trees.trees


def test_one_group_is_its_prompt_and_its_completions_without_their_last_tokens():
    (microbatch,) = plan([group(3, 3, 2)], 100, shared=True)
    layout = draw(microbatch)
    # prompt 0 1 2, first completion 3 4 5, second 6 7; 5 and 7 are only targets
    assert layout.input_ids.tolist() == [[0, 1, 2, 3, 4, 6]]
    assert layout.position_ids is not None
    assert layout.position_ids.tolist() == [[0, 1, 2, 3, 4, 3]]
    assert layout.target.tolist() == [3, 4, 5, 6, 7]
    assert layout.source.tolist() == [2, 3, 4, 2, 5]  # both first tokens come from the prompt's last one
    assert layout.row.tolist() == [0, 0, 0, 1, 1]
    assert layout.token.tolist() == [0, 1, 2, 0, 1]


def test_the_trees_tell_where_the_prompt_and_each_completion_lie():
    (microbatch,) = plan([group(3, 3, 1, 2)], 100, shared=True)
    assert trees(draw(microbatch)) == (
        Tree(0, 3, (2, 1, 0)),
    )  # the longest first; a completion of one token has nothing to lay out


def test_groups_lie_behind_each_other_without_a_gap():
    groups = [group(4, 4), group(2, 2, start=50), group(2, 2, start=90)]  # 7, 3 and 3 tokens
    (microbatch,) = plan(groups, 13, shared=True)
    layout = draw(microbatch)
    assert layout.input_ids.tolist() == [[0, 1, 2, 3, 4, 5, 6, 50, 51, 52, 90, 91, 92]]
    assert layout.position_ids is not None
    assert layout.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 0, 1, 2]]
    assert trees(layout) == (Tree(0, 4, (3,)), Tree(7, 2, (1,)), Tree(10, 2, (1,)))
    assert layout.attention_mask is None


def test_rows_are_alone_in_their_lanes_longest_first_and_padded_on_the_right():
    (microbatch,) = plan([group(2, 2, 4)], 100, shared=False)
    layout = draw(microbatch, shared=False)
    assert layout.input_ids.tolist() == [[0, 1, 4, 5, 6], [0, 1, 2, 0, 0]]
    assert layout.trees is None
    assert layout.attention_mask is not None
    assert layout.attention_mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert layout.position_ids is None
    assert layout.source.tolist() == [1, 2, 3, 4, 6, 7]
    assert layout.row.tolist() == [1, 1, 1, 1, 0, 0]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("budget", [1, 20, 37, 100, 10_000])
def test_every_token_is_scored_once_and_no_microbatch_is_over_the_budget(shared: bool, budget: int):
    groups = random_groups([(7, (5, 9, 1)), (1, (4, 2)), (12, (3, 11, 2, 6)), (3, (1,)), (30, (2, 2))])
    rows = [row for each in groups for row in each.completions]
    scored: dict[tuple[int, int], int] = {}
    for microbatch in plan(groups, budget, shared=shared):
        layout = draw(microbatch, shared=shared)
        alone = sum(len(piece.rows) for piece in microbatch) == 1
        assert layout.input_ids.numel() <= budget or alone
        for row, token, target in zip(layout.row, layout.token, layout.target, strict=True):
            assert (int(row), int(token)) not in scored
            scored[int(row), int(token)] = int(target)
    expected = {(i, t): token for i, row in enumerate(rows) for t, token in enumerate(row.tokens)}
    assert scored == expected


def test_a_group_over_the_budget_is_cut_and_each_part_has_the_prompt():
    microbatches = plan([group(4, 3, 3, 3)], 8, shared=True)  # 4 + 2 + 2 fits, the third row does not
    assert lengths(microbatches) == [[8], [6]]
    assert [draw(each).input_ids[0, :4].tolist() for each in microbatches] == [[0, 1, 2, 3]] * 2


def test_small_groups_fill_the_budget_and_nothing_is_padded():
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(1, 30, (200,), generator=generator).tolist()
    microbatches = plan([group(size, 2) for size in sizes], 512, shared=True)
    assert sum(draw(each).input_ids.numel() for each in microbatches) == sum(size + 1 for size in sizes)
    assert all(sum(each) > 512 - 31 for each in lengths(microbatches)[:-1])


def test_the_plan_is_a_function_of_its_arguments():
    groups = random_groups([(5, (3, 3)), (5, (3, 3)), (2, (8,))])
    assert lengths(plan(groups, 16, shared=True)) == lengths(plan(groups, 16, shared=True)) == [[9], [9], [9]]


def test_completions_without_tokens_are_left_out_and_keep_their_number():
    (microbatch,) = plan([group(2, 0, 2), Group([9], [])], 100, shared=True)
    assert draw(microbatch).row.tolist() == [1, 1]
    assert plan([group(2, 0)], 100, shared=True) == []
