"""GVPO inside TRL learns the demo: column addition from a reward that only checks the answer."""

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

import gvpo
from gvpo.cli.shipped import find_recipe
from gvpo.config import TrainConfig
from gvpo.config.plan import warm_start_settings
from gvpo.config.recipe import read_recipe
from gvpo.data.tasks.addition import problems
from gvpo.integrations.trl import GVPOConfig, GVPOTrainer
from gvpo.model.fresh_tokenizer import fresh_tokenizer
from gvpo.rewards import load

RECIPE = TrainConfig(**read_recipe(find_recipe("demo")))


def warm_model(directory: Path, seed: int) -> str:
    """Train the demo's warm start, save it, and return its path."""
    recipe = RECIPE.replace(seed=seed)
    tokenizer = fresh_tokenizer(recipe.vocabulary)
    ids = {name: getattr(tokenizer, name) for name in ("eos_token_id", "pad_token_id")}
    model = gvpo.load_model(init={"vocab_size": len(tokenizer), **ids, **recipe.model_init}, seed=seed)
    stage = warm_start_settings(recipe).replace(run_dir=directory / "warm", seed=seed)
    gvpo.Trainer(model, args=stage, processing_class=tokenizer).train()
    model.save_pretrained(directory / "start")
    tokenizer.save_pretrained(directory / "start")
    return str(directory / "start")


def accuracy(model: str, seed: int) -> float:
    """Return the share of right answers on the demo's 200 held-out problems, sampled once each."""
    args = TrainConfig(task="addition", eval_problems=200, max_tokens=40, eval_greedy=False, seed=seed)
    return gvpo.Trainer(model, "boxed_answer", args).evaluate()["eval/accuracy"]


def addition_rows(seed: int) -> list[dict[str, Any]]:
    return [{"prompt": each.prompt, **each.columns} for each in problems("train", 10_000, seed=seed)]


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_demo_is_learned_on_every_seed(tmp_path, seed):
    start = warm_model(tmp_path, seed)
    args = GVPOConfig(
        str(tmp_path / "run"),
        gvpo_beta=0.1,
        reference="initial",
        max_steps=200,
        per_device_train_batch_size=128,
        num_generations=8,
        max_completion_length=40,
        learning_rate=3e-4,
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        gradient_checkpointing=False,
        seed=seed,
    )
    before = accuracy(start, seed)
    trainer = GVPOTrainer(start, load("boxed_answer"), args, Dataset.from_list(addition_rows(seed)))
    trainer.train()
    trainer.save_model(str(tmp_path / "end"))
    after = accuracy(str(tmp_path / "end"), seed)
    assert after >= 0.8
    assert after - before >= 0.35
