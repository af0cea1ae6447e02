"""Tests of the rollout files of a run as rows of groups."""

from pathlib import Path
from typing import Any

import pytest

from gvpo.data import load_records, read_groups, require_file
from gvpo.errors import DataError
from gvpo.rollout.logged_groups import logged_groups
from gvpo.runfiles import RolloutRow, rollout_path, write_rollouts
from tests.training.toy import config, tokenizer

PROMPT = list(tokenizer()("1").input_ids)


def row(step: int, place: int, text: str, reward: float | None, **more: Any) -> RolloutRow:
    tokens = [*tokenizer()(text).input_ids, tokenizer().eos_token_id]
    own = {"reward_parts": {"right": reward}, "sampler_logprobs": [-0.5] * len(tokens), "columns": {"answer": "11"}}
    return RolloutRow(step, "a", place, "1", PROMPT, text, tokens, reward=reward, **{**own, **more})


def run(place: Path, **more: Any) -> Path:
    """Create a run with two steps that sampled the same problem; the rows of the second are out of order."""
    first = [row(1, 0, "11", 1.0, **more), row(1, 1, "2", None, finish_reason="length", reason="timeout")]
    for step, rows in ((1, first), (3, [row(3, 1, "3", 0.0), row(3, 0, "11", 1.0)])):
        write_rollouts(rollout_path(place / "run", step), rows)
    return place / "run"


def test_each_step_has_separate_groups(tmp_path: Path):
    groups = read_groups(load_records(run(tmp_path)), rewarded=True)
    assert [group.problem.id for group in groups] == ["step-000001/a", "step-000003/a"]
    assert [[c.text for c in group.completions] for group in groups] == [["11", "2"], ["11", "3"]]
    assert [[c.reward for c in group.completions] for group in groups] == [[1.0, None], [1.0, 0.0]]
    first = groups[0]
    assert (first.prompt_tokens, first.problem.prompt, first.problem.columns) == (PROMPT, "1", {"answer": "11"})
    assert [c.finish_reason for c in first.completions] == ["stop", "length"]
    assert [dict(c.parts) for c in first.completions] == [{"right": 1.0}, {"right": None}]


@pytest.mark.parametrize("part", ["rollouts", "rollouts/step-000003.parquet"])
def test_the_directory_of_rollouts_or_one_file_can_be_read(part: str, tmp_path: Path):
    found = load_records(run(tmp_path) / part)
    assert [group["id"] for group in found][-1] == "step-000003/a"
    assert len(found) == (1 if part.endswith(".parquet") else 2)


def test_training_uses_tokens_and_log_probs_as_sampled(tmp_path: Path):
    place = run(tmp_path)
    require_file(place)
    logged = logged_groups(config(), tokenizer(), load_records(place), source="run")
    (first, _), _ = (each.group.completions for each in logged)
    assert list(logged[0].group.prompt) == PROMPT
    assert list(first.tokens) == [*tokenizer()("11").input_ids, tokenizer().eos_token_id]
    assert first.sampler_logprobs == [-0.5] * len(first.tokens)
    assert logged[0].problem.prompt == "1"


def test_a_run_without_rollouts_and_masked_tokens_raise(tmp_path: Path):
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    with pytest.raises(DataError, match=r"has no rollout files; train\.rollouts_every sets"):
        load_records(tmp_path / "empty")
    with pytest.raises(DataError, match="group 'step-000001/a' has completions with masked tokens"):
        load_records(run(tmp_path, mask=[1.0, 0.0, 1.0]))
