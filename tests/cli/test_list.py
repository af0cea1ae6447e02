"""`gvpo list`: names and descriptions of what comes with gvpo, on one line each and without torch."""

import json

import pytest

from gvpo.cli.list import KINDS
from gvpo.cli.main import main
from gvpo.cli.shipped import shipped
from gvpo.config import OBJECTIVES
from gvpo.data import TASKS
from gvpo.environments.registry import ENVIRONMENTS
from gvpo.evaluation.benchmarks import BENCHMARKS
from gvpo.rewards import MAKERS, REWARDS
from gvpo.sampling.engines import ENGINES
from tests.test_public_api import modules_after

NAMES = {
    "recipes": shipped(),
    "objectives": list(OBJECTIVES),
    "rewards": sorted([*REWARDS, *MAKERS]),
    "tasks": list(TASKS),
    "environments": list(ENVIRONMENTS),
    "benchmarks": list(BENCHMARKS),
    "engines": list(ENGINES),
}


def listed(*words: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["list", *words]) == 0
    return capsys.readouterr().out


def test_every_kind_has_its_names_here():
    assert set(NAMES) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_line_has_a_name_and_a_description_and_fits_80_columns(
    kind: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "80")
    lines = listed(kind, capsys=capsys).splitlines()
    assert [line.split()[0] for line in lines] == NAMES[kind]
    assert all(len(line.split()) > 2 for line in lines)
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("kind", KINDS)
def test_json_has_the_same_names_with_whole_descriptions(kind: str, capsys: pytest.CaptureFixture[str]):
    rows = json.loads(listed(kind, "--json", capsys=capsys))
    assert [row["name"] for row in rows] == NAMES[kind]
    assert not any(row["description"].endswith(" ...") for row in rows)
    assert all(row["description"] for row in rows)


def test_without_a_kind_the_kinds_are_listed(capsys: pytest.CaptureFixture[str]):
    assert [line.split()[0] for line in listed(capsys=capsys).splitlines()] == list(KINDS)


def test_a_description_follows_the_name(capsys: pytest.CaptureFixture[str]):
    lines = listed("recipes", capsys=capsys).splitlines()
    assert ["demo", "Column addition learned from rewards on a laptop"] in [line.split(maxsplit=1) for line in lines]
    assert "gsm8k        Grade-school word problems, from the Hub or a file" in " ".join(
        listed("tasks", capsys=capsys).split("\n")
    ).replace("gsm8k          ", "gsm8k        ")


def test_a_misspelled_kind_is_an_error_with_the_nearest(capsys: pytest.CaptureFixture[str]):
    assert main(["list", "recipe"]) == 2
    assert capsys.readouterr().err == "gvpo: error: gvpo cannot list 'recipe'; did you mean 'recipes'?\n"


def test_lists_do_not_load_torch():
    code = f"from gvpo.cli.main import main\nfor kind in {list(KINDS)}:\n    main(['list', kind])"
    assert not modules_after(code) & {"torch", "transformers", "datasets"}
