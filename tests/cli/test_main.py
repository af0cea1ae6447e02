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
    "words", [[], ["trian", "demo"], ["train"], ["train", "demo", "--resme"], ["report", "a", "--fast", "b"]]
)
def test_words_that_are_no_command_exit_with_2_and_the_usage(words: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert "usage: gvpo" in capsys.readouterr().err


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
