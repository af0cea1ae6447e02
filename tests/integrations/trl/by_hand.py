"""Exactness of GVPO inside TRL, by an independent record: what the reward function saw, and plain autograd.

A reward function records the completions of each generation and a copy of the weights. Before each optimizer step the
`.grad` of TRL's trainer is compared with that of one row per forward pass over the groups that the step must have.
"""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel, TrainerCallback

from gvpo.integrations.trl import GVPOConfig, GVPOTrainer
from gvpo.integrations.trl.engines import policy_of
from gvpo.model.fresh_tokenizer import fresh_tokenizer
from gvpo.objectives import gvpo
from gvpo.types import Completion, Group
from gvpo.update.distributed import ranks
from tests.naive import naive_scores, naive_update, relative_error
from tests.training import toy

PROMPTS = ("1", "23", "4567", "89012", "34", "5", "678", "90")
BETA = 0.3
OFFLINE: dict[str, Any] = {
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
    "logging_strategy": "no",
    "gradient_checkpointing": False,
    "lr_scheduler_type": "constant",
    "optim": "sgd",
    "learning_rate": 0.05,
    "max_grad_norm": 0.0,
    "max_completion_length": 6,
    "num_generations": 4,
    "per_device_train_batch_size": 8,
    "max_steps": 2,
    "seed": 3,
}


@cache
def tokenizer() -> Any:
    return fresh_tokenizer(list(toy.DIGITS))


def save_model(directory: Path, dtype: torch.dtype = torch.float32, scale: float = 4.0, **init: Any) -> str:
    """Write a random model whose distributions are far from uniform, and its tokenizer; return its path."""
    model = toy.model(seed=1, **init)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale if parameter.ndim > 1 else 1.0)
    model.to(dtype).save_pretrained(directory)
    tokenizer().save_pretrained(directory)
    return str(directory)


def digits(completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float | None]:
    """Return a reward that differs within most groups."""
    return [sum(token % 5 for token in row) / 4 + len(row) / 3 for row in completion_ids]


def some_missing(completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float | None]:
    """Return no reward for completions that begin with some tokens."""
    values = digits(completion_ids)
    return [None if row[0] % 3 == 0 else value for row, value in zip(completion_ids, values, strict=True)]


def plain_copy(model: PreTrainedModel) -> PreTrainedModel:
    """Return a new model with the same weights, without the forward methods that TRL replaces; of LoRA, the base."""
    weights = {
        name.replace(".base_layer", ""): each for name, each in model.state_dict().items() if "lora_" not in name
    }
    fresh = type(model)(copy.deepcopy(model.config)).to(next(iter(weights.values())).dtype)
    fresh.load_state_dict({name: each.clone() for name, each in weights.items()})
    return fresh.requires_grad_(False).eval()


@dataclass
class Generation:
    """Completions of one generation on all ranks, with the weights that generated them."""

    prompts: list[str]
    rows: list[list[int]]
    rewards: list[float | None]
    policy: nn.Module


@dataclass
class Witness(TrainerCallback):
    """Records generations, and the error of each step's gradient."""

    reward: Callable[..., list[float | None]]
    drop_truncated: bool = False
    generations: list[Generation] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    groups: list[list[int]] = field(default_factory=list)
    trainer: Any = None

    @property
    def function(self) -> Callable[..., list[float | None]]:
        def recorded(prompts: Any, completion_ids: Any, **named: Any) -> list[float | None]:
            rewards = self.reward(completion_ids=completion_ids, **named)
            own = (list(prompts), [list(row) for row in completion_ids], rewards)
            parts = ranks.gather(own)
            joined = [[each for part in parts for each in part[place]] for place in range(3)]
            self.generations.append(Generation(*joined, policy=plain_copy(self._policy())))
            return rewards

        return recorded

    def _policy(self) -> PreTrainedModel:
        return policy_of(self.trainer, self.trainer.model)

    def begin(self, trainer: GVPOTrainer) -> None:
        self.trainer = trainer
        self.initial = plain_copy(self._policy())

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        policy = self._policy()
        names = [name for name, each in policy.named_parameters() if each.requires_grad]
        found = {name: each.grad for name, each in policy.named_parameters() if each.requires_grad}
        groups = self._expected(args, state.global_step)
        assert all((found[name] is None) == (not groups) for name in names)
        if not groups:
            self.errors.append(0.0)
            return
        policy.eval()  # without dropout
        expected = naive_update(policy, groups, partial(gvpo, beta=BETA), args.temperature)
        policy.train()
        self.errors.append(relative_error(found, expected.gradients))

    def _expected(self, args: Any, step: int) -> list[Group]:
        """Return the groups of an optimizer step: all of the generations that it serves, or its share of one."""
        per, rounds, own = args.steps_per_generation, args.num_iterations, args.gradient_accumulation_steps
        if per <= own:
            turns = range(step * own // per, (step + 1) * own // per)
            found = [group for turn in turns for group in self._groups(args, turn // rounds)]
        else:
            shares = per // own
            groups = self._groups(args, step // (shares * rounds))
            found = groups[step % shares :: shares]
        self.groups.append([len(group.completions) for group in found])
        return [group for group in found if len(group.completions) > 1]

    def _groups(self, args: Any, number: int) -> list[Group]:
        generation, size = self.generations[number], args.num_generations
        reference = self.initial if args.reference == "initial" else generation.policy
        return [
            self._group(generation, reference, range(at, at + size), args)
            for at in range(0, len(generation.rows), size)
        ]

    def _group(self, generation: Generation, reference: nn.Module, rows: range, args: Any) -> Group:
        prompt = tokenizer()(generation.prompts[rows[0]])["input_ids"]
        kept = []
        for row in rows:
            tokens, reward = generation.rows[row], generation.rewards[row]
            truncated = tokens[-1] not in (tokenizer().eos_token_id, tokenizer().pad_token_id)
            if reward is None or (self.drop_truncated and truncated):
                continue
            one = Completion(tokens, reward=reward)
            scores = naive_scores(reference, Group(prompt, [one]), one, args.temperature)[0]
            kept.append(dataclasses.replace(one, ref_logprobs=scores.detach()))
        return Group(prompt, kept)


def trained(directory: Path, reward: Any = digits, model: Any = None, **settings: Any) -> tuple[Any, Witness]:
    """Train, and return the trainer with the record of its gradients."""
    named = {name: settings.pop(name) for name in ("peft_config",) if name in settings}
    witness = Witness(reward, drop_truncated=settings.get("mask_truncated_completions", False))
    args = GVPOConfig(str(directory), gvpo_beta=BETA, **{**OFFLINE, **settings})
    data = Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS * 4])
    trainer = GVPOTrainer(
        model or save_model(directory / "model"),
        witness.function,
        args,
        data,
        processing_class=tokenizer(),
        callbacks=[witness],
        **named,
    )
    witness.begin(trainer)
    trainer.train()
    assert len(witness.errors) == args.max_steps
    return trainer, witness
