"""`gvpo init`: the project trains unchanged and learns, and no file is overwritten."""

import json
import subprocess
import sys

import pytest

from gvpo.cli.init import write_project
from gvpo.cli.main import main
from gvpo.config.recipe import load_config
from gvpo.data import load_records
from gvpo.errors import ConfigError

GVPO = [sys.executable, "-m", "gvpo.cli.main"]


def test_the_project_trains_unchanged_and_learns(tmp_path):
    for words in (["init", "mine"], ["train", "mine/recipe.toml", "run.dir=run"]):
        finished = subprocess.run([*GVPO, *words], cwd=tmp_path, capture_output=True, text=True, timeout=200)
        assert finished.returncode == 0, finished.stderr
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["accuracy_before"] < 0.4
    assert summary["accuracy_after"] > summary["accuracy_before"] + 0.3
    assert (tmp_path / "run/report.html").exists()


def test_held_out_problems_are_not_trained_on_and_every_answer_is_seen(tmp_path):
    write_project(tmp_path / "mine")
    train, held_out = (load_records(tmp_path / "mine/data" / name) for name in ("train.jsonl", "eval.jsonl"))
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in held_out}
    assert {row["answer"] for row in train} == {row["answer"] for row in held_out} == set("0123456789")
    assert all(row["answer"] == str((int(row["prompt"]) + 1) % 10) for row in train)


def test_no_file_is_overwritten(tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep me")
    assert main(["init", str(tmp_path / "mine")]) == 2
    assert "already exists; choose another name" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_an_empty_directory_and_an_odd_name_are_fine(tmp_path):
    name = tmp_path / 'a "b" $c'
    name.mkdir()
    write_project(name)
    config = load_config(name / "recipe.toml")
    assert config.train_data == str(name / "data/train.jsonl")
    assert config.reward_funcs == [f"{name}/reward.py:reward"]


def test_error_about_an_unwritable_directory_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot write .*; choose another name"):
        write_project(tmp_path / "file" / "mine")
