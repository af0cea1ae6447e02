"""Tests of the rollout files of a run as rows of groups."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gvpo import notices
from gvpo.data import load_records, read_groups, require_file
from gvpo.data.run_groups import ranges
from gvpo.errors import DataError, RunError
from gvpo.rollout.fingerprints import answer_rows, fingerprint
from gvpo.rollout.logged_groups import logged_groups
from gvpo.runfiles import METRICS, RolloutRow, rollout_path, write_rollouts
from gvpo.training.trainer import Trainer
from tests.training.toy import config, model, tokenizer

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


@pytest.fixture(autouse=True)
def said() -> Iterator[list[str]]:
    """Collect the notices, because the run lacks the rollout file of step 2."""
    found: list[str] = []
    with notices.handled(lambda message, _: found.append(message)):
        yield found


def train(path: Path, *, resume: bool = False, **settings: Any) -> None:
    Trainer(model(), args=config(path, **settings), processing_class=tokenizer()).train(resume=resume)


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


def test_a_run_without_rollouts_raises(tmp_path: Path):
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    with pytest.raises(DataError, match=r"has no rollout files; train\.rollouts_every sets"):
        load_records(tmp_path / "empty")


def test_a_notice_says_which_steps_of_the_run_have_no_rollout_file(tmp_path: Path, said: list[str]):
    path = run(tmp_path)
    load_records(path)
    load_records(rollout_path(path, 3))  # one file is only what it is
    (path / METRICS).write_text("".join(f'{{"step": {step}}}\n' for step in range(11)))
    load_records(path)
    assert said == [
        f"1 of the 3 steps of {path} have no rollout file, so their groups are missing: steps 2; "
        "train.rollouts_every=1 writes all",
        f"8 of the 10 steps of {path} have no rollout file, so their groups are missing: steps 2, 4 to 10; "
        "train.rollouts_every=1 writes all",
    ]


def test_a_whole_run_has_no_notice(tmp_path: Path, said: list[str]):
    path = run(tmp_path)
    write_rollouts(rollout_path(path, 2), [row(2, 0, "11", 1.0), row(2, 1, "2", 0.0)])
    assert len(load_records(path)) == 3
    assert said == []


def test_many_ranges_of_steps_are_abbreviated():
    assert ranges([2, 3, 4, 7, 9, 10]) == "2 to 4, 7, 9 to 10"
    assert ranges([2, 3, 5, 7, 8, 10, 12]) == "2 to 3, 5, 7 to 8, ..."


def test_masks_of_completions_are_read_and_cut_with_them(tmp_path: Path):
    end = tokenizer().eos_token_id
    logged = logged_groups(config(), tokenizer(), load_records(run(tmp_path, mask=[1.0, 0.0, 1.0])), source="run")
    (first, _), (last, _) = (each.group.completions for each in logged)
    assert (first.mask, last.mask) == ([1.0, 0.0, 1.0], None)
    rows = [
        {"prompt": PROMPT, "completions": [[*PROMPT, end, end], PROMPT], "rewards": [1, 0], "masks": [[0, 1, 1], None]}
    ]
    (cut,) = logged_groups(config(), tokenizer(), rows, source="run")
    assert cut.group.completions[0].mask == [0, 1]


def test_other_rollouts_of_the_run_have_another_fingerprint(tmp_path: Path):
    def name(path: Path) -> str:
        groups = logged_groups(config(), tokenizer(), load_records(path), source="run")
        return fingerprint(answer_rows(each.group for each in groups))

    path = run(tmp_path)
    before = name(path)
    assert name(path) == before
    write_rollouts(rollout_path(path, 3), [row(3, 0, "11", 1.0), row(3, 1, "4", 0.0)])
    after = name(path)
    write_rollouts(rollout_path(path, 3), [row(3, 0, "11", 1.0), row(3, 1, "4", 0.0, mask=[0.0, 1.0])])
    assert len({before, after, name(path)}) == 3


def test_a_run_on_rollouts_that_changed_is_not_resumed(tmp_path: Path):
    path = run(tmp_path)
    settings = {"groups_data": str(path), "prompts_per_step": 1, "eval_problems": 0, "checkpoint_every": 1}
    train(tmp_path / "offline", **settings, steps=1)
    write_rollouts(rollout_path(path, 2), [row(2, 0, "11", 1.0), row(2, 1, "2", 0.0)])
    with pytest.raises(RunError, match="another set of training data"):
        train(tmp_path / "offline", resume=True, **settings, steps=2)


def test_log_probs_and_masks_are_lists(tmp_path: Path):
    rows = [{"prompt": PROMPT, "completions": [PROMPT, PROMPT], "rewards": [1, 0], "masks": [1, None]}]
    with pytest.raises(DataError, match="row 1: `masks` are lists, one number per token; one is '1'"):
        read_groups(rows)
    with pytest.raises(DataError, match=r"row 1: Completion\.mask has 2 values for 1 tokens"):
        logged_groups(config(), tokenizer(), [{**rows[0], "masks": [[1, 1], None]}], source="run")
