"""`gvpo`: its commands and its errors."""

import re
import subprocess
import sys
from importlib import import_module, metadata
from pathlib import Path

import pytest

from gvpo.cli import eval as cli_eval
from gvpo.cli import train
from gvpo.cli.main import COMMANDS, _parser, main
from gvpo.config import FIELDS
from gvpo.errors import ConfigError
from tests.test_public_api import modules_after


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in COMMANDS)
    assert max(map(len, shown.splitlines())) <= 80


def test_gvpo_alone_prints_the_help_with_a_first_example(capsys: pytest.CaptureFixture[str]):
    assert main([]) == 0
    alone = capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--help"])
    assert alone == capsys.readouterr().out
    assert "gvpo train demo " in alone


def test_python_m_gvpo_is_gvpo():
    finished = subprocess.run([sys.executable, "-m", "gvpo", "--version"], capture_output=True, text=True, timeout=60)
    assert (finished.returncode, finished.stdout) == (0, f"gvpo {metadata.version('gvpo')}\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_fits_80_columns_and_its_example_parses(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main([command, "--help"])
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    example = COMMANDS[command].example
    assert f"for example:\n\n  {example}\n" in shown
    words = example.split()[1:]
    _parser(words).parse_args(words)


def test_version(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"gvpo {metadata.version('gvpo')}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian", "demo"], "there is no command 'trian'; did you mean 'train'?; see gvpo --help"),
        (["evalu"], "there is no command 'evalu'; did you mean 'eval'?"),
        (["quux"], "there is no command 'quux'; see gvpo --help"),
        (["demo/rloo"], "there is no command 'demo/rloo'; did you mean 'gvpo train demo/rloo'?"),
        (["mine.toml"], "there is no command 'mine.toml'; did you mean 'gvpo train mine.toml'?"),
        (["train"], "RECIPE is missing, for example: gvpo train demo; see gvpo train --help"),
        (["train", "train.steps=3"], "RECIPE is missing, for example: gvpo train demo; see gvpo train --help"),
        (["eval", "MODEL"], "--benchmark is missing, for example: gvpo eval MODEL --benchmark gsm8k"),
        (["probe"], "ACTION is missing, for example: gvpo probe fit groups.jsonl --model MODEL"),
        (["probe", "fit"], "the following arguments are required: GROUPS, --model, --out; see gvpo probe fit --help"),
        (
            ["train", "demo", "--resme"],
            "unrecognized arguments: --resme; did you mean '--resume'?; see gvpo train --help",
        ),
        (
            ["train", "demo", "--max_steps", "10"],
            "unrecognized arguments: --max_steps 10; settings are written as section.key=value; use 'train.steps': ",
        ),
        (
            ["train", "demo", "--group-size=4"],
            "unrecognized arguments: --group-size=4; settings are written as section.key=value; did you mean "
            "'sampling.group_size'?",
        ),
        (["report"], "RUN is missing, for example: gvpo report runs/demo; see gvpo report --help"),
        (["report", "a", "--fast", "b"], "unrecognized arguments: --fast"),
        (["doctor", "--gpus", "two"], "argument --gpus: invalid int value: 'two'; see gvpo doctor --help"),
    ],
)
def test_error_about_an_unknown_command_is_one_line_with_exit_code_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"gvpo: error: {message}")
    assert shown.endswith("--help\n")
    assert shown.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        ["eval", "a", "b", "run.seed=1", "--benchmark", "x=1.jsonl", "--check", "run.seed=2"],
        ["eval", "run.seed=1", "a", "--check", "run.seed=2", "--benchmark", "x=1.jsonl", "b"],
        ["eval", "--benchmark=x=1.jsonl", "a", "run.seed=1", "--check", "b", "run.seed=2"],
    ],
)
def test_settings_may_be_anywhere_in_a_command_line(words: list[str], monkeypatch: pytest.MonkeyPatch):
    """The value of a flag is never a setting, and a switch has no value."""
    seen = []
    monkeypatch.setattr(cli_eval, "run", lambda options: bool(seen.append(options)))
    assert main(words) == 0
    assert (seen[0].models, seen[0].settings) == (["a", "b"], ["run.seed=1", "run.seed=2"])
    assert (seen[0].benchmark, seen[0].check) == ("x=1.jsonl", True)


def test_a_path_with_an_equals_sign_is_not_a_setting(monkeypatch: pytest.MonkeyPatch):
    seen = []
    monkeypatch.setattr(cli_eval, "run", lambda options: bool(seen.append(options)))
    assert main(["eval", "runs/lr=1", "./lr=1", "--benchmark", "gsm8k"]) == 0
    assert (seen[0].models, seen[0].settings) == (["runs/lr=1", "./lr=1"], [])


