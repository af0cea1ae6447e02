"""The smallest training there is: after a digit, write that digit; a Qwen2 of width 32 and an 11-letter world."""

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from gvpo import notices
from gvpo.config import TrainConfig
from gvpo.model.fresh_tokenizer import fresh_tokenizer
from gvpo.model.model import load_model
from gvpo.rollout.collect import EncodedProblem, Rollout
from gvpo.rollout.sources.live import LiveSource
from gvpo.runfiles import RolloutRow, read_rollouts, rollout_path
from gvpo.sampling.base import Request, SamplingParams
from gvpo.sampling.transformers import TransformersSampler
from gvpo.training.trainer import Trainer
from gvpo.types import Group, Problem

DIGITS = "0123456789"
ROWS = [{"prompt": digit, "digit": digit} for digit in DIGITS]
INIT = {
    "architecture": "qwen2",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
TIMES = ("seconds/", "tokens/per_second")


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    return fresh_tokenizer(list(DIGITS))


def model(seed: int = 0, **init: Any) -> PreTrainedModel:
    own = tokenizer()
    ids = {"vocab_size": len(own), "eos_token_id": own.eos_token_id, "pad_token_id": own.pad_token_id}
    return load_model(None, init={**INIT, **ids, **init}, seed=seed)


def share() -> Callable[..., list[float]]:
    """Return a reward, the fraction of three positions with the digit; being a closure, it reaches workers by value."""

    def digits(completions: Any, digit: Any, **_: Any) -> list[float]:
        return [text.count(one) / 3 for text, one in zip(completions, digit, strict=True)]

    return digits


def config(run_dir: Path | None = None, **settings: Any) -> TrainConfig:
    small = {
        "run_dir": run_dir,
        "steps": 3,
        "prompts_per_step": 4,
        "group_size": 4,
        "max_tokens": 3,
        "learning_rate": 3e-3,
        "reference": "initial",
        "reward_workers": 1,
        "checkpoint_verify": False,
    }
    if "epochs" in settings:
        del small["steps"]
    return TrainConfig(**{**small, **settings})


def trainer(
    run_dir: Path | None,
    *,
    rewards: Any = None,
    policy: Any = None,
    data: Any = ROWS,
    held: Any = ROWS,
    environment: Any = None,
    **settings: Any,
) -> Trainer:
    return Trainer(
        policy if policy is not None else model(),
        rewards if rewards is not None else share(),
        args=config(run_dir, **settings),
        train_dataset=data,
        eval_dataset=held,
        processing_class=tokenizer(),
        environment=environment,
    )


def groups(count: int = 4, *, policy: PreTrainedModel | None = None, seed: int = 0) -> list[Group]:
    """Return groups of four live samples; each group has unequal rewards."""
    sampler = TransformersSampler(policy or model(), tokenizer())
    prompts = [Request(digit, tuple(tokenizer()(digit).input_ids)) for digit in DIGITS[:count]]
    sampled = sampler.sample(prompts, SamplingParams(group_size=4, max_tokens=3), seed=seed, step=1)
    return [
        Group(request.prompt, [with_reward(row, float(i % 3)) for i, row in enumerate(rows)], id=request.id)
        for request, rows in zip(prompts, sampled, strict=True)
    ]


def with_reward(row: Any, reward: float | None) -> Any:
    return dataclasses.replace(row, reward=reward)


def encoded(rows: Sequence[dict[str, str]] = ROWS) -> list[EncodedProblem]:
    return [
        EncodedProblem(
            Problem(row["prompt"], row["prompt"], {"digit": row["digit"]}), tuple(tokenizer()(row["prompt"]).input_ids)
        )
        for row in rows
    ]


def lines(run_dir: Path, *, times: bool = False) -> list[dict[str, Any]]:
    """Return the metrics lines, by default without times."""
    parsed = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if times or not key.startswith(TIMES)} for line in parsed]


def trained_on(run: Path, steps: int) -> Counter[str]:
    """Return how often each prompt was trained on, by the rollout files of all steps."""
    groups = {(step, row.group) for step in range(1, steps + 1) for row in read_rollouts(rollout_path(run, step))}
    return Counter(name.partition("#")[0] for _, name in groups)


def without_times(rows: Sequence[RolloutRow]) -> list[RolloutRow]:
    """Return rows without the durations of their turns."""
    return [dataclasses.replace(row, turns=[{**turn, "seconds": 0} for turn in row.turns]) for row in rows]


def weights(policy: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in policy.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@contextmanager
def noticed(*patterns: str) -> Iterator[list[str]]:
    """Collect the notices that runs print in this context, and check that one matches each pattern."""
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(notices, "show", lambda message, *_: said.append(message))
        yield said
    for pattern in patterns:
        assert any(re.search(pattern, message) for message in said), (pattern, said)


@contextmanager
def stopped_at(step: int) -> Iterator[None]:
    """Send Ctrl-C while step `step` is being sampled."""
    rollout = LiveSource.rollout

    def interrupted(source: LiveSource, now: int, *words: Any, **named: Any) -> Rollout:
        if now == step:
            raise KeyboardInterrupt
        return rollout(source, now, *words, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LiveSource, "rollout", interrupted)
        with suppress(KeyboardInterrupt):
            yield
            pytest.fail(f"the run has not reached step {step}")
