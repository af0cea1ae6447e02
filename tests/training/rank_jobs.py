"""Jobs of ranks in the tests; a separate module, so that the ranks do not import pytest."""

import os
import signal
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from gvpo import lazy, runfiles
from gvpo.config.objectives import find_objective
from gvpo.errors import DataError, GvpoWarning
from gvpo.objectives import gvpo, sft
from gvpo.training.learner import Learner
from gvpo.training.trainer import Trainer
from gvpo.update.distributed import fsdp, ranks
from gvpo.update.group_backward import UpdateOutput, group_backward, score
from gvpo.update.passes import Forwards, PlacedCalls
from tests.fakes import tiny_model
from tests.naive import double_precision, gradients, naive_update, random_episodes, random_groups, relative_error
from tests.training import guessing, toy
from tests.training.engines import Concurrent, Engine, engines_of

GROUPS = random_groups([(5, (7, 3, 9)), (2, (4, 4)), (8, (1, 12, 6, 2))])
OBJECTIVES = {"gvpo": gvpo, "sft": sft}
LOGGED = [
    {"prompt": one, "completions": rows, "rewards": [row.count(one) / 3 for row in rows]}
    for one, rows in zip(
        toy.DIGITS,
        [["111", "0"], ["1", "12", "21", "3"], ["22", "2", "0"], ["333", "3", "31", "13", "0"], ["4", "0"]] * 2,
        strict=True,
    )
]
"""Groups of unequal sizes and lengths."""


Case = tuple[str, str, torch.dtype, tuple[int, ...], str, int]
"""Wrapping of the model, its architecture, its dtype, the owner of each of GROUPS, objective, budget."""


def exact(model: nn.Module, dtype: torch.dtype) -> AbstractContextManager[None]:
    return double_precision(model) if dtype == torch.float64 else nullcontext()


def updates(cases: Sequence[Case]) -> list[dict[str, float]]:
    """Return the distance of an update on many ranks from that of one process, for each case."""
    return [_update(*case) for case in cases]


def _update(
    wrapped: str, kind: str, dtype: torch.dtype, owners: tuple[int, ...], objective: str, budget: int
) -> dict[str, float]:
    true, expected = _one_process(kind, dtype, objective, budget)
    model = tiny_model(kind, dtype=dtype)
    if wrapped == "fsdp2":
        fsdp.shard(model, half=False)
        assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    policy = nn.parallel.DistributedDataParallel(model) if wrapped == "ddp" else model
    own = [group for group, owner in zip(GROUPS, owners, strict=True) if owner == ranks.rank()]
    with exact(model, dtype):
        output = group_backward(policy, own, OBJECTIVES[objective], tokens_per_microbatch=budget)
        scored = score(policy, own, tokens_per_microbatch=budget)
    found = {name: fsdp.full(each.grad).clone() for name, each in model.named_parameters() if each.grad is not None}
    assert found.keys() == expected.keys()
    rows = _rows(owners)
    return {
        "gradient": relative_error(found, expected),
        "loss": float((output.loss - true.loss).abs()),
        "c": max(
            _gap(one.coefficients, true.rows[row].coefficients) for one, row in zip(output.rows, rows, strict=True)
        ),
        "logprobs": max(
            _gap(one.logprobs, true.rows[row].logprobs) for one, row in zip(output.rows, rows, strict=True)
        ),
        "scored": max(_gap(one.logprobs, true.rows[row].logprobs) for one, row in zip(scored, rows, strict=True)),
    }


def routed_updates(cases: Sequence[tuple[str, tuple[int, ...], int]]) -> list[dict[str, float]]:
    """Return the same as `updates` for a mixture with replayed experts and a router loss: wrapping, owners, budget."""
    return [_routed_update(*case) for case in cases]


def _routed_update(wrapped: str, owners: tuple[int, ...], budget: int) -> dict[str, float]:
    routed: dict[str, Any] = {"routing": "replay", "router_aux_coef": 0.3, "tokens_per_microbatch": budget}
    model = tiny_model("qwen3_moe", dtype=torch.float64)
    with ranks.alone(), double_precision(model):
        kept = iter(score(tiny_model("qwen3_moe", dtype=torch.float64, seed=1), GROUPS, routing="watch"))
        groups = [
            replace(group, completions=[replace(row, experts=next(kept).experts) for row in group.completions])
            for group in GROUPS
        ]
        true = group_backward(model, groups, gvpo, **routed)
    expected = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    model = tiny_model("qwen3_moe", dtype=torch.float64)
    if wrapped == "fsdp2":
        fsdp.shard(model, half=False)
    policy = nn.parallel.DistributedDataParallel(model) if wrapped == "ddp" else model
    own = [group for group, owner in zip(groups, owners, strict=True) if owner == ranks.rank()]
    with double_precision(model):
        output = group_backward(policy, own, gvpo, **routed)
    found = {name: fsdp.full(each.grad).clone() for name, each in model.named_parameters() if each.grad is not None}
    metrics = {name: float((output.metrics[name] - value).abs()) for name, value in true.metrics.items()}
    return {
        "gradient": relative_error(found, expected),
        "loss": float((output.loss - true.loss).abs()),
        "own experts": float(
            sum(row.experts is not None for row in output.rows) != sum(len(g.completions) for g in own)
        ),
        **metrics,
    }


