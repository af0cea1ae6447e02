"""TRL's tensors become rows and groups."""

import torch

from gvpo.integrations.trl.rows import GROUP, REWARD, Served, comparable, groups_of, rows_of, usable, window


def batch() -> dict[str, torch.Tensor]:
    return {
        "prompt_ids": torch.tensor([[0, 5], [6, 7], [0, 5]]),
        "prompt_mask": torch.tensor([[0, 1], [1, 1], [0, 1]]),
        "completion_ids": torch.tensor([[8, 1, 0], [9, 9, 9], [8, 8, 1]]),
        "completion_mask": torch.tensor([[1, 1, 0], [0, 0, 0], [1, 1, 1]]),
        "tool_mask": torch.tensor([[1, 1, 1], [1, 1, 1], [1, 0, 1]]),
        "old_per_token_logps": torch.tensor([[-1.0, -2.0, 0.0], [-9.0, -9.0, -9.0], [-3.0, -4.0, -5.0]]),
        GROUP: torch.tensor([4, 3, 4]),
        REWARD: torch.tensor([1.0, 0.5, torch.nan]),
        "num_items_in_batch": torch.tensor(5),
    }


def test_rows_have_no_padding_and_keep_their_values():
    part = batch()
    rows = list(rows_of(Served(2, part), {"reward": part[REWARD], "old_logprobs": part["old_per_token_logps"]}))
    assert [row.group for row in rows] == [(2, 4), (2, 3), (2, 4)]
    assert [row.prompt.tolist() for row in rows] == [[5], [6, 7], [5]]
    assert [row.tokens.tolist() for row in rows] == [[8, 1], [], [8, 8, 1]]
    assert rows[2].mask is not None
    assert rows[2].mask.tolist() == [1, 0, 1]
    assert rows[0].values["old_logprobs"].tolist() == [-1, -2]


def test_groups_are_in_order_and_their_rows_too():
    part = batch()
    other = list(rows_of(Served(1, part), {"scale": part[REWARD]}))
    groups = groups_of([*rows_of(Served(2, part), {"scale": part[REWARD]}), *other])
    assert [len(group.completions) for group in groups] == [1, 2, 1, 2]
    assert [list(group.prompt) for group in groups] == [[6, 7], [5], [6, 7], [5]]
    assert groups[0].completions[0].extras["scale"] == 0.5
    assert [len(group.completions) for group in comparable(groups)] == [2, 2]


def test_rows_without_a_reward_and_truncated_rows_are_not_usable():
    assert usable(batch(), mask_truncated=False).tolist() == [True, True, False]
    assert usable(batch(), mask_truncated=True).tolist() == [True, False, False]


def test_steps_of_one_generation_get_all_groups_once():
    generation = [batch() | {GROUP: torch.tensor(groups)} for groups in ([0, 3, 1], [2, 1, 0], [3, 2, 2], [1, 3, 0])]
    steps = [window(generation, number, 2, 3) for number in (0, 1)]
    assert [[part[GROUP].tolist() for part in step] for step in steps] == [
        [[0, 0, 0], [2, 2, 2]],
        [[1, 1, 1], [3, 3, 3]],
    ]
    assert all(part["num_items_in_batch"] == 5 for step in steps for part in step)
