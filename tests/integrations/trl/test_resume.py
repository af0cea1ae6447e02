"""A resumed run has the weights of one without an interruption, also in the middle of a generation."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from datasets import Dataset

from gvpo.errors import GvpoWarning
from gvpo.integrations.trl import GVPOConfig, GVPOTrainer
from tests.integrations.trl.by_hand import OFFLINE, PROMPTS, digits, save_model, tokenizer

SAVED: dict[str, Any] = {"optim": "adamw_torch", "learning_rate": 1e-3, "save_strategy": "steps", "save_steps": 1}


def run(directory: Path, model: str, resume: Path | None = None, **settings: Any) -> GVPOTrainer:
    args = GVPOConfig(str(directory), **{**OFFLINE, **SAVED, "max_steps": 3, **settings})
    data = Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS * 4])
    trainer = GVPOTrainer(model, digits, args, data, processing_class=tokenizer())
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return trainer


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(checkpoint / "model.safetensors")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return a run of three steps, of which two share a generation, and its starting model."""
    directory = tmp_path_factory.mktemp("whole")
    model = save_model(directory / "model")
    run(directory / "run", model, reference="initial", steps_per_generation=2)
    return directory / "run", model


@pytest.mark.parametrize("step", [1, 2])
def test_a_resumed_run_is_equal_bit_by_bit(tmp_path, whole, step):
    path, model = whole
    checkpoint = shutil.copytree(path / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    assert (checkpoint / "gvpo_completions_0.pt").exists() == (step == 1)
    run(tmp_path, model, checkpoint, reference="initial", steps_per_generation=2)
    found, expected = weights(tmp_path / "checkpoint-3"), weights(path / "checkpoint-3")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_completions_of_another_number_of_processes_are_not_used(tmp_path, whole):
    path, model = whole
    checkpoint = shutil.copytree(path / "checkpoint-1", tmp_path / "checkpoint-1")
    file = checkpoint / "gvpo_completions_0.pt"
    torch.save(torch.load(file, weights_only=True) | {"ranks": 2}, file)
    with pytest.warns(GvpoWarning, match="those of 2 processes"):
        trainer = run(tmp_path, model, checkpoint, reference="initial", steps_per_generation=2)
    assert trainer.state.global_step == 3
