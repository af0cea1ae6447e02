"""A recipe from start to end: a new model, its warm start, the run."""

import gc
import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest

from gvpo import runfiles
from gvpo.config import TrainConfig
from gvpo.errors import ConfigError, RunError
from gvpo.model.model import load_model
from gvpo.rollout.sources.demonstrations import DemonstrationSource
from gvpo.training import warm_start as module
from gvpo.training.trainer import Trainer
from gvpo.training.warm_start import train_recipe
from tests.training.toy import INIT, lines, same, stopped_at, weights

pytestmark = pytest.mark.filterwarnings("ignore:AutoTokenizer loads")  # as Qwen2Tokenizer; the file wins

VOCABULARY = [*"0123456789+=\n", "\\boxed{", "}"]


def recipe(run_dir: Path, **settings: Any) -> TrainConfig:
    small = {
        "run_dir": run_dir,
        "model_init": INIT,
        "vocabulary": VOCABULARY,
        "task": "addition",
        "task_options": {"digits": 1},
        "train_problems": 20,
        "eval_problems": 5,
        "warm_start_steps": 4,
        "warm_start_batch": 8,
        "warm_start_demonstrations": 40,
        "group_size": 4,
        "max_tokens": 10,
        "reference": "initial",
        "steps": 3,
        "prompts_per_step": 4,
        "learning_rate": 1e-3,
        "checkpoint_every": 2,
        "reward_funcs": ["boxed_answer", "token_cost"],  # the second differs between rows from the start
        "reward_workers": 1,
    }
    return TrainConfig(**{**small, **settings})


def final_weights(run_dir: Path) -> Any:
    return weights(load_model(json.loads((run_dir / "summary.json").read_text())["model"]))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipes") / "unbroken"
    train_recipe(recipe(path))
    return path


def test_the_warm_start_is_a_separate_run_and_the_run_starts_from_its_model(unbroken: Path):
    warm = unbroken / "warm-start"
    assert [line["step"] for line in lines(warm)] == [1, 2, 3, 4]
    assert lines(warm)[-1]["train/loss"] < lines(warm)[0]["train/loss"]
    assert json.loads((warm / "config.json").read_text())["objective"]["name"] == "sft"
    assert [line["step"] for line in lines(unbroken)] == [0, 1, 2, 3]
    assert lines(unbroken)[1]["kl/reference"] == pytest.approx(0.0, abs=1e-6)
    assert not same(final_weights(unbroken), final_weights(warm))


def test_the_warm_model_is_the_reference(unbroken: Path, tmp_path: Path):
    """Training from the warm model directly gives the same run."""
    config = recipe(tmp_path, warm_start_steps=0)
    start = json.loads((unbroken / "warm-start/summary.json").read_text())["model"]
    Trainer(start, args=config).train()
    assert lines(tmp_path) == lines(unbroken)


@pytest.mark.parametrize(
    ("task", "row"),
    [("gsm8k", {"question": "1+2?", "answer": "It is 3.\n#### 3"}), ("countdown", {"nums": [1, 2], "target": 3})],
)
def test_a_warm_start_learns_from_the_tasks_demonstrations_if_the_run_has_its_own_rows(
    tmp_path: Path, task: str, row: dict[str, Any]
):
    """The demonstrations come from the task, the problems of the run from the file."""
    (tmp_path / "own.jsonl").write_text(json.dumps(row) + "\n")
    other = {"question": "4+4?", "answer": "It is 8.\n#### 8"}
    for name in ("train.jsonl", "test.jsonl"):
        (tmp_path / name).write_text(json.dumps(other) + "\n")
    settings = {
        "task": task,
        "task_options": {},
        "warm_start_options": {"path": str(tmp_path)} if task == "gsm8k" else {},
        "train_data": str(tmp_path / "own.jsonl"),
        "train_problems": None,
        "eval_problems": 0,
        "warm_start_steps": 1,
        "steps": 1,
        "prompts_per_step": 1,
        "model_init": {**INIT, "max_position_embeddings": 2048},
        "vocabulary": [chr(code) for code in range(32, 127)] + ["\n"],
        "reward_funcs": ["token_cost"],
    }
    train_recipe(recipe(tmp_path / "run", **settings))
    (warm,) = lines(tmp_path / "run/warm-start")
    assert warm["groups/total"] == 8
    (prompt,) = {row.prompt for row in runfiles.read_rollouts(runfiles.rollout_path(tmp_path / "run", 1))}
    assert ("1+2?" if task == "gsm8k" else "numbers 1, 2,") in prompt


