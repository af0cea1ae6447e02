"""The gradient of each optimizer step inside TRL, against one row per forward pass and plain autograd."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

from tests.integrations.trl.by_hand import save_model, some_missing, trained
from tests.integrations.trl.rank_jobs import gradients
from tests.naive import double_precision
from tests.training.world import world

FLOAT32, FLOAT64 = 1e-5, 1e-6
ENGINES = ("gvpo", "trl")
CASES: dict[str, dict[str, Any]] = {
    "one micro-batch, initial": {"reference": "initial", "max_steps": 3},
    "one micro-batch, previous": {},
    "groups split by accumulation": {
        "reference": "initial",
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4,
    },
    "two steps per generation, initial": {"reference": "initial", "steps_per_generation": 2, "max_steps": 4},
    "two steps per generation, previous": {"steps_per_generation": 2, "max_steps": 4},
    "two iterations": {"reference": "initial", "num_iterations": 2, "max_steps": 4},
    "two generations per step": {"steps_per_generation": 1, "gradient_accumulation_steps": 2, "max_steps": 3},
    "everything at once": {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "steps_per_generation": 4,
        "num_iterations": 2,
        "max_steps": 6,
    },
    "no reward for some rows": {"reference": "initial", "reward": some_missing, "max_steps": 3},
    "truncated rows masked": {
        "reference": "initial",
        "mask_truncated_completions": True,
        "max_completion_length": 16,
        "max_steps": 3,
    },
    "gradient checkpointing": {"reference": "initial", "gradient_checkpointing": True},
    "a temperature": {"reference": "initial", "temperature": 0.7},
}
FAST = (
    ("one micro-batch, initial", "gvpo"),
    ("groups split by accumulation", "gvpo"),
    ("groups split by accumulation", "trl"),
    ("two steps per generation, previous", "gvpo"),
    ("two generations per step", "trl"),
    ("everything at once", "gvpo"),
    ("everything at once", "trl"),
    ("no reward for some rows", "trl"),
    ("truncated rows masked", "gvpo"),
    ("gradient checkpointing", "gvpo"),
)
"""Cases that run in the fast suite; the others are variations of them."""


def marked(name: str, engine: str) -> Any:
    return pytest.param(name, engine, marks=() if (name, engine) in FAST else pytest.mark.slow)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize(("name", "engine"), [marked(name, engine) for name in CASES for engine in ENGINES])
def test_each_step_has_the_exact_gradient(tmp_path, model, name, engine):
    trainer, witness = trained(tmp_path, model=model, engine=engine, **CASES[name])
    assert trainer.engine == engine
    assert max(witness.errors) < FLOAT32
    smaller = name in ("no reward for some rows", "truncated rows masked")
    assert (min(map(min, witness.groups)) < 4) == smaller


@pytest.mark.parametrize(
    ("engine", "checkpointing"),
    [("gvpo", True), ("trl", False), pytest.param("gvpo", False, marks=pytest.mark.slow)],
)
def test_an_adapter_is_compared_with_its_base(tmp_path, model, engine, checkpointing):
    adapter = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    settings = {"reference": "initial", "engine": engine, "gradient_checkpointing": checkpointing, "max_steps": 3}
    _, witness = trained(tmp_path, model=model, peft_config=adapter, **settings)
    assert max(witness.errors) < FLOAT32


@pytest.mark.parametrize("engine", ENGINES)
def test_float64_weights_leave_only_trls_own_rounding(tmp_path, model, engine):
    wide = save_model(tmp_path / "wide", torch.float64)
    settings = {**CASES["everything at once"], "reference": "initial", "max_steps": 4}
    with double_precision(None):
        _, witness = trained(tmp_path, model=wide, engine=engine, model_init_kwargs={"dtype": "auto"}, **settings)
    assert max(witness.errors) < FLOAT64


@pytest.mark.parametrize("engine", ENGINES)
def test_dropout_is_off_in_the_update(tmp_path, engine):
    noisy = save_model(tmp_path / "noisy", attention_dropout=0.5)
    _, witness = trained(tmp_path, model=noisy, engine=engine, reference="initial", max_steps=1)
    assert max(witness.errors) < FLOAT32


ACROSS = {"per_device_train_batch_size": 2, "reference": "initial", "max_steps": 3}
WORLD: dict[str, dict[str, Any]] = {
    "groups across ranks, TRL's forward": {"engine": "trl", **ACROSS, "max_steps": 1},
    "groups across ranks and steps": {
        "engine": "gvpo",
        "per_device_train_batch_size": 2,
        "steps_per_generation": 2,
        "reward": some_missing,
    },
}
MORE = {"groups across ranks": {"engine": "gvpo", **ACROSS}} | {
    f"{name}, {engine}": {**CASES[name], "engine": engine} for name in CASES for engine in ENGINES
}


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
@pytest.mark.parametrize("cases", [WORLD, pytest.param(MORE, marks=pytest.mark.slow)], ids=["across", "all"])
def test_two_ranks_have_the_gradient_of_one(tmp_path: Path, model, cases):
    for rank in world(2, tmp_path, gradients, tmp_path, model, cases):
        assert {name: error for name, errors in rank.items() for error in errors if error >= FLOAT32} == {}
