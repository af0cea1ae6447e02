"""Callbacks of transformers, evaluation without a run, and the history of a trainer."""

import math
from pathlib import Path
from typing import Any

import pytest
from transformers import EarlyStoppingCallback, PrinterCallback, ProgressCallback, TrainerCallback

from gvpo import runfiles
from gvpo.errors import ConfigError, ModelError, TrainingError
from gvpo.model.model import load_model
from gvpo.model.tokenizer import load_tokenizer
from gvpo.training.checkpoint.files import load
from gvpo.training.trainer import Trainer
from tests.training.toy import ROWS, config, lines, model, same, share, stopped_at, tokenizer, weights

NO_EVAL: dict[str, Any] = {"held": None, "eval_problems": 0}
CALLED = (
    "on_init_end",
    *("on_train_begin", "on_epoch_begin", "on_step_begin", "on_step_end", "on_epoch_end"),
    *("on_log", "on_evaluate", "on_save", "on_train_end"),
)


class Recorder(TrainerCallback):
    """Notes each event with the step, and what it was given."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []
        self.given: list[dict[str, Any]] = []
        self.states: list[tuple[Any, ...]] = []

    def __getattribute__(self, name: str) -> Any:
        if name not in CALLED:
            return super().__getattribute__(name)

        def note(args: Any, state: Any, control: Any, **given: Any) -> None:
            self.events.append((name, state.global_step))
            self.given.append({"args": args, **given})
            self.states.append((name, state.epoch, state.max_steps, state.best_metric, len(state.log_history)))

        return note


class Asks(TrainerCallback):
    """Sets a flag at an event of a step."""

    def __init__(self, event: str, step: int, flag: str, *, value: bool = True) -> None:
        self.event, self.step, self.flag, self.value = event, step, flag, value

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("on_") or name != self.event:
            return super().__getattribute__(name)

        def ask(args: Any, state: Any, control: Any, **given: Any) -> Any:
            if state.global_step == self.step:
                setattr(control, self.flag, self.value)
            return control

        return ask


def trainer(path: Path | None, *callbacks: Any, policy: Any = None, held: Any = ROWS, **settings: Any) -> Trainer:
    return Trainer(
        policy if policy is not None else model(),
        share(),
        args=config(path, **settings),
        train_dataset=ROWS,
        eval_dataset=held,
        processing_class=tokenizer(),
        callbacks=callbacks,
    )


def test_the_events_of_a_run_in_order(tmp_path: Path):
    recorder = Recorder()
    trainer(tmp_path, recorder, steps=3, eval_every=2, checkpoint_every=2).train()
    step = ["on_step_begin", "on_step_end"]
    assert [name for name, _ in recorder.events] == [
        *("on_init_end", "on_train_begin", "on_log", "on_evaluate"),
        *("on_epoch_begin", *step, "on_log"),
        *(*step, "on_log", "on_log", "on_evaluate", "on_save"),
        *(*step, "on_epoch_end", "on_log", "on_log", "on_evaluate", "on_save"),
        "on_train_end",
    ]
    assert [at for name, at in recorder.events if name == "on_step_end"] == [1, 2, 3]
    assert [at for name, at in recorder.events if name == "on_step_begin"] == [0, 1, 2]
    assert [at for name, at in recorder.events if name == "on_evaluate"] == [0, 2, 3]


def test_a_callback_receives_the_state_the_arguments_and_the_objects_of_the_run(tmp_path: Path):
    recorder = Recorder()
    run = trainer(tmp_path, recorder, steps=3, eval_every=1, beta=0.2)
    run.train()
    last = recorder.given[-1]
    assert last["model"] is run.model
    assert last["processing_class"] is run.tokenizer
    assert last["optimizer"].param_groups
    args = last["args"]
    assert (args.output_dir, args.max_steps, args.eval_steps, args.beta) == (str(tmp_path), 3, 1, 0.2)
    assert args.to_dict()["eval_strategy"] == "steps"
    with pytest.raises(AttributeError, match="no training argument 'deepspeed'"):
        _ = args.deepspeed
    state = run.state
    assert (state.global_step, state.max_steps, state.epoch) == (3, 3, pytest.approx(1.2))
    assert state.is_world_process_zero
    assert state.log_history is run.log_history
    assert state.best_metric == max(line["eval/accuracy"] for line in lines(tmp_path)[1:])
    assert recorder.states[0] == ("on_init_end", 0.0, 3, None, 0)


def test_the_history_has_the_lines_of_the_run_under_both_names(tmp_path: Path):
    run = trainer(tmp_path, steps=2)
    run.train()
    before, first, second, after = run.log_history
    assert (before["step"], first["step"], second["step"], after["step"]) == (0, 1, 2, 2)
    line = lines(tmp_path)[2]
    assert second["loss"] == second["train/loss"] == line["train/loss"]
    assert second["learning_rate"] == line["train/lr"]
    assert second["reward"] == line["reward/mean"]
    assert second["rewards/digits/mean"] == line["reward/digits"]
    assert after["eval_accuracy"] == after["eval/accuracy"] == line["eval/accuracy"]
    assert "eval/accuracy" not in second
    assert first["epoch"] == 0.4


def test_early_stopping_of_transformers_ends_a_run_and_keeps_its_patience_over_a_resume(tmp_path: Path):
    """A learning rate near 0 changes no answer, so no evaluation after that of step 1 is better."""
    settings = {"steps": 5, "eval_every": 1, "checkpoint_every": 1, "learning_rate": 1e-12, "eval_samples": 1}
    summary = trainer(tmp_path / "a", EarlyStoppingCallback(early_stopping_patience=2), **settings).train()
    assert summary["steps"] == 3
    with stopped_at(3):
        trainer(tmp_path / "b", EarlyStoppingCallback(early_stopping_patience=2), **settings).train()
    saved = load(tmp_path / "b/checkpoints/step-000002").state.callbacks["EarlyStoppingCallback"]
    assert saved[0]["attributes"] == {"early_stopping_patience_counter": 1}
    resumed = trainer(tmp_path / "b", EarlyStoppingCallback(early_stopping_patience=2), **settings)
    assert resumed.train(resume=True)["steps"] == 3
    assert lines(tmp_path / "a") == lines(tmp_path / "b")
    assert [entry["step"] for entry in resumed.log_history] == [0, 1, 1, 2, 2, 3, 3]


def test_early_stopping_without_evaluations_is_an_error_that_names_the_callback(tmp_path: Path):
    with pytest.raises(TrainingError, match=r"EarlyStoppingCallback.on_train_begin failed .* requires IntervalStrat"):
        trainer(tmp_path, EarlyStoppingCallback(), eval_every=0).train()


def test_the_printer_of_transformers_prints_the_metrics(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    trainer(tmp_path, PrinterCallback, ProgressCallback, steps=1, **NO_EVAL).train()
    assert f"'reward': '{lines(tmp_path)[0]['reward/mean']:.4g}'" in capsys.readouterr().out


@pytest.mark.parametrize("event", ["on_step_end", "on_evaluate", "on_save", "on_step_begin"])
def test_a_callback_ends_the_run_after_the_step_with_a_whole_result(tmp_path: Path, event: str):
    step = 1 if event == "on_step_begin" else 2
    asks = Asks(event, step, "should_training_stop")
    policy = model()
    run = trainer(tmp_path, asks, policy=policy, steps=6, eval_every=4, checkpoint_every=1)
    if event == "on_evaluate":
        run.add_callback(Asks("on_step_end", 2, "should_evaluate"))
    summary = run.train()
    assert summary["steps"] == 2
    assert [line["step"] for line in lines(tmp_path)] == [0, 1, 2]
    assert summary["accuracy_after"] == lines(tmp_path)[-1]["eval/accuracy"]
    assert same(weights(load_model(summary["model"])), weights(policy))
    assert (tmp_path / "report.html").exists()


def test_a_callback_that_asks_for_an_evaluation_without_held_out_data_does_not_end_the_run(tmp_path: Path):
    run = trainer(tmp_path, Asks("on_step_end", 1, "should_evaluate"), held=None, steps=2)
    assert run.train()["steps"] == 2
    assert not any("eval/accuracy" in line for line in lines(tmp_path))


def test_a_callback_asks_for_evaluations_and_checkpoints_or_cancels_them(tmp_path: Path):
    run = trainer(
        tmp_path,
        Asks("on_step_end", 1, "should_evaluate"),
        Asks("on_step_end", 2, "should_evaluate", value=False),
        Asks("on_step_end", 1, "should_save"),
        Asks("on_step_end", 2, "should_save", value=False),
        steps=3,
        eval_every=2,
        checkpoint_every=2,
        checkpoint_keep=9,
    )
    run.train()
    assert [line["step"] for line in lines(tmp_path) if "eval/accuracy" in line] == [0, 1, 3]
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"step-000001", "step-000003"}


def test_callbacks_that_only_watch_change_nothing(tmp_path: Path):
    ends = []
    for name, callbacks in (("with", [Recorder()]), ("without", [])):
        policy = model()
        trainer(tmp_path / name, *callbacks, policy=policy, steps=3, eval_every=2).train()
        ends.append(weights(policy))
    assert same(*ends)
    assert lines(tmp_path / "with") == lines(tmp_path / "without")


def test_a_callback_that_raises_ends_the_run_with_an_error_that_names_it(tmp_path: Path):
    class Fails(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            raise ValueError("no\nroom")

    with pytest.raises(
        TrainingError, match=r"the callback Fails.on_step_end failed after step 1 \(ValueError: no room\); fix"
    ):
        trainer(tmp_path, Fails(), steps=2, **NO_EVAL).train()


@pytest.mark.parametrize("wrong", [print, object(), "early stopping"])
def test_something_else_is_no_callback(wrong: Any):
    with pytest.raises(ConfigError, match=r"pass instances of transformers\.TrainerCallback"):
        trainer(None, wrong)


def test_callbacks_are_added_and_removed(tmp_path: Path):
    recorder = Recorder()
    run = trainer(tmp_path, recorder, PrinterCallback, steps=1, **NO_EVAL)
    run.remove_callback(PrinterCallback)
    run.remove_callback(recorder)
    with pytest.raises(ConfigError, match="not one of the trainer's callbacks"):
        run.remove_callback(recorder)
    run.train()
    assert [name for name, _ in recorder.events] == ["on_init_end"]


# evaluation outside of a run


def test_an_evaluation_before_and_after_training_equals_that_of_the_run(tmp_path: Path):
    run = trainer(tmp_path / "run", Recorder(), steps=4, learning_rate=1e-1)
    before = run.evaluate()
    assert not (tmp_path / "run").exists()
    summary = run.train()
    after = run.evaluate()
    assert before["eval/accuracy"] == before["eval_accuracy"] == summary["accuracy_before"]
    assert after["eval/accuracy"] == summary["accuracy_after"]
    assert after["eval/reward"] != before["eval/reward"]
    assert {key: value for key, value in after.items() if key in lines(tmp_path / "run")[-1]} == {
        key: value for key, value in lines(tmp_path / "run")[-1].items() if key in after
    }
    assert run.log_history[-1]["eval/accuracy"] == after["eval/accuracy"]
    assert runfiles.read_json(tmp_path / "run/summary.json")["steps"] == 4


def test_held_out_pairs_are_evaluated_before_and_after_training(tmp_path: Path):
    pairs = [{"prompt": digit, "chosen": digit * 2, "rejected": "9"} for digit in "012345"]
    run = Trainer(
        model(),
        args=config(tmp_path, objective="dpo", steps=3, learning_rate=3e-2, eval_every=1),
        train_dataset=pairs,
        eval_dataset=pairs,
        processing_class=tokenizer(),
    )
    before = run.evaluate()
    assert (before["eval/pair_accuracy"], before["eval/pair_margin"]) == (0.5, 0.0)
    summary = run.train()
    after = run.evaluate()
    assert after["eval/pair_accuracy"] == summary["accuracy_after"]
    assert after["eval/pair_margin"] == pytest.approx(lines(tmp_path)[-1]["eval/pair_margin"])
    assert not math.isclose(after["eval/pair_margin"], 0.0)


def test_an_evaluation_without_held_out_data_is_an_error():
    with pytest.raises(ConfigError, match=r"nothing to evaluate on: pass eval_dataset, or set data\.eval"):
        trainer(None, **NO_EVAL).evaluate()


# saving


@pytest.mark.filterwarnings("ignore:AutoTokenizer loads")  # as Qwen2Tokenizer; the file wins
def test_the_model_is_saved_with_its_tokenizer(tmp_path: Path):
    run = trainer(tmp_path / "run", steps=1, **NO_EVAL)
    run.train()
    run.save_model(tmp_path / "model")
    assert same(weights(load_model(tmp_path / "model")), weights(run.model))
    assert load_tokenizer(tmp_path / "model")("123").input_ids == tokenizer()("123").input_ids


def test_without_a_directory_the_model_is_saved_in_that_of_the_run(tmp_path: Path):
    run = trainer(tmp_path / "run", steps=1, **NO_EVAL)
    run.train()
    run.save_model()
    assert same(weights(load_model(tmp_path / "run" / "model")), weights(run.model))
    with pytest.raises(ConfigError, match="there is no directory to save in; pass output_dir, or set run_dir"):
        trainer(None, **NO_EVAL).save_model()


def test_of_a_lora_model_the_adapter_is_saved(tmp_path: Path):
    peft = pytest.importorskip("peft")
    run = trainer(None, lora_rank=2, **NO_EVAL)
    run.save_model(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "model.safetensors").exists()
    assert peft.LoraConfig.from_pretrained(tmp_path).r == 2
    assert (tmp_path / "tokenizer.json").is_file()


def test_a_model_that_cannot_be_saved_is_an_error(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="cannot save the model to"):
        trainer(None, **NO_EVAL).save_model(tmp_path / "file")
