"""`gvpo`: its commands and its errors."""

from importlib import metadata

import pytest

from gvpo.cli import train
from gvpo.cli.main import COMMANDS, main
from gvpo.errors import ConfigError


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"gvpo {metadata.version('gvpo')}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: COMMAND; see gvpo --help"),
        (["trian", "demo"], "argument COMMAND: invalid choice: 'trian' (choose from"),
        (["train"], "the following arguments are required: recipe, section.key=value; see gvpo train --help"),
        (["train", "demo", "--resme"], "unrecognized arguments: --resme; see gvpo train --help"),
        (["report"], "the following arguments are required: RUN; see gvpo report --help"),
        (["report", "a", "--fast", "b"], "unrecognized arguments: --fast"),
        (["doctor", "--gpus", "two"], "argument --gpus: invalid int value: 'two'; see gvpo doctor --help"),
    ],
)
def test_words_that_are_no_command_are_one_line_and_exit_code_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"gvpo: error: {message}")
    assert shown.endswith("--help\n")
    assert shown.count("\n") == 1


def test_an_error_that_the_user_can_mend_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]):
    assert main(["train", "no-such-recipe"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("gvpo: error: there is no recipe 'no-such-recipe'")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_debug_shows_where_it_came_from():
    with pytest.raises(ConfigError):
        main(["train", "no-such-recipe", "--debug"])


def test_an_interrupt_exits_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "run", interrupted)
    assert main(["train", "demo"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_fault_of_the_program_is_not_hidden(monkeypatch: pytest.MonkeyPatch):
    def faulty(_: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(train, "run", faulty)
    with pytest.raises(ZeroDivisionError):
        main(["train", "demo"])