def episode_updates(objectives: Sequence[str], owners: Sequence[int], budget: int) -> list[float]:
    """Return the distance of an update of episodes on many ranks from one row per forward, per objective."""
    episodes, found = random_episodes(), []
    own = [group for group, owner in zip(episodes, owners, strict=True) if owner == ranks.rank()]
    for name in objectives:
        objective: Any = lazy.named(find_objective(name).function)
        model = tiny_model("llama", dtype=torch.float64)
        with double_precision(model):
            true = naive_update(model, episodes, objective)
            group_backward(model, own, objective, tokens_per_microbatch=budget)
        found.append(relative_error(gradients(model), true.gradients))
    return found


def _one_process(kind: str, dtype: torch.dtype, objective: str, budget: int) -> tuple[UpdateOutput, dict[str, Tensor]]:
    """Make the same update without ranks."""
    model = tiny_model(kind, dtype=dtype)
    with ranks.alone(), exact(model, dtype):
        output = group_backward(model, GROUPS, OBJECTIVES[objective], tokens_per_microbatch=budget)
    return output, {name: each.grad for name, each in model.named_parameters() if each.grad is not None}


def _rows(owners: Sequence[int]) -> list[int]:
    """Return the positions in GROUPS of the returned rows, which are in order of ranks."""
    sizes = [len(group.completions) for group in GROUPS]
    first = [sum(sizes[:index]) for index in range(len(sizes))]
    order = sorted(range(len(GROUPS)), key=lambda index: owners[index])
    return [first[index] + row for index in order for row in range(sizes[index])]


