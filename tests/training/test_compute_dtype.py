"""Tests that a run records the dtype of its forward passes, and that a resumed run keeps it."""

import json
from pathlib import Path
from typing import Any

import pytest

from gvpo.training import build
from gvpo.update import precision
from tests.training.toy import lines, model, same, stopped_at, trainer, weights


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Make the processor of this test multiply small models faster in bfloat16."""
    monkeypatch.setattr(precision, "NARROWEST", 1)
    monkeypatch.setattr(precision, "_times_faster", lambda weight: 2.0)
    return monkeypatch


def recorded(run: Path) -> Any:
    return json.loads((run / "environment.json").read_text())["compute_dtype"]


def test_a_small_model_is_computed_in_float32_with_unchanged_results(tmp_path: Path):
    trainer(tmp_path / "auto", steps=2, held=None).train()
    trainer(tmp_path / "given", steps=2, held=None, compute_dtype="float32").train()
    assert recorded(tmp_path / "auto") == recorded(tmp_path / "given") == "float32"
    assert lines(tmp_path / "auto") == lines(tmp_path / "given")


def test_a_resumed_run_keeps_its_dtype_on_a_processor_that_would_choose_another(
    tmp_path: Path, fast: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    settings: dict[str, Any] = {"steps": 3, "held": None, "checkpoint_every": 1}
    whole = model()
    trainer(tmp_path / "whole", policy=whole, **settings).train()
    assert recorded(tmp_path / "whole") == "bfloat16"
    said = " ".join(capsys.readouterr().err.split())
    assert "computing in bfloat16, which this processor multiplies 2.0 times as fast as float32" in said
    with stopped_at(2):
        trainer(tmp_path / "cut", **settings).train()
    fast.setattr(precision, "_times_faster", lambda weight: 0.5)
    resumed = model()
    trainer(tmp_path / "cut", policy=resumed, **settings).train(resume=True)
    assert recorded(tmp_path / "cut") == "bfloat16"
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    assert same(weights(resumed), weights(whole))
    trainer(tmp_path / "narrow", steps=3, held=None).train()
    assert lines(tmp_path / "narrow") != lines(tmp_path / "whole")  # the dtype made a difference


def test_a_run_of_an_earlier_version_is_resumed_in_float32(tmp_path: Path, fast: pytest.MonkeyPatch):
    with stopped_at(2):
        trainer(tmp_path, steps=2, held=None, checkpoint_every=1, compute_dtype="auto").train()
    file = tmp_path / "environment.json"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != build.COMPUTE_DTYPE}))
    asked = []
    learner = build.Learner
    fast.setattr(
        build, "Learner", lambda *args, **kwargs: asked.append(args[2].compute_dtype) or learner(*args, **kwargs)
    )
    trainer(tmp_path, steps=2, held=None, checkpoint_every=1).train(resume=True)
    assert asked == ["float32"]
