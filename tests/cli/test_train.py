"""`gvpo train`: its output, its errors, and its recipes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gvpo.cli.main import main
from gvpo.cli.shipped import find_recipe, shipped
from gvpo.cli.train import _print_summary
from gvpo.config import RunPlan
from gvpo.errors import ConfigError

TINY = [
    "train.steps=2",
    "train.prompts_per_step=2",
    "sampling.group_size=2",
    "warm_start.steps=3",
    "warm_start.batch=4",
    "warm_start.demonstrations=20",
    "data.train_problems=20",
    "data.eval_problems=4",
    "rewards.workers=1",
]
SUMMARY = {"accuracy_before", "accuracy_after", "steps", "seconds", "report"}


def settings_of(run_dir: Path) -> dict[str, dict[str, object]]:
    return json.loads((run_dir / "config.json").read_text())


def test_the_demo_writes_a_summary_and_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run_dir = tmp_path / "demo"
    assert main(["train", "demo", f"run.dir={run_dir}", *TINY]) == 0
    summary = json.loads((run_dir / "summary.json").read_text())
    assert set(summary) >= SUMMARY
    assert summary["steps"] == 2
    assert 0 <= summary["accuracy_before"] <= 1
    assert 0 <= summary["accuracy_after"] <= 1
    assert Path(summary["report"]) == run_dir / "report.html"
    assert "<html" in (run_dir / "report.html").read_text()
    assert settings_of(run_dir)["train"]["prompts_per_step"] == 2
    shown = capsys.readouterr().out
    assert "gvpo: 2 steps" in shown
    assert str(run_dir / "report.html") in shown
    assert summary["model"] in shown


def test_the_last_lines_say_what_happened(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    nothing = dict.fromkeys(("accuracy_of", "accuracy_before", "accuracy_after", "accuracy_greedy_before"))
    rewards = {"reward_first": 0.1, "reward_last": 0.25, "reward_steps": 10}
    facts = {"objective": "gvpo", "steps": 40, "seconds": 3.2, "model": "m", "report": "r"}
    _print_summary(tmp_path, {**nothing, **rewards, **facts, "warnings": ["nothing was learned: all 240 groups"]})
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        "gvpo: 40 steps in 3 s",
        "training reward 0.100 in the first 10 steps, 0.250 in the last 10 steps",
    ]
    assert lines[-1] == "warning: nothing was learned: all 240 groups"


def test_a_report_that_fails_does_not_hide_a_finished_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def failing(*_: object) -> Path:
        raise ValueError("a damaged\nfile")

    monkeypatch.setattr("gvpo.report.write.write_report", failing)
    run_dir = tmp_path / "demo"
    assert main(["train", "demo/rloo", f"run.dir={run_dir}", *TINY]) == 0
    shown = capsys.readouterr()
    assert "rloo: 2 steps" in shown.out
    assert "not written; a warning above says why" in shown.out
    assert f"not written (a damaged file); the run is safe, write it with: gvpo report {run_dir}" in shown.err


def test_check_prints_what_a_run_would_use_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    assert (
        main(["train", "demo", "--check", *TINY, "objective.beta=0.3", "data.eval_problems=0", "eval.samples=3"]) == 0
    )
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    assert "qwen2, 124,608 parameters" in text
    assert "the run begins with a warm start of 3 steps" in text
    assert "20 problems to train on, none held out; the longest prompt has " in text
    assert "boxed_answer, addition_steps: can be sent to worker processes" in text
    assert "gvpo, reference initial, beta 0.3" in text
    assert "2 steps of 2 prompts x 2 completions, 1 update per step, learning rate 0.0003" in text
    assert "this run can start" in text
    assert "gvpo: warning: eval.samples has no effect: there are no held-out problems\n" in shown.err
    assert list(tmp_path.iterdir()) == []


def test_check_says_which_rows_of_a_group_are_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    words = ["train.steps=20", "sampling.group_size=4", "rollout.history=2"]
    assert main(["train", "demo/mixture", "--check", *TINY, *words, "rollout.live=2"]) == 0
    assert "20 steps of 2 prompts x 4 completions (2 history), " in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("rollout.staleness=3", "2 prompts x 2 completions, sampled 3 steps before, 1 update"),
        ("rollout.reuse=2", "2 prompts x 2 completions, each of which is trained on in 2 steps, 1 update"),
    ],
)
def test_check_says_how_old_groups_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], setting: str, said: str
):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "demo", "--check", *TINY, setting]) == 0
    assert said in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rewards.funcs=['boxed']", "rewards.weights=[1.0]"], "there is no reward 'boxed'"),
        (["data.task_options={digit=3}"], "has no option 'digit'; did you mean 'digits'?"),
        (["run.dir=taken"], "taken already contains a run"),
        (["run.dir=file/below"], "cannot write file/below"),
        (["--resume", "run.dir=taken"], "--check is for new runs"),
    ],
)
def test_check_finds_what_stops_a_run(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    Path("taken").mkdir()
    Path("taken/metrics.jsonl").touch()
    Path("file").touch()
    assert main(["train", "demo", "--check", *TINY, *words]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("gvpo: error: ")
    assert message in shown.err
    assert shown.out == ""


def test_resume_may_be_anywhere_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    run_dir = tmp_path / "demo"
    with monkeypatch.context() as patch:
        patch.setattr("gvpo.rollout.sources.live.LiveSource.rollout", _interrupt)
        assert main(["train", "demo/rloo", f"run.dir={run_dir}", *TINY]) == 130
    assert "gvpo: stopped immediately; resume with: gvpo train demo/rloo " in capsys.readouterr().err
    assert not (run_dir / "summary.json").exists()
    assert main(["train", "demo/rloo", "--resume", f"run.dir={run_dir}", *TINY]) == 0
    assert main(["train", "demo/rloo", f"run.dir={run_dir}", *TINY, "--resume"]) == 0
    assert json.loads((run_dir / "summary.json").read_text())["objective"] == "rloo"


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_without_a_directory_a_free_one_is_named_after_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gvpo.training.warm_start.train_plan", _began := Began())
    for _ in range(2):
        with pytest.raises(Began):
            main(["train", "demo/rloo"])
        (tmp_path / str(_began.run_dir)).mkdir(parents=True)
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["demo-rloo", "demo-rloo-2"]


class Began(Exception):  # raised in place of the run
    run_dir: Path | None = None

    def __call__(self, plan: RunPlan, *, resume: bool) -> None:
        self.run_dir = plan.settings.run_dir
        raise self


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["demmo"], "there is no recipe 'demmo'; did you mean 'demo'?"),
        (["nothing"], "there is no recipe 'nothing'; give a file, or a name that `gvpo list recipes` prints"),
        (["demo", "objective.beat=0.1"], "unknown setting 'objective.beat'; did you mean 'objective.beta'?"),
        (["demo", "beta"], "'beta' is not a setting; write section.key=value"),
        (["demo", "train.steps=many"], "train.steps='many': "),
        (["demo", "objective.name=rlo"], "objective.name='rlo' does not exist; choose one of"),
        (["demo", "objective.clip_low=0.1"], "objective.clip_low is not a keyword of gvpo"),
        (["demo", "data.task=adition"], "data.task='adition' does not exist"),
        (["demo", "--resume"], "--resume needs run.dir=DIRECTORY"),
        (["demo", "--resume", "run.dir=nothing-here"], "there is no run in nothing-here"),
        (["demo", "run.dir=taken"], "taken already contains a run; choose another run.dir, or use --resume"),
        (["broken.toml"], "broken.toml is not valid TOML"),
        (["demo", "rewards.funcs=['boxed']", "rewards.weights=[1.0]"], "there is no reward 'boxed'"),
        (["demo", "model.init={architecture='qwen'}"], "init.architecture='qwen' is not a causal language model"),
    ],
)
def test_error_about_invalid_arguments_is_one_line_with_exit_code_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/metrics.jsonl").touch()
    (tmp_path / "broken.toml").write_text("[train\n")
    assert main(["train", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("gvpo: error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_recipes_are_found_by_name_file_and_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    (tmp_path / "own/recipe.toml").write_text("")
    assert find_recipe("own") == Path("own/recipe.toml")
    assert find_recipe("own/recipe.toml") == Path("own/recipe.toml")
    assert find_recipe("demo").parent.name == "demo"
    assert set(shipped()) >= {"demo", "demo/rloo"}
    with pytest.raises(ConfigError, match="there is no recipe"):
        find_recipe("owl")


def test_a_directory_without_a_recipe_says_what_it_contains(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"has no recipe\.toml; give a recipe's file"):
        find_recipe(str(tmp_path))
    (tmp_path / "arm.toml").touch()
    with pytest.raises(ConfigError, match=r"has no recipe\.toml; give one of its files: arm\.toml"):
        find_recipe(str(tmp_path))
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(ConfigError, match=r"is a run, .* resume it with: gvpo train RECIPE run\.dir=.* --resume"):
        find_recipe(str(tmp_path))


@pytest.mark.parametrize(("name", "near"), [("demmo", "demo"), ("demo/rlo", "demo/rloo"), ("gsm8k.toml", "gsm8k")])
def test_a_misspelled_recipe_gets_a_suggestion(name: str, near: str):
    with pytest.raises(ConfigError, match=f"there is no recipe '{name}'; did you mean '{near}'"):
        find_recipe(name)


def test_a_recipe_that_the_system_does_not_let_read_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "mine.toml").touch()

    def refused(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refused)
    assert main(["train", str(tmp_path / "mine.toml")]) == 2
    assert capsys.readouterr().err.endswith("mine.toml: Permission denied; correct the path\n")


def test_a_wrong_setting_is_found_before_torch_is_imported():
    code = "import sys; from gvpo.cli.main import main; code = main(['train', 'demo', 'objective.clip_low=0.1'])"
    command = [sys.executable, "-c", f"{code}; sys.exit(9 if 'torch' in sys.modules else code)"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 2, finished.stderr
    assert "objective.clip_low is not a keyword of gvpo" in finished.stderr