def assert_same_run(run_dir: Path, unbroken: Path) -> None:
    assert lines(run_dir) == lines(unbroken)
    assert lines(run_dir / "warm-start") == lines(unbroken / "warm-start")
    assert same(final_weights(run_dir), final_weights(unbroken))


def test_a_warm_start_does_not_keep_a_second_model_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made: list[weakref.ref[Any]] = []
    alive: list[int] = []
    rollout = DemonstrationSource.rollout

    def load(**settings: Any) -> Any:
        model = load_model(**settings)
        made.append(weakref.ref(model))
        return model

    def counted(source: DemonstrationSource, step: int) -> Any:
        gc.collect()
        alive.append(sum(model() is not None for model in made))
        return rollout(source, step)

    monkeypatch.setattr(module, "load_model", load)
    monkeypatch.setattr(DemonstrationSource, "rollout", counted)
    train_recipe(recipe(tmp_path, warm_start_steps=1, steps=1))
    assert (len(made), alive) == (2, [1])


@pytest.mark.parametrize("stop", [1, 3])
def test_a_run_stopped_in_its_warm_start_resumes(tmp_path: Path, unbroken: Path, stop: int):
    rollout = DemonstrationSource.rollout

    def interrupted(source: DemonstrationSource, step: int) -> Any:
        if step == stop:
            raise KeyboardInterrupt
        return rollout(source, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DemonstrationSource, "rollout", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_recipe(recipe(tmp_path))
    with pytest.raises(RunError, match="warm-start already contains a run"):
        train_recipe(recipe(tmp_path))
    train_recipe(recipe(tmp_path), resume=True)
    assert_same_run(tmp_path, unbroken)


@pytest.mark.parametrize("stop", [1, 3])
def test_a_run_stopped_after_its_warm_start_resumes_even_after_a_move(tmp_path: Path, unbroken: Path, stop: int):
    with stopped_at(stop):
        train_recipe(recipe(tmp_path / "here"))
    shutil.move(tmp_path / "here", tmp_path / "there")
    train_recipe(recipe(tmp_path / "there"), resume=True)
    assert_same_run(tmp_path / "there", unbroken)


def test_a_finished_recipe_trains_nothing_more(unbroken: Path):
    before = (unbroken / "metrics.jsonl").read_bytes()
    train_recipe(recipe(unbroken), resume=True)
    assert (unbroken / "metrics.jsonl").read_bytes() == before


def test_seeds_give_other_models_and_other_runs(tmp_path: Path, unbroken: Path):
    train_recipe(recipe(tmp_path, seed=1))
    assert lines(tmp_path) != lines(unbroken)


def test_without_a_warm_start_the_fresh_model_is_trained(tmp_path: Path):
    train_recipe(recipe(tmp_path, warm_start_steps=0, steps=1))
    assert not (tmp_path / "warm-start").exists()
    assert [line["step"] for line in lines(tmp_path)] == [0, 1]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"model_init": None, "vocabulary": None}, ConfigError, "there is no model: set model.path"),
        ({"vocabulary": None}, ConfigError, "model.init needs a tokenizer"),
        ({"objective": "gvp0"}, ConfigError, "objective.name='gvp0' does not exist"),
        ({"objective": "rloo", "beta": 0.1}, ConfigError, "objective.beta is not a keyword of rloo"),
    ],
)
def test_errors_are_found_before_the_warm_start(
    tmp_path: Path, settings: dict[str, Any], error: type[Exception], message: str
):
    with pytest.raises(error, match=message):
        train_recipe(recipe(tmp_path / "run", **settings))
    assert not (tmp_path / "run").exists()


def test_an_existing_run_is_not_overwritten(unbroken: Path):
    with pytest.raises(RunError, match="already contains a run"):
        train_recipe(recipe(unbroken))


def test_there_must_be_a_run_to_resume(tmp_path: Path):
    with pytest.raises(RunError, match="there is no run in"):
        train_recipe(recipe(tmp_path / "none"), resume=True)
