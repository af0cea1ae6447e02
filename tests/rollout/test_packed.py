"""Rows in the state of a source."""

import io

import numpy as np
import pytest
import torch

from gvpo.rollout.packed import pack, unpack
from gvpo.types import Completion, EpisodeTurn, Verdict

ROWS = [
    (
        Completion(
            [5, 6, 70000],
            1 / 3,
            mask=[1.0, 0.0, 1.0],
            sampler_logprobs=[-0.5, -1.25, -2.0],
            extras={"log_allowed": -0.1},
            text="ab",
            finish_reason="length",
            version=4,
            versions=[4, 4, 5],
        ),
        Verdict(1 / 3, {"right": 1.0, "style": None}),
    ),
    (Completion([7], ref_logprobs=[-1.0], source="history", version=0), Verdict(None, {}, "timeout")),
    (Completion([], 0.0, old_logprobs=[], sampler_logprobs=[]), Verdict(0.0)),
    (
        Completion(
            [7, 8, 9],
            mask=[1.0, 0.0, 1.0],
            finish_reason="turns",
            turns=(
                EpisodeTurn(0, 1, 2, "7", [{"role": "user", "content": "8"}], 0.5, "error", "E: 8", 0.25, {"n": 1.0}),
                EpisodeTurn(2, 3, 3),
            ),
            prompt=[1, 2],
            opening="2",
        ),
        Verdict(0.5),
    ),
]


@pytest.mark.parametrize("rows", [ROWS, ROWS[::-1], []])
def test_rows_come_back_as_they_were(rows):
    file = io.BytesIO()
    torch.save(pack(rows), file)
    file.seek(0)
    assert unpack(torch.load(file, weights_only=True)) == rows


@pytest.mark.parametrize("value", [0.1, float(torch.tensor(0.1))])
def test_numbers_are_exact_in_either_precision(value):
    ((row, _),) = unpack(pack([(Completion([1], sampler_logprobs=[value]), Verdict(None))]))
    assert row.sampler_logprobs == [value]


def test_a_checkpoint_has_four_bytes_per_token_and_per_log_prob():
    row = Completion(list(range(1000)), sampler_logprobs=torch.linspace(-3, 0, 1000).tolist())
    packed = pack([(row, Verdict(None))])
    assert (packed["tokens"].dtype, packed["sampler_logprobs"]["values"].dtype) == (torch.int32, torch.float32)


def test_a_state_of_an_earlier_gvpo_has_no_versions_of_tokens():
    state = pack(ROWS)
    for name in ("versions", "turns", "prompts", "opening"):
        del state[name]
    assert [row.versions for row, _ in unpack(state)] == [None] * 4
    assert [row.version for row, _ in unpack(state)] == [4, 0, None, None]
    assert {(row.turns, row.prompt, row.opening) for row, _ in unpack(state)} == {((), None, "")}


def test_scalars_of_numpy_can_be_loaded():
    row = (Completion([1], np.float64(0.5)), Verdict(np.float64(0.5), {"right": np.float32(1.0)}))
    file = io.BytesIO()
    torch.save(pack([row]), file)
    file.seek(0)
    assert unpack(torch.load(file, weights_only=True)) == [(Completion([1], 0.5), Verdict(0.5, {"right": 1.0}))]