@pytest.mark.parametrize("command", ["data", "decode", "doctor", "eval", "generate", "score"])
def test_the_help_of_a_command_lists_the_settings_that_it_reads(command: str, capsys: pytest.CaptureFixture[str]):
    reads = import_module(f"gvpo.cli.{command}").READS
    assert set(reads) <= set(FIELDS)
    with pytest.raises(SystemExit):
        main([command, "--help"])
    shown = capsys.readouterr().out.partition("\nsettings:\n")[2]
    assert [line.split()[0] for line in shown.splitlines() if re.match(r"  \w", line)] == list(reads)


def test_wrong_settings_and_files_are_found_before_torch_is_loaded(tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text("{}")
    (tmp_path / "mine.toml").write_text(
        'model.path = "m"\ndata.train = "rows.jsonl"\nrewards.funcs = ["exact_match"]\n'
    )
    (tmp_path / "empty").mkdir()
    (tmp_path / "unfinished/checkpoints").mkdir(parents=True)
    commands = [
        ["generate", "m", "--prompts", "none.jsonl", "--out", "o.jsonl", "rewards.funcs=exact_match"],
        ["generate", "m", "--prompts", "rows.jsonl", "--out", "o.jsonl", "train.steps=1"],
        ["eval", "m", "--benchmark", "none.jsonl", "rewards.funcs=exact_match"],
        ["eval", "m", "--benchmark", "gsm8k", "sampling.top_p=2"],
        ["eval", "m", "--benchmark", "gsm8k", "eval.samples=2", "sampling.temperature=0"],
        ["decode", "m", "--prompt", "a", "sampling.seed=1"],
        ["score", "m", "--data", "none.jsonl", "--out", "o.jsonl"],
        ["probe", "select", "p", "rows.jsonl", "--out", "o.jsonl", "run.sed=1"],
        ["doctor", "--plan", "m", "run.seed=1"],
        ["train", "none.toml"],
        ["train", "mine.toml", "data.train=none.jsonl"],
        ["train", "mine.toml", "rewards.funcs=none.py:f"],
        ["train", "mine.toml", "rewards.funcs=exact_mach"],
        ["train", "mine.toml", "model.path=./none"],
        ["train", "mine.toml", "model.path=empty"],
        ["train", "mine.toml", "model.tokenizer=./none"],
        ["train", "mine.toml", "lora.path=empty"],
        ["train", "demo", "data.task=adition"],
        ["generate", "./none", "--prompts", "rows.jsonl", "--out", "o.jsonl", "rewards.funcs=exact_match"],
        ["generate", "m", "--prompts", "rows.jsonl", "--out", "o.jsonl", "rewards.funcs=none.py:f"],
        ["eval", "empty", "--benchmark", "gsm8k"],
        ["eval", "--responses", "none.jsonl", "--benchmark", "gsm8k"],
        ["eval", "m", "--benchmark", "rows.jsonl", "rewards.funcs=none.py:f"],
        ["decode", "./none", "--prompt", "a", "sampling.allow=digits"],
        ["decode", "unfinished", "--prompt", "a", "sampling.allow=digits"],
        ["score", "./none", "--data", "rows.jsonl", "--out", "o.jsonl"],
        ["probe", "fit", "none.jsonl", "--model", "m", "--out", "p"],
        ["probe", "fit", "rows.jsonl", "--model", "./none", "--out", "p"],
        ["probe", "select", "none", "rows.jsonl", "--out", "o.jsonl"],
        ["merge", "./none", "out"],
        ["merge", "empty", "out"],
        ["data", "check", "none.jsonl"],
        ["data", "check", "rows.jsonl", "--tokenizer", "./none"],
        ["doctor", "--plan", "empty"],
        ["report", "none"],
    ]
    code = f"""
import os, sys
from gvpo.cli.main import main
os.chdir({str(tmp_path)!r})
for words in {commands!r}:
    assert main(words) == 2, words
    assert "torch" not in sys.modules, words
"""
    assert not modules_after(code) & {"torch", "transformers"}


def test_an_error_that_the_user_can_fix_is_one_line_with_exit_code_2(capsys: pytest.CaptureFixture[str]):
    assert main(["train", "no-such-recipe"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("gvpo: error: there is no recipe 'no-such-recipe'")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_debug_shows_the_traceback():
    with pytest.raises(ConfigError):
        main(["train", "no-such-recipe", "--debug"])


def test_an_interrupt_exits_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "run", interrupted)
    assert main(["train", "demo"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_bug_of_the_program_is_not_hidden(monkeypatch: pytest.MonkeyPatch):
    def faulty(_: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(train, "run", faulty)
    with pytest.raises(ZeroDivisionError):
        main(["train", "demo"])
