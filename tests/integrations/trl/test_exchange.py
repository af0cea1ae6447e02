"""Checkpoints, data sets and rewards of TRL and gvpo work in the other."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, load_dataset
from peft import LoraConfig

import gvpo
from gvpo.integrations.trl import GVPOConfig, GVPOTrainer
from tests.integrations.trl.by_hand import OFFLINE, save_model, tokenizer
from tests.training import toy

ROWS = [{"prompt": digit, "digit": digit} for digit in toy.DIGITS[:8]]


@gvpo.reward(batch=True)
def count_digit(completions: Any, digit: Any, log_metric: Any = None, **_: Any) -> list[float]:
    """Return the share of the prompt's digit; written for TRL, with a metric of its own, and declared for gvpo."""
    if log_metric is not None:
        log_metric("rows", float(len(completions)))
    return [text.count(one) / 3 for text, one in zip(completions, digit, strict=True)]


def train_with_trl(directory: Path, model: str, data: Any, steps: int = 1, **named: Any) -> GVPOTrainer:
    settings = {**OFFLINE, "max_steps": steps, "save_strategy": "steps", "save_steps": 1, "max_completion_length": 3}
    args = GVPOConfig(str(directory), **settings)
    trainer = GVPOTrainer(model, count_digit, args, data, processing_class=tokenizer(), **named)
    trainer.train()
    return trainer


def same_weights(one: Any, other: Any) -> bool:
    theirs = dict(other.state_dict())
    return all(torch.equal(value, theirs[name]) for name, value in one.state_dict().items())


def test_a_checkpoint_of_trl_trains_in_gvpo(tmp_path):
    trainer = train_with_trl(tmp_path / "trl", save_model(tmp_path / "model"), Dataset.from_list(ROWS))
    checkpoint = tmp_path / "trl/checkpoint-1"
    loaded = gvpo.load_model(str(checkpoint))
    assert same_weights(loaded, trainer.model)
    args = toy.config(tmp_path / "gvpo", steps=1)
    ours = gvpo.Trainer(str(checkpoint), count_digit, args, Dataset.from_list(ROWS))
    ours.train()
    assert not same_weights(ours.model, loaded)
    assert [line["step"] for line in toy.lines(tmp_path / "gvpo")] == [1]


def test_a_checkpoint_of_gvpo_trains_in_trl(tmp_path):
    toy.trainer(tmp_path / "gvpo", steps=1, checkpoint_every=1, eval_problems=0).train()
    checkpoint = tmp_path / "gvpo/checkpoints/step-000001"
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    data = load_dataset("json", data_files=str(tmp_path / "rows.jsonl"), split="train", cache_dir=str(tmp_path))
    args = GVPOConfig(
        str(tmp_path / "trl"), **{**OFFLINE, "max_steps": 1, "logging_strategy": "steps", "logging_steps": 1}
    )
    trainer = GVPOTrainer(str(checkpoint), count_digit, args, data)  # its tokenizer is that of the checkpoint
    assert same_weights(gvpo.load_model(str(checkpoint)), trainer.model)
    trainer.train()
    assert trainer.state.log_history[0]["rows"] == 8


def test_an_adapter_of_trl_is_continued_by_gvpo(tmp_path):
    model = save_model(tmp_path / "model")
    adapter = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    train_with_trl(tmp_path / "trl", model, Dataset.from_list(ROWS), peft_config=adapter)
    args = toy.config(tmp_path / "gvpo", steps=1, lora_path=str(tmp_path / "trl/checkpoint-1"))
    ours = gvpo.Trainer(model, count_digit, args, Dataset.from_list(ROWS))
    ours.train()
    assert [line["step"] for line in toy.lines(tmp_path / "gvpo")] == [1]


@pytest.mark.parametrize("rows", [ROWS, Dataset.from_list(ROWS)], ids=["rows", "a data set of TRL"])
def test_a_reward_for_trl_scores_in_gvpo(tmp_path, rows):
    ours = toy.trainer(tmp_path / "gvpo", rewards=count_digit, data=rows, held=rows, steps=1, eval_problems=0)
    ours.train()
    assert 0 <= toy.lines(tmp_path / "gvpo")[-1]["reward/mean"] <= 1
