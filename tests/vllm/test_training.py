"""Training that samples with vLLM in this process: whole runs, resumed runs, adapters, the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from gvpo.runfiles import read_rollouts, rollout_path
from tests.training.toy import lines, model, trainer
from tests.vllm.compare import MARKS, OPTIONS

pytestmark = MARKS
WIDE = {"hidden_size": 64}
"""Settings of the toy model with which its two heads have the size 32."""
SETTINGS: dict[str, Any] = {
    "sampling_engine": "vllm",
    "sampling_engine_options": {**OPTIONS.engine_options},
    "prompts_per_step": 10,
    "group_size": 8,
}


def check(run: Path, steps: int) -> None:
    """Check that each step sampled from the weights of the step before it."""
    found = [line for line in lines(run) if line["step"] > 0]  # the line of step 0 evaluates the start
    assert [line["step"] for line in found] == list(range(1, steps + 1))
    assert max(line["sampler/mismatch"] for line in found) < 1e-5
    for step in range(1, steps + 1):
        assert {row.version for row in read_rollouts(rollout_path(run, step))} == {step - 1}


def test_a_run_learns_and_is_resumed(tmp_path: Path):
    settings = {**SETTINGS, "checkpoint_every": 2, "eval_every": 30, "rollouts_every": 1, "learning_rate": 1e-2}
    trainer(tmp_path, policy=model(**WIDE), steps=20, **settings).train()
    trainer(tmp_path, policy=model(seed=3, **WIDE), steps=30, **settings).train(resume=True)
    check(tmp_path, 30)
    rewards = [line["reward/mean"] for line in lines(tmp_path) if line["step"] > 0]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.2


def test_an_adapter_is_trained(tmp_path: Path):
    settings = {**SETTINGS, "lora_rank": 4, "learning_rate": 3e-2, "rollouts_every": 1}
    trainer(tmp_path, policy=model(**WIDE), steps=3, **settings).train()
    check(tmp_path, 3)
    assert lines(tmp_path)[-1]["kl/reference"] > 1e-4  # the adapter does something


def test_an_asynchronous_run_is_within_its_bound(tmp_path: Path):
    settings = {**SETTINGS, "rollout_asynchronous": True, "rollout_max_staleness": 1, "rollouts_every": 1}
    trainer(tmp_path, policy=model(**WIDE), steps=6, **settings).train()
    found = [row for step in range(1, 7) for row in read_rollouts(rollout_path(tmp_path, step))]
    assert {row.age for row in found} <= {0, 1}
    assert len(found) == 6 * 80


def test_the_command_line_trains_and_generates(tmp_path: Path):
    init = ["model.init.num_attention_heads=2", "model.init.num_key_value_heads=1"]
    few = ["warm_start.steps=40", "train.steps=2", "eval.every=2", "data.eval_problems=8", "data.train_problems=100"]
    engine = ["sampling.engine_options.kv_cache_memory_bytes=268435456"]
    run = tmp_path / "run"
    train = ["train", "demo", f"run.dir={run}", "sampling.engine=vllm", *init, *few, *engine]
    assert "model" in gvpo(*train)
    assert max(json.loads(line).get("sampler/mismatch", 0) for line in (run / "metrics.jsonl").open()) < 1e-5
    out = tmp_path / "groups.jsonl"
    told = gvpo(
        *["generate", str(run), "--engine", "vllm", "--out", str(out), "--limit", "4", "sampling.max_tokens=40"],
        *["data.task=addition", "rewards.workers=1", *engine],
    )
    assert "4 groups" in told


def gvpo(*words: str) -> str:
    """Run the command line, and return what it prints."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "gvpo", *words], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
