"""Settings without an effect, and held-out rows that are trained on: a warning each."""

import warnings
from pathlib import Path
from typing import Any

import pytest

from gvpo.config import TrainConfig
from gvpo.errors import GvpoWarning
from gvpo.training.objective import build_objective
from gvpo.training.unused_settings import Regime, UnusedSettingWarning, warn_of_unused
from tests.training.toy import DIGITS, ROWS, noticed, stopped_at, trainer

ONLINE: dict[str, bool] = {
    "samples": True,
    "evaluates": True,
    "compares": False,
    "needs_reference": True,
    "divides_by_length": False,
    "adapted": False,
    "demonstrates": False,
    "train_passed": False,
    "eval_passed": False,
}
WRITTEN = {"samples": False, "evaluates": False, "needs_reference": False}
CASES: list[tuple[dict[str, Any], dict[str, bool], str]] = [
    # without what they are for
    ({"task_options": {"digits": 3}}, {}, "data.task_options has no effect: data.task is not set"),
    ({"reference": "initial"}, {"needs_reference": False}, "objective.reference has no effect: gvpo uses no reference"),
    ({"max_length": 9}, {}, "objective.max_length has no effect: only the reduction 'constant'"),
    ({"push_private": False}, {}, "checkpoint.push_private has no effect: checkpoint.push_to_hub is not set"),
    ({"project": "mine"}, {}, "run.project has no effect: run.trackers does not name wandb"),
    ({"lora_base_dtype": "bfloat16"}, {}, "lora.base_dtype has no effect: no adapter is trained"),
    ({"warm_start_batch": 3, "warm_start_schedule": "linear"}, {}, "warm_start.batch, warm_start.schedule have no"),
    ({"warm_start_options": {"digits": 2}}, {}, "warm_start.options has no effect: warm_start.steps is 0"),
    ({"steps": 3, "epochs": 2}, {}, "train.steps has no effect: train.epochs decides"),
    ({"patience": 2}, {}, "eval.patience has no effect: eval.every is 0"),
    # another source counts
    ({"train_data": "a.jsonl"}, {"train_passed": True}, "data.train has no effect"),
    ({"eval_data": "a.jsonl"}, {"eval_passed": True}, "data.eval has no effect"),
    # nothing is sampled
    ({"group_size": 4}, {"samples": False}, "sampling.group_size has no effect: training samples nothing"),
    ({"top_p": 0.9, "top_k": 5}, WRITTEN, "sampling.top_p, sampling.top_k have no effect: nothing is sampled"),
    ({"max_tokens": 9}, WRITTEN, "sampling.max_tokens has no effect: nothing is sampled"),
    ({"reward_funcs": ["math_answer"]}, WRITTEN, "rewards.funcs has no effect: no completion is judged"),
    ({"eval_samples": 4, "eval_greedy": False}, WRITTEN, "eval.samples, eval.greedy have no effect: there are no"),
    ({"eval_every": 4}, WRITTEN, "eval.every has no effect: nothing is held out"),
]
EFFECTIVE: list[tuple[dict[str, Any], dict[str, bool]]] = [
    ({"task_options": {}}, {}),  # set, and as it would be anyway
    ({"reference": "auto", "top_p": 1.0}, WRITTEN),
    ({"task": "addition", "task_options": {"digits": 3}}, {}),
    ({"reference": "initial", "group_size": 4, "top_p": 0.9, "max_tokens": 4, "reward_funcs": ["math_answer"]}, {}),
    ({"max_tokens": 9}, {**WRITTEN, "divides_by_length": True}),
    ({"top_p": 0.9}, {"samples": False}),  # in evaluation
    ({"eval_every": 4, "patience": 1}, {"evaluates": False, "compares": True}),
    ({"warm_start_options": {"digits": 2}, "warm_start_demonstrations": 5}, {"demonstrates": True}),
    ({"train_problems": 5, "eval_problems": 5}, {"train_passed": True, "eval_passed": True}),
]


def said(config: TrainConfig, **changes: bool) -> list[str]:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        warn_of_unused(config, Regime(**{**ONLINE, **changes}))
    assert all(each.category is UnusedSettingWarning for each in found)
    return [str(each.message) for each in found]


@pytest.mark.parametrize(("settings", "regime", "message"), CASES)
def test_a_setting_without_an_effect_is_named_with_the_reason(
    settings: dict[str, Any], regime: dict[str, bool], message: str
):
    (one,) = said(TrainConfig(**settings), **regime)
    assert one.startswith(message)


@pytest.mark.parametrize(("settings", "regime"), EFFECTIVE)
def test_settings_with_an_effect_or_at_their_default_are_not_named(settings: dict[str, Any], regime: dict[str, bool]):
    assert said(TrainConfig(**settings), **regime) == []


def test_a_run_says_so_once_and_not_when_it_is_resumed(tmp_path: Path):
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
        (PAIRS[:6], PAIRS[4:], OFFLINE, "2 of 6"),  # answers that are compared
        ([{"prompt": "1", "completion": "1"}], ROWS[:2], {"objective": "sft", "reference": "auto"}, "1 of 2"),
    ],
)
def test_held_out_prompts_that_are_trained_on_are_counted(
    data: Any, held: Any, settings: dict[str, Any], shared: str, tmp_path: Path
):
    with noticed(f"{shared} held-out prompts are training prompts too"):
        trainer(tmp_path, data=data, held=held, **{"steps": 1, **settings}).train()


def test_other_held_out_prompts_are_no_cause_to_warn(tmp_path: Path):
    with noticed() as said:
        trainer(tmp_path, data=ROWS[:5], held=ROWS[5:], steps=1).train()
    assert said == []


@pytest.mark.parametrize("objective", ["grpo", "dr_grpo", "dapo", "rloo", "gspo", "gspo_token"])
@pytest.mark.parametrize(("cut", "named"), [({"top_p": 0.9}, "top_p=0.9"), ({"top_k": 5}, "top_k=5")])
def test_a_cut_distribution_is_said_to_bias_ratios(objective: str, cut: dict[str, Any], named: str):
    with pytest.warns(GvpoWarning, match=f"{named}.* {objective} compares with, so its gradient is biased"):
        build_objective(TrainConfig(objective=objective, **cut))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_objective(TrainConfig(objective=objective))
        build_objective(TrainConfig(objective=objective, sampling_ban=["digits"]))  # nobody does so by accident
        build_objective(TrainConfig(objective="sft", **cut))
