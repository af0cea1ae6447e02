"""Tests of the layout: visible tokens, positions, predicting positions, and memory."""

import pytest
import torch

from gvpo.types import Completion, Group
from gvpo.update.layouts.base import Call, MicroBatch
from gvpo.update.layouts.forest import Forest, Tree
from gvpo.update.layouts.packed import Rows, Trees
from tests.naive import random_groups

CPU = torch.device("cpu")
TREES = Trees()


def group(prompt: int, *rows: int, start: int = 0) -> Group:
    """Return a group whose tokens count upwards from `start`, prompt first, so that a token shows its owner."""
    tokens = iter(range(start, start + 1000))
    take = lambda count: [next(tokens) for _ in range(count)]  # noqa: E731
    return Group(take(prompt), [Completion(take(size)) for size in rows])


def draw(microbatch: MicroBatch, layout: Rows | Trees = TREES) -> Call:
    return layout.lay_out(microbatch, CPU)


def lengths(microbatches: list[MicroBatch]) -> list[list[int]]:
    return [[piece.length for piece in pieces] for pieces in microbatches]


def trees(call: Call) -> tuple[Tree, ...]:
    forest = call.inputs["gvpo_trees"]
    assert isinstance(forest, Forest)
    return forest.trees


def test_one_group_is_its_prompt_and_its_completions_without_their_last_tokens():
    (microbatch,) = TREES.cut([group(3, 3, 2)], 100)
    call = draw(microbatch)
    # prompt 0 1 2, first completion 3 4 5, second 6 7; 5 and 7 are only targets
    assert call.input_ids.tolist() == [[0, 1, 2, 3, 4, 6]]
    assert call.inputs["position_ids"].tolist() == [[0, 1, 2, 3, 4, 3]]
    assert call.target.tolist() == [3, 4, 5, 6, 7]
    assert call.source.tolist() == [2, 3, 4, 2, 5]  # both first tokens come from the prompt's last one
    assert call.row.tolist() == [0, 0, 0, 1, 1]
    assert call.token.tolist() == [0, 1, 2, 0, 1]


def test_the_trees_contain_the_positions_of_the_prompt_and_each_completion():
    (microbatch,) = TREES.cut([group(3, 3, 1, 2)], 100)
    assert trees(draw(microbatch)) == (
        Tree(0, 3, (2, 1, 0)),
    )  # the longest first; a completion of one token has nothing to lay out


def test_groups_follow_each_other_without_a_gap():
    groups = [group(4, 4), group(2, 2, start=50), group(2, 2, start=90)]  # 7, 3 and 3 tokens
    (microbatch,) = TREES.cut(groups, 13)
    call = draw(microbatch)
    assert call.input_ids.tolist() == [[0, 1, 2, 3, 4, 5, 6, 50, 51, 52, 90, 91, 92]]
    assert call.inputs["position_ids"].tolist() == [[0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 0, 1, 2]]
    assert trees(call) == (Tree(0, 4, (3,)), Tree(7, 2, (1,)), Tree(10, 2, (1,)))
    assert call.inputs["attention_mask"].shape == (1, 1, 1, 1)  # transformers would make its own of a 2D mask


def test_rows_have_their_own_lanes_longest_first_and_padded_on_the_right():
    (microbatch,) = Rows().cut([group(2, 2, 4)], 100)
    call = draw(microbatch, Rows())
    assert call.input_ids.tolist() == [[0, 1, 4, 5, 6], [0, 1, 2, 0, 0]]
    assert "gvpo_trees" not in call.inputs
    assert call.inputs["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert "position_ids" not in call.inputs
    assert call.source.tolist() == [1, 2, 3, 4, 6, 7]
    assert call.row.tolist() == [1, 1, 1, 1, 0, 0]


@pytest.mark.parametrize("layout", [TREES, Rows()])
@pytest.mark.parametrize("budget", [1, 20, 37, 100, 10_000])
def test_every_token_is_scored_once_and_no_microbatch_is_over_the_budget(layout: Rows | Trees, budget: int):
    groups = random_groups([(7, (5, 9, 1)), (1, (4, 2)), (12, (3, 11, 2, 6)), (3, (1,)), (30, (2, 2))])
    rows = [row for each in groups for row in each.completions]
    scored: dict[tuple[int, int], int] = {}
    for microbatch in layout.cut(groups, budget):
        call = draw(microbatch, layout)
        alone = sum(len(piece.rows) for piece in microbatch) == 1
        assert call.input_ids.numel() <= budget or alone
        for row, token, target in zip(call.row, call.token, call.target, strict=True):
            assert (int(row), int(token)) not in scored
            scored[int(row), int(token)] = int(target)
    expected = {(i, t): token for i, row in enumerate(rows) for t, token in enumerate(row.tokens)}
    assert scored == expected


def test_a_group_over_the_budget_is_split_and_each_part_has_the_prompt():
    microbatches = TREES.cut([group(4, 3, 3, 3)], 8)  # 4 + 2 + 2 fits, the third row does not
    assert lengths(microbatches) == [[8], [6]]
    assert [draw(each).input_ids[0, :4].tolist() for each in microbatches] == [[0, 1, 2, 3]] * 2


def test_small_groups_fill_the_budget_and_nothing_is_padded():
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(1, 30, (200,), generator=generator).tolist()
    microbatches = TREES.cut([group(size, 2) for size in sizes], 512)
    assert sum(draw(each).input_ids.numel() for each in microbatches) == sum(size + 1 for size in sizes)
    assert all(sum(each) > 512 - 31 for each in lengths(microbatches)[:-1])


def test_the_plan_depends_only_on_its_arguments():
    groups = random_groups([(5, (3, 3)), (5, (3, 3)), (2, (8,))])
    assert lengths(TREES.cut(groups, 16)) == lengths(TREES.cut(groups, 16)) == [[9], [9], [9]]


def test_completions_without_tokens_are_skipped_and_keep_their_number():
    (microbatch,) = TREES.cut([group(2, 0, 2), Group([9], [])], 100)
    assert draw(microbatch).row.tolist() == [1, 1]
    assert TREES.cut([group(2, 0)], 100) == []
