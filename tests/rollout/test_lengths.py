"""Prompts and answers that do not fit into the context: refused, dropped or cut, and counted."""

from pathlib import Path
from typing import Any

import pytest

from gvpo.config import TrainConfig, resolve
from gvpo.errors import ConfigError, DataError, GvpoWarning
from gvpo.rollout.lengths import fitting_answers, fitting_groups, fitting_prompts
from gvpo.rollout.logged_groups import LoggedGroup
from gvpo.types import Completion, Group, Problem, Verdict
from tests.training.test_checks import CONTEXT, prompt
from tests.training.toy import config, model, noticed, tokenizer, trainer

LONG = "1" * 80


def answer(length: int, **facts: Any) -> Completion:
    return Completion([3] * length, text="0" * length, **facts)


def answers(treatment: str, items: Any, **settings: Any) -> list[tuple[int, str]]:
    """Return the number of tokens and the finish reason of each answer that is left."""
    found = fitting_answers(config(overlong_answers=treatment, **settings), model(), tokenizer(), items)
    return [(len(each.tokens), each.finish_reason) for _, each in found]


def test_a_prompt_may_leave_room_for_one_token():
    items = [prompt(CONTEXT - 1, "a"), prompt(CONTEXT, "b"), prompt(1, "c")]
    with pytest.raises(DataError, match="1 of 3 prompts leave no room for a completion; the first is 'b' with 64"):
        fitting_prompts(config(), model(), items)
    with pytest.warns(GvpoWarning, match="1 of 3 prompts leave no room .* such prompts are left out"):
        assert fitting_prompts(config(overlong_prompts="drop"), model(), items) == [items[0], items[2]]
    assert fitting_prompts(config(), model(), items[:1]) == items[:1]
    with pytest.raises(DataError, match="1 of 1 prompts leave no room"):
        fitting_prompts(config(overlong_prompts="drop"), model(), items[1:2])


def test_a_written_answer_may_fill_the_context():
    items = [(prompt(CONTEXT - 10, "a"), answer(10)), (prompt(CONTEXT - 9, "b"), answer(10))]
    found = (
        r"1 of 2 answers have more than 64 tokens with their prompts \(the model's context\); the first is that of 'b'"
    )
    with pytest.raises(DataError, match=found):
        answers("error", items)
    with pytest.warns(GvpoWarning, match=f"{found} with 65; cut: 0, left out: 1"):
        assert answers("drop", items) == [(10, "stop")]
    with pytest.warns(GvpoWarning, match=f"{found} with 65; cut: 1, left out: 0"):
        assert answers("cut", items) == [(10, "stop"), (9, "length")]
    with pytest.warns(
        GvpoWarning,
        match=r"2 of 2 answers have more than 60 tokens with their prompts \(data.max_row_tokens\).*: 1, left out: 1",
    ):
        assert answers("cut", [items[0], (prompt(60), answer(1))], max_row_tokens=60) == [(6, "length")]
    with pytest.raises(DataError, match="nothing is left to train on"):
        answers("drop", items[1:])


def logged(*lengths: int) -> LoggedGroup:
    rows = [
        answer(length, reward=float(place), sampler_logprobs=[-1.0] * length) for place, length in enumerate(lengths)
    ]
    return LoggedGroup(Group([3], rows, id="g"), [Verdict(row.reward) for row in rows], Problem("x", "g"))


def test_a_logged_group_loses_its_long_answers_and_is_dropped_if_one_is_left():
    groups = [logged(5, 90, 5), logged(5, 90), logged(5, 5)]
    with pytest.warns(GvpoWarning, match="2 of 7 answers have more than 64 tokens .* left out: 2"):
        found = fitting_groups(config(), model(), tokenizer(), groups)
    assert [[row.reward for row in each.group.completions] for each in found] == [[0.0, 2.0], [0.0, 1.0]]
    assert [[verdict.reward for verdict in each.verdicts] for each in found] == [[0.0, 2.0], [0.0, 1.0]]
    with pytest.warns(GvpoWarning, match="2 of 7 answers .* cut: 2"):
        cut = fitting_groups(config(overlong_answers="cut"), model(), tokenizer(), groups)[1].group.completions[1]
    assert (len(cut.tokens), len(cut.sampler_logprobs or ()), cut.finish_reason) == (CONTEXT - 1, CONTEXT - 1, "length")


@pytest.mark.parametrize("treatment", ["drop", "cut"])
def test_a_run_on_preferences_with_a_long_row_trains_on_the_rest(tmp_path: Path, treatment: str):
    pairs = [{"prompt": one, "chosen": one, "rejected": LONG if one == "3" else "0"} for one in "12345"]
    settings = {"objective": "dpo", "reference": "auto", "steps": 1, "overlong_answers": treatment}
    with noticed("1 of 10 answers have more than 64 tokens"):
        run = trainer(tmp_path, data=pairs, held=None, rewards=[], **settings)
        run.train()
    assert len(run._inputs.data) == (4 if treatment == "drop" else 5)


def test_a_supervised_run_with_a_long_row_trains_on_the_rest(tmp_path: Path):
    rows = [{"prompt": one, "completion": LONG if one == "3" else one} for one in "12345"]
    with noticed("1 of 5 answers have more than 64 tokens"):
        run = trainer(tmp_path, data=rows, held=None, rewards=[], objective="sft", reference="auto", steps=1)
        run.train()
    assert len(run._inputs.data) == 4


def test_a_run_leaves_out_long_prompts_if_it_may(tmp_path: Path):
    rows = [{"prompt": "1" * 64, "digit": "1"}, {"prompt": "2", "digit": "2"}]
    with noticed("1 of 2 prompts leave no room"):
        run = trainer(tmp_path, data=rows, held=rows, overlong_prompts="drop", prompts_per_step=1, steps=1)
        run.train()
    assert len(run._inputs.data) == len(run._inputs.held_out) == 1


def test_scores_of_whole_answers_are_not_for_parts():
    with pytest.raises(ConfigError, match=r"data\.overlong_answers='cut' does not fit poft"):
        resolve(TrainConfig(model_path="m", objective="poft", train_data="a", overlong_answers="cut"))
