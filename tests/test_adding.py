"""What docs/internals/adding.md adds works in a copy of the package to which it was added as the page says."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import gvpo

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/internals/adding.md").read_text(encoding="utf-8")
TABLE = "OBJECTIVES: dict[str, ObjectiveSpec] = {\n"
TRAIN_ONE = """
import re, sys
from pathlib import Path
import pytest
import gvpo
from gvpo.config import TrainConfig
from gvpo.errors import ConfigError
from gvpo.runfiles import read_metrics
from tests.training.toy import trainer
from tools import configuration_page, objectives_table

assert Path(gvpo.__file__).is_relative_to(sys.argv[1])
run = Path(sys.argv[1]) / "run"
assert trainer(run, steps=1, objective="raft").train()["objective"] == "raft"
assert read_metrics(run / "metrics.jsonl")[-1]["raft/best_reward"] >= 0
assert "| Objective | raft |" in next(run.rglob("README.md")).read_text()
with pytest.raises(ConfigError, match="objective.beta is not a keyword of raft; it takes none of these"):
    trainer(None, objective="raft", beta=0.1)
with pytest.raises(ConfigError, match="raft compares a prompt's completions: set sampling.group_size to 2 or more"):
    trainer(None, objective="raft", group_size=1)
with pytest.raises(ConfigError, match="choose one of .*raft"):
    TrainConfig(objective="graft")
assert "raft" in TrainConfig.model_fields["objective"].description
assert "[`raft`](objectives/raft.md)" in configuration_page.page()
assert re.search(r"`raft`.*best completions.*groups.*2304.06767", objectives_table.filled(objectives_table.pages()[-1]))
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """Copy the package and add what the page shows to it: each file, and each line to the table."""
    root = tmp_path_factory.mktemp("added")
    package = root / "gvpo"
    shutil.copytree(Path(gvpo.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    for path, code in re.findall(r"^```python\n# (\S+)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE):
        assert not (package / path).exists()
        (package / path).write_text(code, encoding="utf-8")
    (line,) = re.findall(r"^```diff\n\+(.*?\n)```$", PAGE, re.DOTALL | re.MULTILINE)
    assert line.count("\n") == 1
    table = package / "config/objectives.py"
    before, opening, after = table.read_text(encoding="utf-8").partition(TABLE)
    table.write_text(before + opening + line + after, encoding="utf-8")
    return root


def test_an_objective_is_one_file_and_one_line(package):
    environment = {**os.environ, "PYTHONPATH": str(package)}
    command = [sys.executable, "-W", "error::DeprecationWarning", "-c", TRAIN_ONE, str(package)]
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
