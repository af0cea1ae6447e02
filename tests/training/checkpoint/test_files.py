"""Checkpoints: saving and loading, retention, and detection of damage."""

from pathlib import Path

import pytest
import torch

from gvpo.errors import CheckpointError, GvpoWarning
from gvpo.model.model import load_model
from gvpo.training.checkpoint.files import Checkpoints, TrainerState, load
from tests.training.toy import model, same, tokenizer, weights

REFERENCE = {"weight": torch.arange(3.0)}


def save(
    checkpoints: Checkpoints, step: int, *, best: int = 0, reference: dict[str, torch.Tensor] | None = None
) -> Path:
    optimizer = {"state": {0: {"step": torch.tensor(float(step))}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    return checkpoints.save(TrainerState(step=step, best_step=best), model(), tokenizer(), optimizer, reference)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_everything_is_restored(tmp_path: Path):
    state = TrainerState(3, 1.5, 2, 1, 0.75, 2, 1, {"eval/accuracy": 0.1}, {"eval/accuracy": 0.5})
    policy = model(seed=5)
    optimizer = torch.optim.AdamW(policy.parameters())
    for parameter in policy.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    path = Checkpoints(tmp_path, 2).save(state, policy, tokenizer(), optimizer.state_dict(), REFERENCE)
    loaded = load(path)
    assert loaded.state == state
    assert loaded.path == path == tmp_path / "step-000003"
    assert loaded.reference is not None
    assert torch.equal(loaded.reference["weight"], REFERENCE["weight"])
    moments, saved = optimizer.state_dict()["state"], loaded.optimizer["state"]
    assert all(torch.equal(moments[i][name], saved[i][name]) for i in moments for name in moments[i])
    assert same(weights(load_model(path)), weights(policy))


def test_without_a_stored_reference_there_is_none(tmp_path: Path):
    assert load(save(Checkpoints(tmp_path, 2), 1)).reference is None


def test_the_latest_and_the_best_are_kept(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, 2)
    for step in range(1, 6):
        save(checkpoints, step, best=min(step, 2))
    assert names(tmp_path) == ["step-000002", "step-000004", "step-000005"]


def test_the_latest_may_be_the_best(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, 1)
    for step in (1, 2):
        save(checkpoints, step, best=step)
    assert names(tmp_path) == ["step-000002"]


def damage(path: Path, how: str) -> None:
    file = path / "model.safetensors"
    if how == "missing":
        file.unlink()
    elif how == "truncated":
        file.write_bytes(file.read_bytes()[:-1])
    elif how == "changed":
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    else:
        (path / "trainer/manifest.json").write_text("{")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "model.safetensors is missing"),
        ("truncated", "model.safetensors is not what was written"),
        ("changed", "model.safetensors is not what was written"),
        ("no manifest", "incomplete"),
    ],
)
def test_a_warning_names_the_damage_and_the_previous_checkpoint_is_used(tmp_path: Path, how: str, message: str):
    checkpoints = Checkpoints(tmp_path, 3)
    save(checkpoints, 1)
    newest = save(checkpoints, 2)
    damage(newest, how)
    with pytest.raises(CheckpointError, match=message):
        load(newest)
    with pytest.warns(GvpoWarning, match=f"step-000002.*{message}"):
        loaded = checkpoints.newest()
    assert loaded is not None
    assert loaded.state.step == 1


def test_without_checkpoints_there_is_no_latest(tmp_path: Path):
    assert Checkpoints(tmp_path / "none", 2).newest() is None


def test_an_unfinished_checkpoint_is_ignored_and_overwritten(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, 2)
    (tmp_path / ".step-000001.partial/trainer").mkdir(parents=True)
    (tmp_path / ".step-000001.partial/leftover").write_text("x")
    assert checkpoints.newest() is None
    assert not (save(checkpoints, 1) / "leftover").exists()
    assert names(tmp_path) == ["step-000001"]


def test_a_damaged_later_checkpoint_does_not_count_among_the_latest(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, 1)
    damage(save(checkpoints, 9), "missing")
    save(checkpoints, 4)
    assert names(tmp_path) == ["step-000004"]


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, 1)
    damage(save(checkpoints, 1), "changed")
    save(checkpoints, 1)
    assert load(tmp_path / "step-000001").state.step == 1
