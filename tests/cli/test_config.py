"""`gvpo config`: resolved settings, their origins, and a form that can be trained."""

import tomllib
from pathlib import Path

import pytest

from gvpo.cli.main import main
from gvpo.cli.shipped import find_recipe, shipped
from gvpo.config import FIELDS, RunPlan, resolve
from gvpo.config.recipe import load_config
from tests.test_public_api import modules_after


def printed(*words: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["config", *words]) == 0
    return capsys.readouterr().out


def plan_of(text: str, tmp_path: Path) -> RunPlan:
    (tmp_path / "again.toml").write_text(text)
    return resolve(load_config(tmp_path / "again.toml"))


@pytest.fixture
def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write three recipes that extend each other."""
    monkeypatch.chdir(tmp_path)
    Path("base.toml").write_text(
        '[model]\npath = "m"\n[data]\ntrain = "d.jsonl"\n[rewards]\nfuncs = ["exact_match"]\n'
        "options = { }\n[objective]\nbeta = 0.2\n[train]\nsteps = 7\nprompts_per_step = 4\n"
    )
    Path("middle.toml").write_text('extends = "base.toml"\n[objective]\nname = "rloo"\n[train]\nsteps = 8\n')
    Path("top.toml").write_text('extends = "middle.toml"\n[train]\nlearning_rate = 1e-5\n')


@pytest.mark.usefixtures("chain")
def test_each_setting_says_where_it_comes_from(capsys: pytest.CaptureFixture[str]):
    lines = printed("top.toml", "sampling.group_size=5", capsys=capsys).splitlines()
    origins = {line.partition(" = ")[0]: line.rpartition("# ")[2] for line in lines if " = " in line}
    assert origins == {
        "path": "base.toml",
        "train": "base.toml",
        "group_size": "command line",
        "funcs": "base.toml",
        "options": "base.toml",
        "name": "middle.toml",
        "steps": "middle.toml",
        "prompts_per_step": "base.toml",
        "learning_rate": "top.toml",
    }
    assert lines[0] == f"# gvpo config top.toml sampling.group_size=5: 9 of {len(FIELDS)} settings are set"


@pytest.mark.usefixtures("chain")
def test_a_keyword_of_another_objective_is_dropped(capsys: pytest.CaptureFixture[str]):
    assert "beta" not in printed("top.toml", capsys=capsys)
    assert "beta = 0.2" in printed("base.toml", capsys=capsys)


@pytest.mark.usefixtures("chain")
def test_a_value_that_depends_on_the_kind_of_run_is_resolved_and_says_so(capsys: pytest.CaptureFixture[str]):
    resolved = resolve(load_config(Path("base.toml"))).settings.reference
    line = next(line for line in printed("base.toml", capsys=capsys).splitlines() if line.startswith("reference"))
    assert line.split() == ["reference", "=", f'"{resolved}"', *["#", "default", "for", "this", "kind", "of", "run"]]


@pytest.mark.usefixtures("chain")
def test_all_settings_have_a_line(capsys: pytest.CaptureFixture[str]):
    text = printed("top.toml", "--all", capsys=capsys)
    assert "batch = 64                                # default\n" in text
    assert "# epochs is not set\n" in text
    assert '# baseline = "leave_one_out"              # default of rloo\n' in text
    assert "# clip_low = inf                          # default of rloo\n" in text
    for dotted in FIELDS:
        key = dotted.partition(".")[2]
        assert f"\n{key} = " in text or f"\n# {key} " in text or f"\n[{dotted}]" in text, dotted


@pytest.mark.parametrize("words", [[], ["--all"]], ids=["set", "all"])
@pytest.mark.parametrize("name", shipped())
def test_what_is_printed_is_a_recipe_of_the_same_run(
    name: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    plan = resolve(load_config(find_recipe(name)))
    text = printed(name, *words, capsys=capsys)
    again = plan_of(text, tmp_path)
    assert again.settings.to_recipe() == plan.settings.to_recipe()
    assert again.warm_start == plan.warm_start or words
    assert [notice for notice in again.notices if notice not in plan.notices] == []


def test_tables_and_text_survive(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = [
        'rewards.funcs=["boxed_answer", "length_penalty"]',
        "rewards.options.length_penalty.limit=512",
        'data.system_prompt=a "quoted" \\ text',
        "model.init.eos_token_id=3",
    ]
    settings = plan_of(printed("demo", *words, capsys=capsys), tmp_path).settings
    assert settings.reward_options == {"length_penalty": {"limit": 512}}
    assert settings.system_prompt == 'a "quoted" \\ text'
    assert settings.model_init is not None
    assert settings.model_init["eos_token_id"] == 3
    assert settings.model_init["hidden_size"] == 64


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["demmo"], "there is no recipe 'demmo'; did you mean 'demo'?"),
        (["demo", "objective.bta=1"], "unknown setting 'objective.bta'; did you mean 'objective.beta'?"),
        (["demo", "objective.clip_low=0.1"], "objective.clip_low is not a keyword of gvpo"),
    ],
)
def test_error_about_settings_is_that_of_train(words: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert main(["config", *words]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(f"gvpo: error: {message}")
    assert shown.out == ""


def test_settings_are_printed_without_torch():
    code = "from gvpo.cli.main import main\nmain(['config', 'demo', '--all'])"
    assert not modules_after(code) & {"torch", "transformers", "datasets"}


def test_the_output_is_toml(capsys: pytest.CaptureFixture[str]):
    recipe = tomllib.loads(printed("demo/offline", capsys=capsys))
    assert recipe["data"]["sample_groups"] == 1920
    assert recipe["model"]["vocabulary"][-2] == "\\boxed{"
