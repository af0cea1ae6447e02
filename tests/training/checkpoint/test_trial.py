"""`Trainer.check`, and `train` before its first step, find what would fail at the end of a run."""

import copy
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gvpo import runfiles
from gvpo.errors import GvpoError, GvpoWarning, ModelError, RoundTripError, RunError
from gvpo.model.merge import merge_adapter
from gvpo.model.model import save_model
from gvpo.training.checkpoint import trial
from gvpo.training.loop import Session
from gvpo.training.trainer import Trainer
from tests.training.toy import config, model, noticed, share, tokenizer, trainer

NO_EVAL: dict[str, Any] = {"held": [], "eval_problems": 0, "steps": 2}


def config_object(policy: Any, words: Any) -> None:
    policy.config.hook = object()


def config_tensor(policy: Any, words: Any) -> None:
    policy.config.scales = torch.ones(2)


def config_set(policy: Any, words: Any) -> None:
    policy.config.heads = {1, 2}


def config_generation(policy: Any, words: Any) -> None:
    policy.config.temperature = 0.7


def shared_weights(policy: Any, words: Any) -> None:
    first, second = policy.model.layers
    second.mlp.up_proj.weight = first.mlp.up_proj.weight


def tokenizer_object(policy: Any, words: Any) -> None:
    words.init_kwargs["hook"] = object()


UNSAVABLE = [
    (config_object, "model.config.hook, of type object"),
    (config_tensor, "model.config.scales, of type Tensor"),
    (config_set, "model.config.heads, of type set"),
    (config_generation, "the model cannot be saved: Some generation parameters are set in the model config"),
    (shared_weights, "the model cannot be saved: .* contained shared tensors"),
    (tokenizer_object, "the tokenizer cannot be saved: Object of type object"),
]


def changed(path: Path, change: Callable[[Any, Any], None], **settings: Any) -> Trainer:
    policy, words = model(), copy.deepcopy(tokenizer())
    change(policy, words)
    made = {**NO_EVAL, **settings}
    held = made.pop("held")
    return Trainer(policy, share(), config(path, **made), [{"prompt": "1", "digit": "1"}], held, words)


@pytest.mark.parametrize("start", [Trainer.check, Trainer.train])
@pytest.mark.parametrize(("change", "message"), UNSAVABLE, ids=lambda value: getattr(value, "__name__", None))
def test_models_that_cannot_be_saved_are_rejected_at_the_start(
    tmp_path: Path, start: Any, change: Callable[[Any, Any], None], message: str
):
    with pytest.raises(ModelError, match=message) as caught:
        start(changed(tmp_path / "run", change))
    assert "no checkpoint could be written" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not runfiles.is_run(tmp_path / "run")  # the corrected run can use the same directory


def test_a_tokenizer_that_changes_when_it_is_saved_is_rejected_at_the_start(tmp_path: Path, monkeypatch: Any):
    def other(policy: Any, words: Any) -> None:
        save = words.save_pretrained

        def saved(directory: str) -> None:
            save(directory)
            file = Path(directory) / "tokenizer_config.json"
            file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token": "<unk>"}))

        words.save_pretrained = saved

    with pytest.raises(RoundTripError, match="eos_token_id was 1 and is 2"):
        changed(tmp_path / "run", other, checkpoint_verify=True).train()


def test_weights_that_can_be_saved_are_accepted(tmp_path: Path):
    """Tied weights, and slices of one storage, which safetensors accepts."""

    def slices(policy: Any, words: Any) -> None:
        both = torch.zeros(2, 64, 32)
        for layer, part in zip(policy.model.layers, both, strict=True):
            layer.mlp.up_proj.weight.data = part

    changed(tmp_path / "sliced", slices).check()
    trainer(None, policy=model(tie_word_embeddings=True), **NO_EVAL).check()


def test_a_trial_leaves_no_trace(tmp_path: Path):
    trainer(tmp_path / "run", **NO_EVAL).check()
    assert not (tmp_path / "run").exists()
    (tmp_path / "run" / trial.TRIAL / "left").mkdir(parents=True)  # left by a run that was killed at that moment
    trainer(tmp_path / "run", **NO_EVAL).train()
    assert not (tmp_path / "run" / trial.TRIAL).exists()


# generation configs never stop a run


def test_sampling_settings_without_do_sample_do_not_stop_a_run(tmp_path: Path):
    """Many files generation_config.json on the Hub are like this."""
    start = tmp_path / "start"
    save_model(model(), tokenizer(), start)
    file = start / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "temperature": 0.6, "top_p": 0.9}))
    with noticed("temperature and top_p set do_sample to true"):
        ran = trainer(tmp_path / "run", policy=str(start), **NO_EVAL).train()
    written = json.loads((Path(ran["model"]) / "generation_config.json").read_text())
    assert (written["temperature"], written["top_p"], written["do_sample"]) == (0.6, 0.9, True)
    assert (Path(ran["model"]) / "model.safetensors").is_file()


@pytest.mark.filterwarnings("ignore::gvpo.model.tokenizer.TokenizerWarning")
def test_merging_repairs_the_bases_generation_config(tmp_path: Path):
    base = tmp_path / "base"
    save_model(model(), tokenizer(), base)
    adapter = trainer(tmp_path / "run", policy=str(base), lora_rank=2, **NO_EVAL).train()["model"]
    for directory in (base, Path(adapter)):
        file = directory / "generation_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "temperature": 0.6}))
    with pytest.warns(GvpoWarning, match="temperature set do_sample to true"):
        merged = merge_adapter(adapter, tmp_path / "merged")
    assert json.loads((merged / "generation_config.json").read_text())["do_sample"] is True


# directories


def test_check_rejects_a_run_directory_that_is_a_file_or_below_one(tmp_path: Path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file/run"):
        with pytest.raises(RunError, match=r"file is not a directory; choose another run\.dir"):
            trainer(place, **NO_EVAL).check()


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_check_rejects_a_read_only_directory(tmp_path: Path):
    tmp_path.chmod(0o500)
    with pytest.raises(RunError, match="is read-only"):
        trainer(tmp_path / "run", **NO_EVAL).check()
    tmp_path.chmod(0o700)


@pytest.mark.parametrize(("every", "count"), [(0, 1), (1, 2), (2, 1)])
def test_a_disk_too_small_for_the_checkpoints_causes_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int, count: int
):
    """Each parameter needs 12 bytes for its weight and two moments, and 4 more for the stored reference."""
    size = 16 * sum(weight.numel() for weight in model().parameters())
    free = size * count - 1
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    settings = {**NO_EVAL, "checkpoint_every": every, "checkpoint_keep": 3}
    with noticed(f"but {count} checkpoints of .* may exist at the same time"):
        trainer(tmp_path / "short", **settings).train()
    free += 1
    trainer(tmp_path / "enough", **settings).train()


# files besides checkpoints


def test_a_model_card_that_cannot_be_written_is_found_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def failing(*_: object) -> str:
        raise GvpoError("no card")

    monkeypatch.setattr(Session, "_card", failing)
    with pytest.raises(GvpoError, match="no card"):
        trainer(tmp_path / "run", **NO_EVAL).train()
    assert runfiles.read_metrics(tmp_path / "run/metrics.jsonl") == []
