"""A resumed run writes the same lines and the same weights as an unbroken one."""

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from gvpo import runfiles
from gvpo.errors import RunError
from gvpo.training.checkpoint.files import Checkpoints
from tests.training.toy import lines, model, noticed, same, stopped_at, trainer, weights

STEPS = 5
COMMON: dict[str, Any] = {
    "steps": STEPS,
    "checkpoint_every": 2,
    "eval_every": 2,
    "schedule": "linear",
    "warmup_updates": 2,
    "weight_decay": 0.01,
    "rollouts_every": 1,
}
RUNS: dict[str, dict[str, Any]] = {
    "initial": {"reference": "initial"},
    "every two": {"reference": "every:2", "groups_per_update": 2},
    "every three": {"reference": "every:3"},  # a checkpoint is between two refreshes
    "previous": {"reference": "previous", "groups_per_update": 1},
    "two passes of grpo": {"objective": "grpo", "passes": 2, "groups_per_update": 3},
    "kl in the reward": {"objective": "rloo", "kl_in_reward": 0.1},
}


def run(
    path: Path, name: str, *, resume: bool = False, **changes: Any
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    policy = model()
    summary = trainer(path, policy=policy, **{**COMMON, **RUNS[name], **changes}).train(resume=resume)
    return summary, weights(policy)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return each unbroken run: its directory, summary and weights."""

    @cache
    def once(name: str) -> tuple[Path, dict[str, Any], dict[str, torch.Tensor]]:
        path = tmp_path_factory.mktemp("unbroken")
        return path, *run(path, name)

    return once


def assert_same_run(path: Path, summary: dict[str, Any], end: dict[str, torch.Tensor], expected: Any) -> None:
    other, other_summary, other_end = expected
    assert lines(path) == lines(other)
    assert same(end, other_end)
    varying = ("seconds", "model", "report")
    assert {k: v for k, v in summary.items() if k not in varying} == {
        k: v for k, v in other_summary.items() if k not in varying
    }
    assert runfiles.rollout_steps(path) == runfiles.rollout_steps(other)
    for step in runfiles.rollout_steps(path):
        one, two = (runfiles.read_rollouts(runfiles.rollout_path(p, step)) for p in (path, other))
        assert one == two


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("stop", [4, 5])
def test_it_resumes_from_the_last_checkpoint_exactly(tmp_path: Path, unbroken: Any, name: str, stop: int):
    with stopped_at(stop):
        run(tmp_path, name)
    assert lines(tmp_path)[-1]["step"] == stop - 1
    assert_same_run(tmp_path, *run(tmp_path, name, resume=True), unbroken(name))


@pytest.mark.parametrize("stop", [1, 2])
def test_a_run_stopped_before_its_first_checkpoint_starts_over(tmp_path: Path, unbroken: Any, stop: int):
    with stopped_at(stop):
        run(tmp_path, "every two")
    assert_same_run(tmp_path, *run(tmp_path, "every two", resume=True), unbroken("every two"))


def test_it_may_be_stopped_more_than_once(tmp_path: Path, unbroken: Any):
    for resume, stop in ((False, 3), (True, 4), (True, 5)):
        with stopped_at(stop):
            run(tmp_path, "every two", resume=resume)
    assert_same_run(tmp_path, *run(tmp_path, "every two", resume=True), unbroken("every two"))


def test_seconds_include_all_sessions(tmp_path: Path):
    with stopped_at(5):
        run(tmp_path, "initial")
    state = tmp_path / "checkpoints/step-000004/trainer/state.json"
    assert 0 < json.loads(state.read_text())["seconds"] < run(tmp_path, "initial", resume=True)[0]["seconds"]


def test_a_finished_run_trains_nothing_more(tmp_path: Path, unbroken: Any):
    path = tmp_path / "copy"
    shutil.copytree(unbroken("initial")[0], path)
    before = (path / "metrics.jsonl").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gvpo.rollout.sources.live.LiveSource.rollout", None)
        assert_same_run(path, *run(path, "initial", resume=True), unbroken("initial"))
    assert (path / "metrics.jsonl").read_bytes() == before


def test_a_run_that_ended_early_stays_ended(tmp_path: Path):
    settings = {"eval_every": 1, "patience": 1}
    first, end = run(tmp_path, "initial", **settings)
    again, same_end = run(tmp_path, "initial", resume=True, **settings)
    assert first["steps"] == again["steps"] < STEPS
    assert same(end, same_end)


def test_a_warning_names_a_damaged_checkpoint_and_the_previous_one_is_used(tmp_path: Path, unbroken: Any):
    with stopped_at(5):
        run(tmp_path, "every two")
    with (tmp_path / "checkpoints/step-000004/model.safetensors").open("ab") as file:
        file.write(b"x")
    with noticed("step-000004 is corrupt: model.safetensors"):
        resumed = run(tmp_path, "every two", resume=True)
    assert_same_run(tmp_path, *resumed, unbroken("every two"))
    loaded = Checkpoints(tmp_path / "checkpoints", 2).newest()
    assert loaded is not None
    assert loaded.state.step == STEPS


def test_a_run_can_be_moved_before_it_is_resumed(tmp_path: Path, unbroken: Any):
    with stopped_at(4):
        run(tmp_path / "here", "initial")
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert_same_run(tmp_path / "there", *run(tmp_path / "there", "initial", resume=True), unbroken("initial"))


def test_a_float64_model_survives_a_resume(tmp_path: Path):
    def double(path: Path, *, resume: bool = False) -> dict[str, torch.Tensor]:
        policy = model().double()
        trainer(path, policy=policy, **{**COMMON, "steps": 3, "held": [], "eval_problems": 0}).train(resume=resume)
        return weights(policy)

    with stopped_at(3):
        double(tmp_path / "stopped")
    assert same(double(tmp_path / "stopped", resume=True), double(tmp_path / "unbroken"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta": 0.5}, r"started with objective.beta=0.1, not 0.5; resume it with the same settings"),
        ({"seed": 1}, r"started with run.seed=0, not 1"),
    ],
)
def test_error_names_the_changed_setting(tmp_path: Path, unbroken: Any, changes: dict[str, Any], message: str):
    path, _, _ = unbroken("initial")
    with pytest.raises(RunError, match=message):
        run(path, "initial", resume=True, **changes)


def test_an_older_run_keeps_its_defaults(tmp_path: Path):
    """Versions before the table of defaults resolved the reference to "previous", and stored no beta."""
    older = {"reference": "previous", "beta": 0.1, "passes": 2}
    expected = (tmp_path / "explicit", *run(tmp_path / "explicit", "initial", **older))
    with stopped_at(4):
        run(tmp_path / "older", "initial", **older)
    file = tmp_path / "older" / runfiles.CONFIG
    stored = json.loads(file.read_text())
    stored["objective"]["beta"] = None
    file.write_text(json.dumps(stored))
    resumed = run(tmp_path / "older", "initial", resume=True, **{**older, "reference": "auto", "beta": None})
    assert_same_run(tmp_path / "older", *resumed, expected)


def test_settings_that_do_not_change_the_result_may_differ(tmp_path: Path, unbroken: Any):
    with stopped_at(4):
        run(tmp_path, "initial")
    changes = {"checkpoint_every": 1, "checkpoint_keep": 5, "reward_workers": 2, "reward_timeout": 60.0}
    assert_same_run(tmp_path, *run(tmp_path, "initial", resume=True, **changes), unbroken("initial"))


def test_a_taken_directory_is_rejected_and_left_unchanged(unbroken: Any):
    path, _, _ = unbroken("initial")
    before = (path / "metrics.jsonl").read_bytes()
    with pytest.raises(RunError, match=r"already contains a run; choose another run\.dir, or use --resume"):
        run(path, "initial")
    assert (path / "metrics.jsonl").read_bytes() == before


def test_there_must_be_a_run_to_resume(tmp_path: Path):
    with pytest.raises(RunError, match="there is no run in"):
        run(tmp_path / "none", "initial", resume=True)
    assert not (tmp_path / "none").exists()


def test_other_training_data_is_rejected(tmp_path: Path):
    rows = [{"prompt": str(digit), "digit": str(digit)} for digit in range(4)]
    stopped = {"steps": 4, "checkpoint_every": 1}
    trainer(tmp_path, data=rows, **stopped).train()
    with pytest.raises(RunError, match=r"another set of training data; resume .*omit --resume and choose another run"):
        trainer(tmp_path, data=rows[::-1], **stopped).train(resume=True)
    with pytest.raises(RunError, match="another set of training data"):  # a gold answer
        trainer(tmp_path, data=[{**rows[0], "digit": "9"}, *rows[1:]], **stopped).train(resume=True)
    with pytest.raises(RunError, match="another set of held-out data"):
        trainer(tmp_path, data=rows, held=[{**rows[0], "digit": "9"}], **stopped).train(resume=True)
    assert trainer(tmp_path, data=rows, **stopped).train(resume=True)["steps"] == 4


def judge(worth: float) -> Any:
    def digits(completions: Any, **_: Any) -> list[float]:
        return [worth * len(text) for text in completions]

    return digits


def test_another_reward_of_the_same_name_is_rejected_even_before_the_first_checkpoint(tmp_path: Path):
    with stopped_at(1):
        trainer(tmp_path, rewards=judge(1.0), steps=2).train()
    with pytest.raises(RunError, match="was started with another reward 'digits'"):
        trainer(tmp_path, rewards=judge(-1.0), steps=2).train(resume=True)
    assert trainer(tmp_path, rewards=judge(1.0), steps=2).train(resume=True)["steps"] == 2


# a run that ends elsewhere than planned

STEADY: dict[str, Any] = {"schedule": "constant", "warmup_updates": 2, "eval_every": 2, "checkpoint_every": 2}


def test_a_finished_run_continues_with_more_steps_as_an_unbroken_one(tmp_path: Path):
    unbroken = (tmp_path / "unbroken", *run(tmp_path / "unbroken", "every three", steps=6, **STEADY))
    path = tmp_path / "run"
    run(path, "every three", steps=4, **STEADY)
    assert_same_run(path, *run(path, "every three", steps=6, resume=True, **STEADY), unbroken)
    assert (path / "config.json").read_text().replace("/run", "/unbroken") == (
        tmp_path / "unbroken/config.json"
    ).read_text()
    moved = json.loads((path / "environment.json").read_text())["moved"]
    assert moved == [{"after_step": 4, "steps_before": 4, "steps": 6}]
    assert run(path, "every three", steps=6, resume=True, **STEADY)[0]["steps"] == 6  # it is the run's setting now
    with pytest.raises(RunError, match=r"has done 6 steps already, so train.steps=5 is too few; set 6 or more"):
        run(path, "every three", steps=5, resume=True, **STEADY)


def test_a_run_may_end_earlier_than_planned_at_the_step_it_has_reached(tmp_path: Path):
    with stopped_at(4):
        run(tmp_path, "previous", **{**STEADY, "eval_every": 5, "checkpoint_every": 3})
    summary, _ = run(tmp_path, "previous", resume=True, steps=3, **{**STEADY, "eval_every": 5, "checkpoint_every": 3})
    assert summary["steps"] == 3
    assert lines(tmp_path)[-1]["step"] == 3
    assert lines(tmp_path)[-1]["eval/accuracy"] == summary["accuracy_after"]


def test_a_new_end_of_a_decaying_schedule_must_be_confirmed(tmp_path: Path):
    run(tmp_path, "previous")
    before = (tmp_path / "config.json").read_text()
    with pytest.raises(RunError, match=r"planned for 5 steps with train.schedule='linear'.* train.extend_schedule=tr"):
        run(tmp_path, "previous", resume=True, steps=8)
    assert (tmp_path / "config.json").read_text() == before
    assert (tmp_path / "summary.json").exists()
    with noticed("the first 5 steps had the rates of 5, so the result is not that of an unbroken run"):
        assert run(tmp_path, "previous", resume=True, steps=8, extend_schedule=True)[0]["steps"] == 8
    rates = [line["train/lr"] for line in lines(tmp_path)[1:]]
    assert rates[5] > rates[4]  # step 6 has the rate of an unbroken run of 8 steps
    assert rates[5] == pytest.approx(3e-3 * (1 - (4 * 5 + 3 - 2) / (8 * 4 - 2)))


def test_a_run_that_continues_has_no_summary_until_it_ends(tmp_path: Path):
    run(tmp_path, "previous", steps=2, **STEADY)
    with stopped_at(3):
        run(tmp_path, "previous", steps=4, resume=True, **STEADY)
    assert not (tmp_path / "summary.json").exists()
    assert not (tmp_path / "report.html").exists()
