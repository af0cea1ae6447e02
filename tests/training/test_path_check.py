"""Tests that a run compares the fast paths of its model once, before its first step."""

from pathlib import Path
from typing import Any

import pytest
import torch

from gvpo.rollout.sources.live import LiveSource
from gvpo.training.learner import Learner
from gvpo.training.objective import build_objective
from gvpo.update.choose_path import _Comparison, known_paths
from tests.training.toy import config, model, trainer


def test_paths_are_compared_once_for_the_policy_and_its_reference_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    happened = []

    def note(owner: Any, name: str) -> None:
        wrapped = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args: happened.append(name) or wrapped(*args))

    note(_Comparison, "_error")
    note(LiveSource, "rollout")
    trainer(tmp_path, steps=2, held=None, objective="gvpo", reference="initial").train()
    assert happened == ["_error", "rollout", "rollout"]


def test_a_copy_shares_what_is_known_about_paths():
    policy = model()
    settings = config(objective="gvpo", reference="initial")
    learner = Learner(policy, build_objective(settings), settings)
    assert learner.reference is not None
    learner.compare_paths()
    with learner.reference.scoring() as reference:
        assert reference is not policy
        assert known_paths(reference) is known_paths(policy)
    assert len(known_paths(policy)) == 2


def test_a_comparison_without_memory_is_left_to_the_first_step(monkeypatch: pytest.MonkeyPatch):
    settings = config()
    learner = Learner(model(), build_objective(settings), settings)

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(_Comparison, "_error", full)
        learner.compare_paths()
    assert not known_paths(learner.model)
    learner.compare_paths()
    assert known_paths(learner.model)
