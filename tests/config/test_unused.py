"""Settings without an effect, and held-out rows that are also training rows: one warning each."""

from pathlib import Path
from typing import Any

import pytest

from gvpo.config import Given, TrainConfig, resolve
from tests.training.toy import DIGITS, ROWS, noticed, stopped_at, trainer

ONLINE = Given(held_out="problems", rewards=True, model=True)
PASSED = Given(train="problems", held_out="problems", rewards=True, model=True)
ALONE = Given(model=True)
SFT = {"objective": "sft"}
CASES: list[tuple[dict[str, Any], Given, str]] = [
    # settings of a feature that is off
    ({"task_options": {"digits": 3}}, ONLINE, "data.task_options has no effect: data.task is not set"),
    (
        {"objective": "grpo", "reference": "initial"},
        ONLINE,
        "objective.reference has no effect: grpo uses no reference",
    ),
    ({"objective": "grpo", "max_length": 9}, ONLINE, "objective.max_length has no effect: only the reduction"),
    ({"push_private": False}, ONLINE, "checkpoint.push_private has no effect: checkpoint.push_to_hub is not set"),
    ({"project": "mine"}, ONLINE, "run.project has no effect: run.trackers does not contain wandb"),
    ({"lora_base_dtype": "bfloat16"}, ONLINE, "lora.base_dtype has no effect: no adapter is trained"),
    ({"warm_start_batch": 3, "warm_start_schedule": "linear"}, ONLINE, "warm_start.batch, warm_start.schedule have no"),
    ({"warm_start_options": {"digits": 2}}, ONLINE, "warm_start.options has no effect: warm_start.steps is 0"),
    ({"task": "addition", "warm_start_steps": 2}, ONLINE, "warm_start.steps has no effect: the model that was passed"),
    ({"patience": 2}, ONLINE, "eval.patience has no effect: eval.every is 0"),
    # another source takes precedence
    ({"train_data": "a.jsonl"}, PASSED, "data.train has no effect"),
    ({"eval_data": "a.jsonl"}, PASSED, "data.eval has no effect"),
    # nothing is sampled
    ({"group_size": 4, **SFT}, ONLINE, "sampling.group_size has no effect: training does not sample"),
    ({"top_p": 0.9, "top_k": 5, **SFT}, ALONE, "sampling.top_p, sampling.top_k have no effect: nothing is sampled"),
    ({"max_tokens": 9, **SFT}, ALONE, "sampling.max_tokens has no effect: nothing is sampled"),
    ({"reward_funcs": ["math_answer"], **SFT}, ALONE, "rewards.funcs has no effect: no completion is scored"),
    ({"eval_samples": 4, "eval_greedy": False, **SFT}, ALONE, "eval.samples, eval.greedy have no effect: there are no"),
    ({"eval_every": 4, **SFT}, ALONE, "eval.every has no effect: there is no held-out data"),
    ({"eval_every": 4, "eval_problems": 0, **SFT}, ONLINE, "eval.every has no effect: there is no held-out data"),
]
EFFECTIVE: list[tuple[dict[str, Any], Given]] = [
    ({"task_options": {}}, ONLINE),  # set to its default
    ({"reference": "auto", "top_p": 1.0, **SFT}, ALONE),
    ({"task": "addition", "task_options": {"digits": 3}}, ONLINE),
    ({"reference": "initial", "group_size": 4, "max_tokens": 4, "reward_funcs": ["math_answer"]}, ONLINE),
    ({"top_p": 0.9, **SFT}, ONLINE),  # used in evaluation
    ({"eval_every": 4, "patience": 1, **SFT}, Given(held_out="pairs", model=True)),
    ({"eval_every": 4, "eval_groups": "a.jsonl", **SFT}, ALONE),
    ({"task": "addition", "warm_start_options": {"digits": 2}, "warm_start_demonstrations": 5, **SFT}, ALONE),
    ({"lora_rank": 2, "lora_base_dtype": "bfloat16"}, ONLINE),
    ({"lora_base_dtype": "bfloat16"}, Given(held_out="problems", rewards=True, model=True, adapter=True)),
    ({"train_problems": 5, "eval_problems": 5}, PASSED),
]


def said(settings: dict[str, Any], given: Given) -> list[str]:
    return [notice for notice in resolve(TrainConfig(**settings), given).notices if " no effect: " in notice]


@pytest.mark.parametrize(("settings", "given", "message"), CASES)
def test_notice_about_a_setting_without_an_effect_states_the_reason(
    settings: dict[str, Any], given: Given, message: str
):
    (one,) = said(settings, given)
    assert one.startswith(message)


@pytest.mark.parametrize(("settings", "given"), EFFECTIVE)
def test_settings_with_an_effect_or_with_their_default_give_no_notice(settings: dict[str, Any], given: Given):
    assert said(settings, given) == []


def test_a_run_prints_its_notices_once_and_not_after_a_resume(tmp_path: Path):
    settings = {"objective": "grpo", "reference": "initial", "task_options": {"digits": 3}, "steps": 1}
    patterns = ["grpo uses no reference", r"data\.task is not set", "10 of 10 held-out prompts are training prompts"]
    with noticed(*patterns) as said, stopped_at(1):
        trainer(tmp_path, **settings).train()
    assert len(said) == len(patterns)
    with noticed() as said:
        trainer(tmp_path, **settings).train(resume=True)
    assert said == []


PAIRS = [{"prompt": one, "chosen": one, "rejected": DIGITS[-1 - int(one)]} for one in DIGITS]
OFFLINE = {"objective": "dpo", "reference": "auto", "reward_funcs": [], "steps": 1}


@pytest.mark.parametrize(
    ("data", "held", "settings", "shared"),
    [
        (ROWS, ROWS[:4], {}, "4 of 4"),  # the same rows
        (ROWS[:7], [dict(row) for row in ROWS[5:]], {}, "2 of 5"),  # some of them
        (PAIRS[:6], PAIRS[4:], OFFLINE, "2 of 6"),  # compared answers
        ([{"prompt": "1", "completion": "1"}], ROWS[:2], {"objective": "sft", "reference": "auto"}, "1 of 2"),
    ],
)
def test_held_out_prompts_among_the_training_prompts_are_counted(
    data: Any, held: Any, settings: dict[str, Any], shared: str, tmp_path: Path
):
    with noticed(f"{shared} held-out prompts are training prompts too"):
        trainer(tmp_path, data=data, held=held, **{"steps": 1, **settings}).train()


def test_answers_that_no_reward_reads_and_answers_that_no_row_has_are_noticed(tmp_path: Path):
    def formatted(completions: Any) -> list[float]:
        return [float(len(text) % 2) for text in completions]

    def graded(completions: Any, answer: Any = None) -> list[float]:
        return [float(len(text) % 2) for text in completions]

    rows = [{**row, "answer": row["digit"]} for row in ROWS]
    with noticed("no reward reads the column .answer.") as said:
        trainer(tmp_path / "a", rewards=formatted, data=rows, held=None, steps=1).train()
    assert len(said) == 1
    with noticed("the reward .graded. names the argument .answer., but no row has this column") as said:
        trainer(tmp_path / "b", rewards=graded, held=None, steps=1).train()
    assert len(said) == 1
    with noticed() as said:
        trainer(tmp_path / "c", rewards=graded, data=rows, held=None, steps=1).train()
    assert said == []


def test_other_held_out_prompts_give_no_notice(tmp_path: Path):
    with noticed() as said:
        trainer(tmp_path, data=ROWS[:5], held=ROWS[5:], steps=1).train()
    assert said == []