def _gap(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def gradients_of_two_calls() -> list[float]:
    """Return the distance of `.grad` after two calls from twice that after one, plain and wrapped by DDP."""
    return [_two_calls(wrapped) for wrapped in ("plain", "ddp")]


def _two_calls(wrapped: str) -> float:
    model = tiny_model("llama", dtype=torch.float64)
    policy = nn.parallel.DistributedDataParallel(model) if wrapped == "ddp" else model
    own = GROUPS[ranks.rank() :: ranks.count()]
    group_backward(policy, own, gvpo)
    once = {name: 2 * gradient for name, gradient in gradients(model).items()}
    group_backward(policy, own, gvpo)
    return relative_error(gradients(model), once)


def logged_run(path: Path, resume: bool = False, **settings: Any) -> dict[str, Any]:
    """Train on LOGGED without sampling."""
    warnings.simplefilter("ignore", GvpoWarning)
    return _logged_trainer(path, **settings).train(resume=resume)


def _logged_trainer(path: Path, **settings: Any) -> Trainer:
    given = {
        "eval_problems": 0,
        "beta": 0.1,
        "reference": "every:4",
        "prompts_per_step": 3,
        "schedule": "linear",
        **settings,
    }
    return Trainer(toy.model(), args=toy.config(path, **given), train_dataset=LOGGED, processing_class=toy.tokenizer())


def online_run(path: Path, resume: bool = False, **settings: Any) -> dict[str, Any]:
    """Train on live samples, with evaluations."""
    return toy.trainer(path, **settings).train(resume=resume)


def engine_run(path: Path, **settings: Any) -> list[int]:
    """Train on the samples of an engine with its own weights, and return the versions of the weights that it got."""
    with engines_of(Engine) as engines:
        toy.trainer(path, sampling_engine="vllm", **settings).train()
    return [version for engine in engines for version in engine.versions]


def concurrent_run(path: Path, **settings: Any) -> list[int]:
    """Train on the samples of an engine that several threads may call, and return the versions that it got."""
    with engines_of(Concurrent) as engines:
        toy.trainer(path, sampling_engine="server", sampling_server_urls=["http://localhost:1"], **settings).train()
    return [version for engine in engines for version in engine.versions]


def distilled_run(path: Path, teacher: str, **settings: Any) -> dict[str, Any]:
    """Imitate a teacher on live samples, without rewards."""
    args = toy.config(path, objective="distill", teacher=teacher, **settings)
    return Trainer(toy.model(), args=args, train_dataset=toy.ROWS, processing_class=toy.tokenizer()).train()


def episode_run(path: Path, **settings: Any) -> None:
    """Train on episodes."""
    episodes = {"environment_between": "{observation}5", "environment_max_turns": 3, "environment_turn_tokens": 5}
    limits = {"environment_workers": 1, "max_tokens": 24, "stop_token_ids": [3, 4, 5], "prefix_sharing": "off"}
    toy.trainer(path, environment=guessing.Opening, **{**episodes, **limits, **settings}).train()


class StopsOn(TrainerCallback):
    """Asks for a checkpoint and the end of the run after step 2, on one rank."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        assert state.is_world_process_zero == (ranks.rank() == 0)
        if ranks.rank() == self.rank and state.global_step == 2:
            control.should_training_stop = True


class FailsOn(StopsOn):
    """Raises an error after step 2, on one rank."""

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if ranks.rank() == self.rank and state.global_step == 2:
            raise ValueError("broken")


def watched_run(path: Path, callback: type[StopsOn], **settings: Any) -> tuple[dict[str, Any], float]:
    """Train with a callback that acts on the last rank; return the summary and an evaluation after it."""
    run = toy.trainer(path, **settings)
    run.add_callback(callback(rank=ranks.count() - 1))
    return run.train(), run.evaluate()["eval_accuracy"]


def checked_run(path: Path) -> None:
    """Check a run on live samples, without training it."""
    toy.trainer(path, checkpoint_verify=True).check()


def killed_run(path: Path, step: int, rank: int, **settings: Any) -> None:
    """Send SIGKILL to a rank in the middle of a step."""
    learn = Learner.learn

    def killed(learner: Learner, groups: Any, now: int) -> Any:
        if (now, ranks.rank()) == (step, rank):
            os.kill(os.getpid(), signal.SIGKILL)
        return learn(learner, groups, now)

    with patch.object(Learner, "learn", killed):
        logged_run(path, **settings)


def stopped_run(path: Path, step: int, rank: int, **settings: Any) -> None:
    """Send SIGTERM to one rank only."""
    learn = Learner.learn

    def asked(learner: Learner, groups: Any, now: int) -> Any:
        if (now, ranks.rank()) == (step, rank):
            signal.raise_signal(signal.SIGTERM)
        return learn(learner, groups, now)

    with patch.object(Learner, "learn", asked):
        logged_run(path, **settings)


def short_of_memory(rank: int, tokens: int, path: Path, **settings: Any) -> dict[str, Any]:
    """Train while forwards of more than `tokens` scored tokens do not fit on one rank."""
    run = Forwards.run

    def small(forwards: Forwards, placed: PlacedCalls, *words: Any) -> Any:
        if ranks.rank() == rank and len(placed.row) > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return run(forwards, placed, *words)

    with patch.object(Forwards, "run", small):
        return logged_run(path, **settings)


def broken_disk(path: Path) -> None:
    """Let the first rank fail to write a metrics line."""

    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with patch.object(runfiles, "append", refuse):
        logged_run(path)


def unlike_models() -> None:
    """Make a different model on each rank."""
    Trainer(
        toy.model(seed=ranks.rank()),
        toy.share(),
        args=toy.config(),
        train_dataset=toy.ROWS,
        processing_class=toy.tokenizer(),
    )


def split_model() -> None:
    """Pass a model that is already split."""
    model = toy.model()
    fsdp.shard(model, half=False)
    Trainer(model, toy.share(), args=toy.config(), train_dataset=toy.ROWS, processing_class=toy.tokenizer())


def gradient_after_an_error() -> bool:
    """Return whether `.grad` is unchanged if the last rank cannot push."""
    model = tiny_model("llama")
    group_backward(model, GROUPS[ranks.rank() :: ranks.count()], gvpo)
    before = gradients(model)
    run = Forwards.run

    def fails(forwards: Forwards, *words: Any) -> Any:
        if ranks.rank() == 1 and torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(forwards, *words)

    with patch.object(Forwards, "run", fails):
        try:
            group_backward(model, GROUPS[ranks.rank() :: ranks.count()], gvpo, tokens_per_microbatch=12)
        except torch.OutOfMemoryError:
            after = gradients(model)
            return all(torch.equal(after[name], before[name]) for name in before)
    return False


def messages() -> dict[str, Any]:
    """Return what ranks send each other."""
    number = ranks.rank()
    failures = []
    for fails in (_first_fails, _last_fails):
        try:
            fails()
        except Exception as error:
            failures.append((type(error).__name__, str(error)))
    return {
        "gathered": ranks.gather(f"rank {number}"),
        "first": ranks.on_first(lambda: number + 10),
        "largest": ranks.largest(number),
        "every": (ranks.every(True), ranks.every(number == 0)),
        "some": (ranks.some(False), ranks.some(number == 0)),
        "union": ranks.union_([number == 0, number == 1, False]),
        "dealt": (list(ranks.deal(GROUPS).owners), ranks.deal(GROUPS).own_rows),
        "failures": failures,
    }


def _first_fails() -> None:
    ranks.on_first(lambda: 1 // 0)


def _last_fails() -> None:
    with ranks.together():
        if ranks.rank() == ranks.count() - 1:
            raise DataError("a bad row")
