"""`gvpo decode`: completions under an exclusion from the command line."""

import json
import math
from pathlib import Path

import pytest

from gvpo.cli.main import main
from gvpo.model.model import save_model
from tests.training.toy import model, tokenizer


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Save a model that writes digits."""
    monkeypatch.chdir(tmp_path)
    save_model(model(), tokenizer(), tmp_path / "model")
    return tmp_path / "model"


def test_completions_are_allowed_and_have_weights(saved: Path, capsys: pytest.CaptureFixture[str]):
    words = ["decode", "model", "--prompt", "4", "--prompt", "12", "sampling.allow=[0-5]", "sampling.ban=text:11"]
    assert main([*words, "sampling.group_size=6", "sampling.max_tokens=5", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["prompt"] for row in rows] == ["4"] * 6 + ["12"] * 6
    for row in rows:
        assert set(row["completion"]) <= set("012345")
        assert "11" not in row["completion"]
        assert row["log_allowed"] < 0
    for group in (rows[:6], rows[6:]):
        assert sum(row["weight"] for row in group) == pytest.approx(6)
        ratio = math.exp(group[0]["log_allowed"] - group[1]["log_allowed"])
        assert group[0]["weight"] / group[1]["weight"] == pytest.approx(ratio)


def test_a_run_stands_for_its_latest_checkpoint(saved: Path, capsys: pytest.CaptureFixture[str]):
    words = ["--prompt", "4", "sampling.allow=digits", "sampling.group_size=3", "--json"]
    assert main(["decode", "model", *words]) == 0
    own = capsys.readouterr().out
    Path("run/checkpoints/step-000001").mkdir(parents=True)  # it has no model, so using it would be an error
    saved.rename("run/checkpoints/step-000020")
    assert main(["decode", "run", *words]) == 0
    assert capsys.readouterr().out == own


def test_a_table_shows_the_allowed_probability(saved: Path, capsys: pytest.CaptureFixture[str]):
    assert (
        main(["decode", "model", "--prompt", "4", 'sampling.allow=["text:77", "text:7"]', "sampling.group_size=3"]) == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == '"4"'
    assert all(line.endswith(('"7"', '"77"')) for line in lines[2:5])
    assert lines[5].startswith("P(allowed) is about ")
    assert "the 3 completions are worth " in lines[5]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing is excluded; set sampling.allow or sampling.ban"),
        (["sampling.allow=Klingon"], "no characters called 'Klingon'"),
        (["sampling.ban=token:9999"], "names token 9999 and the model has"),
        (["sampling.allow=text:hello"], "allows no token at all"),
        (["sampling.allow=digits", "sampling.group_size=0"], "sampling.group_size=0: Input should be greater than"),
    ],
)
def test_error_about_invalid_decoding_is_one_line(
    saved: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
):
    assert main(["decode", "model", "--prompt", "4", *words]) == 2
    *warnings, error = capsys.readouterr().err.splitlines()
    assert all(line.startswith("gvpo: warning: AutoTokenizer loads") for line in warnings)
    assert error.startswith("gvpo: error: ")
    assert message in error
