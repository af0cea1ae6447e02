"""The additions of docs/internals/adding.md work in a copy of the package that was changed as the page describes."""

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
with pytest.raises(ConfigError, match="objective.beta is not a keyword of raft; it accepts none of these"):
    trainer(None, objective="raft", beta=0.1)
with pytest.raises(ConfigError, match="raft compares a prompt's completions: set sampling.group_size to 2 or more"):
    trainer(None, objective="raft", group_size=1)
with pytest.raises(ConfigError, match="choose one of .*raft"):
    trainer(None, objective="graft")
assert "raft" in TrainConfig.model_fields["objective"].description
assert "[`raft`](objectives/raft.md)" in configuration_page.page()
assert re.search(r"`raft`.*best completions.*groups.*2304.06767", objectives_table.filled(objectives_table.pages()[-1]))
"""


SAMPLE_ONE = """
from gvpo.sampling import Request, SamplingParams, StreamingSampler
from gvpo.sampling.engines import open_engine
from tests.training.toy import tokenizer

sampler = open_engine("uniform", "", tokenizer())
assert not isinstance(sampler, StreamingSampler)
both = sampler.sample([Request("a", (1,)), Request("b", (1,))], SamplingParams(3, 40), seed=0, step=2)
alone = sampler.sample([Request("b", (1,))], SamplingParams(3, 40), seed=0, step=2)
assert both[1] == alone[0] and both[0] != both[1]
assert {row.finish_reason for rows in both for row in rows} <= {"stop", "length"}
assert all(len(row.sampler_logprobs) == len(row.tokens) <= 40 for rows in both for row in rows)
"""

RESUME_ONE = """
import sys
from pathlib import Path
import torch
from gvpo.rollout.sources.patient import PatientSource
from tests.training.toy import lines, model, trainer

place = 0
def commit(self, step, own=PatientSource.commit):
    global place
    self._solved = step != 2  # as if the problems of step 2 were too hard
    own(self, step)
    place = self._place
PatientSource.commit = commit
run = Path(sys.argv[1]) / "patient"
trainer(run, steps=3, checkpoint_every=1, checkpoint_keep=3).train()
assert place == 3
places = [torch.load(file, weights_only=True)["place"] for file in sorted(run.glob("checkpoints/*/trainer/source.pt"))]
assert places == [2, 2, 3], places
whole = lines(run)
import shutil
shutil.rmtree(run / "checkpoints/step-000003")
(run / "summary.json").unlink()
trainer(run, steps=3, checkpoint_every=1, checkpoint_keep=3).train(resume=True)
assert place == 3 and lines(run) == whole
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """Copy the package and add the code of the page to it: each file, and each line of the table."""
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
    for path, hunk in re.findall(r"^```diff\n# (\S+)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE):
        apply(package / path, hunk.splitlines(keepends=True))
    return root


def apply(file, hunk):
    """Replace the old lines of a hunk by the new ones."""
    before, after = ("".join(line[1:] for line in hunk if line[0] in marks) for marks in (" -", " +"))
    text = file.read_text(encoding="utf-8")
    assert text.count(before) == 1
    file.write_text(text.replace(before, after), encoding="utf-8")


def run_in(package, code):
    environment = {**os.environ, "PYTHONPATH": str(package)}
    command = [sys.executable, "-W", "error::DeprecationWarning", "-c", code, str(package)]
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr


def test_an_objective_is_one_file_and_one_line(package):
    run_in(package, TRAIN_ONE)


def test_a_sampling_engine_is_one_file_and_one_line(package):
    run_in(package, SAMPLE_ONE)


def test_a_source_of_groups_is_one_file_and_the_line_that_chooses_it(package):
    run_in(package, RESUME_ONE)
