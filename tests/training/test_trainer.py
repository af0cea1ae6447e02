"""The trainer: accepted inputs, rejected inputs, and learning."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from gvpo import runfiles
from gvpo.config import TrainConfig
from gvpo.config.recipe import restore_config
from gvpo.errors import ConfigError, DataError, ModelError, RewardError, RunError
from gvpo.model.model import load_model, save_model
from gvpo.model.tokenizer import load_tokenizer
from gvpo.rollout.rewards import reward_functions
from gvpo.training.checkpoint.run_directory import free_directory
from gvpo.training.trainer import Trainer
from gvpo.types import Problem
from tests.fakes import CHAT_TEMPLATE, byte_tokenizer, tiny_model
from tests.training.toy import DIGITS, ROWS, config, lines, model, noticed, same, share, tokenizer, trainer, weights

LEARNS: dict[str, dict[str, Any]] = {
    "gvpo": {"beta": 0.05},
    "grpo": {"groups_per_update": 5},
    "gspo": {"groups_per_update": 5, "clip_low": 0.2, "clip_high": 0.2},
    "rloo": {"groups_per_update": 5},
}
WRITTEN = [{"prompt": digit, "completion": (DIGITS * 2)[n + 1]} for n, digit in enumerate(DIGITS)]
NO_EVAL: dict[str, Any] = {"held": [], "eval_problems": 0}


@pytest.mark.parametrize("objective", LEARNS)
def test_it_learns(tmp_path: Path, objective: str):
    """It starts from 0.1; on seeds 0, 1, 2 it ends between 0.52 and 0.90."""
    batch = {"steps": 30, "prompts_per_step": 10, "group_size": 8, "learning_rate": 1e-2, "rollouts_every": 0}
    trainer(tmp_path, objective=objective, **batch, **LEARNS[objective], **NO_EVAL).train()
    rewards = [line["reward/mean"] for line in lines(tmp_path)]
    assert rewards[0] < 0.15
    assert rewards[-1] > 0.4


def test_excluded_tokens_are_never_sampled(tmp_path: Path):
    with noticed("an exclusion"):
        trainer(tmp_path, steps=2, max_tokens=6, sampling_allow=["[0-7]"], sampling_ban=["text:22"], **NO_EVAL).train()
    texts = [row.text or "" for row in runfiles.read_rollouts(runfiles.rollout_path(tmp_path, 2))]
    assert {letter for text in texts for letter in text} == set("01234567")
    assert not any("22" in text for text in texts)


def test_an_exclusion_that_leaves_nothing_is_an_error_before_the_first_step(tmp_path: Path):
    with pytest.raises(ConfigError, match="no token at all"):
        trainer(tmp_path, objective="rloo", sampling_allow=["text:hello"], **NO_EVAL).train()
    assert not (tmp_path / "metrics.jsonl").exists()


def test_supervised_training_on_rows_with_answers_lowers_the_loss(tmp_path: Path):
    policy = model()
    settings = {"objective": "sft", "steps": 80, "prompts_per_step": 10, "learning_rate": 1e-2, "max_tokens": 4}
    args = config(tmp_path, **settings)
    Trainer(policy, args=args, train_dataset=WRITTEN, processing_class=tokenizer()).train()
    first, *_, last = lines(tmp_path)
    assert first["train/loss"] > 2
    assert last["train/loss"] < 0.3
    assert first["sft/nll"] == pytest.approx(first["train/loss"])
    assert "reward/mean" not in first
    (row, *_) = runfiles.read_rollouts(runfiles.rollout_path(tmp_path, 1))
    assert {"prompt": row.prompt, "completion": row.text} in WRITTEN
    assert (row.reward, row.source, row.reason) == (None, "demonstration", "")
    assert len(row.tokens) == 2


def test_supervised_training_is_evaluated_by_rewards(tmp_path: Path):
    def exact(completions: Any, completion: Any, **_: Any) -> list[float]:
        return [float(text == wanted) for text, wanted in zip(completions, completion, strict=True)]

    settings = {"objective": "sft", "steps": 80, "prompts_per_step": 10, "learning_rate": 1e-2, "max_tokens": 4}
    summary = trainer(tmp_path, rewards=exact, data=WRITTEN, held=WRITTEN, **settings).train()
    assert summary["accuracy_after"] > summary["accuracy_before"] + 0.5


def test_supervised_training_on_a_tasks_demonstrations(tmp_path: Path):
    settings = {"objective": "sft", "task": "addition", "steps": 12, "warm_start_demonstrations": 50}
    args = config(tmp_path, **settings, learning_rate=1e-2, max_tokens=40, prompts_per_step=8, eval_problems=0)
    Trainer(tiny_model(), args=args, processing_class=byte_tokenizer()).train()
    losses = [line["train/loss"] for line in lines(tmp_path)]
    assert losses[-1] < losses[0] / 2


# accepted inputs


def test_the_summary_and_the_files(tmp_path: Path):
    summary = trainer(tmp_path, steps=2).train()
    assert set(summary) == {
        "accuracy_of",
        "accuracy_before",
        "accuracy_after",
        "accuracy_greedy_before",
        "accuracy_greedy_after",
        "best_accuracy",
        "best_step",
        "steps",
        "seconds",
        "objective",
        "model",
        "report",
        "reward_first",
        "reward_last",
        "reward_steps",
        "warnings",
    }
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert restore_config((tmp_path / "config.json").read_text()) == restore_config(
        json.dumps(config(tmp_path, steps=2, beta=0.1, rollout_old_logprobs="trainer").to_recipe())
    )
    assert (summary["steps"], summary["objective"], summary["report"]) == (2, "gvpo", str(tmp_path / "report.html"))
    assert "<html" in (tmp_path / "report.html").read_text()


@pytest.mark.filterwarnings("ignore:AutoTokenizer loads")  # as Qwen2Tokenizer; the file wins
def test_the_final_model_is_the_trained_one_with_its_tokenizer(tmp_path: Path):
    policy = model()
    summary = trainer(tmp_path, policy=policy, checkpoint_verify=True, **NO_EVAL).train()
    assert same(weights(load_model(summary["model"])), weights(policy))
    assert load_tokenizer(summary["model"])("1234").input_ids == tokenizer()("1234").input_ids


@pytest.mark.filterwarnings("ignore:AutoTokenizer loads")  # as Qwen2Tokenizer; the file wins
def test_a_path_trains_the_same_as_the_loaded_model(tmp_path: Path):
    save_model(model(), tokenizer(), tmp_path / "start")
    ends = []
    for name, given in (("object", model()), ("path", str(tmp_path / "start"))):
        args = config(tmp_path / name, eval_problems=0)
        one = Trainer(
            given, share(), args=args, train_dataset=ROWS, processing_class=tokenizer() if name == "object" else None
        )
        one.train()
        ends.append(weights(one.model))
    assert same(*ends)
    assert lines(tmp_path / "object") == lines(tmp_path / "path")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_trained_in_float32(tmp_path: Path, dtype: torch.dtype):
    policy = model().to(dtype)
    start = weights(policy.float())
    trainer(tmp_path, policy=policy.to(dtype), steps=1, learning_rate=1e-5, **NO_EVAL).train()
    assert {parameter.dtype for parameter in policy.parameters()} == {torch.float32}
    assert not same(weights(policy), start)


def test_datasets_rewards_and_names_of_every_kind_give_the_same_run(tmp_path: Path):
    rows = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a, b in zip(range(6), range(3, 9), strict=True)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "own.py").write_text(
        "def own(completions, answer, **_):\n    return [float(len(c)) for c in completions]\n"
    )

    def own(completions: Any, answer: Any, **_: Any) -> list[float]:
        return [float(len(text)) for text in completions]

    file = f"{tmp_path}/own.py:own"
    kinds: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "callable, rows": (own, rows, {}),
        "list of names, datasets": ([file], datasets.Dataset.from_list(rows), {}),
        "a name, path": (file, tmp_path / "rows.jsonl", {}),
        "settings": (None, None, {"reward_funcs": [file], "train_data": str(tmp_path / "rows.jsonl")}),
    }
    runs = []
    for name, (rewards, data, settings) in kinds.items():
        args = config(tmp_path / name, steps=2, eval_problems=0, prompts_per_step=3, **settings)
        Trainer(tiny_model(), rewards, args=args, train_dataset=data, processing_class=byte_tokenizer()).train()
        runs.append(lines(tmp_path / name))
    assert all(run == runs[0] for run in runs[1:])
    assert runs[0][0]["reward/own"] == runs[0][0]["reward/mean"] > 0


def test_several_rewards_are_logged_by_name_and_weighted(tmp_path: Path):
    def other(completions: Any, **_: Any) -> list[float]:
        return [float(index) for index in range(len(completions))]

    trainer(tmp_path, rewards=[share(), other], reward_weights=[1.0, 0.5], steps=1, **NO_EVAL).train()
    (line,) = lines(tmp_path)
    assert line["reward/other"] == 1.5
    assert line["reward/mean"] == pytest.approx(line["reward/digits"] + 0.75)


def test_a_tasks_own_reward_is_the_default(tmp_path: Path):
    args = config(tmp_path, task="addition", steps=1, train_problems=20, eval_problems=2, max_tokens=4)
    one = Trainer(tiny_model(), args=args, processing_class=byte_tokenizer())
    one.train()
    assert list(one.rewards) == ["boxed_answer"]
    assert lines(tmp_path)[1]["reward/boxed_answer"] == 0.0


def test_chat_prompts_go_through_the_template_and_rewards_receive_messages(tmp_path: Path):
    def says(completions: Any, prompts: Any, **_: Any) -> list[float]:
        return [
            float(c[0]["role"] == "assistant" and p[-1]["content"] == "hi")
            for c, p in zip(completions, prompts, strict=True)
        ]

    rows = [{"prompt": [{"role": "user", "content": "hi"}]}]
    args = config(tmp_path, steps=1, eval_problems=0, system_prompt="Be brief.", prompts_per_step=2)
    Trainer(tiny_model(), says, args=args, train_dataset=rows, processing_class=byte_tokenizer(CHAT_TEMPLATE)).train()
    assert lines(tmp_path)[0]["reward/mean"] == 1.0
    (row, *_) = runfiles.read_rollouts(runfiles.rollout_path(tmp_path, 1))
    assert row.prompt == "<bos>[system]Be brief.\n[user]hi\n[assistant]"


def test_problems_can_be_passed_as_objects(tmp_path: Path):
    problems = [Problem("7", "seven", {"digit": "7"})]
    trainer(tmp_path, data=problems, prompts_per_step=1, steps=1, **NO_EVAL).train()
    assert {row.group for row in runfiles.read_rollouts(runfiles.rollout_path(tmp_path, 1))} == {"seven"}


def test_without_a_run_directory_a_free_one_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in ("gvpo", "gvpo-2"):
        trainer(None, steps=1, **NO_EVAL).train()
        assert (tmp_path / "runs" / name / "summary.json").is_file()
    assert free_directory(tmp_path / "runs", "gvpo").name == "gvpo-3"


# rejected inputs


def refused(tmp_path: Path, *args: Any, **keywords: Any) -> None:
    settings = keywords.pop("settings", {})
    own = {"train_dataset": ROWS, "processing_class": tokenizer(), **keywords}
    Trainer(*(args or (model(), share())), args=config(tmp_path / "run", **settings), **own).train()


def second(completions: Any, **_: Any) -> list[float]:
    return [0.0] * len(completions)


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "message"),
    [
        ((model(),), {}, ConfigError, "there is no reward: set rewards.funcs, or pass reward_funcs"),
        ((), {"train_dataset": None}, ConfigError, "there is nothing to train on"),
        ((), {"train_dataset": []}, DataError, "the dataset is empty"),
        ((), {"train_dataset": [{"question": "1"}]}, DataError, "rename 'question' to `prompt`"),
        ((), {"settings": {"task": "additon"}, "train_dataset": None}, ConfigError, "'additon' does not exist"),
        ((), {"settings": {"reward_weights": [1.0, 2.0]}}, ConfigError, "rewards.weights has 2 values for 1 rewards"),
        ((model(), [second, second]), {}, ConfigError, "two rewards are called 'second'; give them different names"),
        ((model(), "exact_mach"), {}, RewardError, "did you mean 'exact_match'"),
        (
            (),
            {"settings": {"accuracy_reward": "wrong"}},
            ConfigError,
            "rewards.accuracy_reward='wrong' is not one of the rewards: digits",
        ),
        ((), {"peft_config": object()}, ModelError, "is object; only LoRA is supported"),
        ((), {"settings": {"objective": "gvp"}}, ConfigError, "choose one of"),
        ((), {"settings": {"group_size": 1}}, ConfigError, "set sampling.group_size to 2 or more"),
        (("no/such/model", share()), {}, ModelError, "there is no directory 'no/such/model'"),
        ((), {"processing_class": None}, ConfigError, "pass processing_class"),
        ((), {"train_dataset": [{"prompt": "1" * 64, "digit": "1"}]}, DataError, "the model's context is 64"),
    ],
)
def test_errors_are_one_line_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: Any, keywords: Any, error: type[Exception], message: str
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(error, match=message) as caught:
        refused(tmp_path, *arguments, **keywords)
    assert "\n" not in str(caught.value)
    if not isinstance(caught.value, DataError) or "context" not in str(caught.value):
        assert not (tmp_path / "run/config.json").exists()  # no file was written


def test_a_run_prints_and_stores_what_it_resolved(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    chosen = {"reference": "auto", "groups_per_update": 2, "steps": 1}
    line = "gvpo: reference sampler, beta 0.3 (several updates per rollout; `gvpo docs objectives`)"
    trainer(tmp_path / "a", **chosen).train()
    assert capsys.readouterr().err.count(line) == 1
    stored = json.loads((tmp_path / "a/config.json").read_text())["objective"]
    assert (stored["reference"], stored["beta"]) == ("sampler", 0.3)
    trainer(tmp_path / "a", **chosen).train(resume=True)
    assert line not in capsys.readouterr().err


def test_a_copy_of_the_policy_is_announced_with_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("gvpo.training.build.WORTH_SAYING", 1)
    trainer(tmp_path / "copy", reference="every:2", steps=1).train()
    assert capsys.readouterr().err.count("gvpo: the reference is a copy of the policy, which takes 0.0 GB") == 1
    trainer(tmp_path / "none", reference="previous", steps=1).train()
    assert "copy of the policy" not in capsys.readouterr().err


def test_the_notice_about_rloo_is_printed_once_and_without_source_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = trainer(tmp_path, reference="previous", steps=1)
    run.check()
    run.train()
    printed = capsys.readouterr().err
    (line,) = [each for each in printed.splitlines() if "beta times RLOO" in each]
    assert line.startswith("gvpo: warning: GVPO with objective.reference='previous'")
    assert ".py:" not in printed


def test_a_taken_directory_is_rejected(tmp_path: Path):
    trainer(tmp_path, steps=1, **NO_EVAL).train()
    with pytest.raises(RunError, match="already contains a run"):
        trainer(tmp_path, steps=1, **NO_EVAL).train()


def test_reward_functions_by_name_in_order():
    settings = TrainConfig(reward_funcs=["exact_match", "gvpo.rewards.verifiers.length:token_cost"])
    assert list(reward_functions(settings, None)) == ["exact_match", "token_cost"]
    assert list(reward_functions(settings, second)) == ["second"]
    assert list(reward_functions(TrainConfig(task="gsm8k"), None)) == ["gsm8k"]
    assert reward_functions(TrainConfig(), None) == {}
