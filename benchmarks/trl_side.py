"""TRL's side of the benchmarks: its real GRPOTrainer, created offline for a model, with its batches and its runs."""

import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from measure import now
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from gvpo import Group
from gvpo.integrations.trl import FastGRPOTrainer
from gvpo.integrations.trl.rows import GROUP, REWARD, Served
from gvpo.model.fresh_tokenizer import fresh_tokenizer
from gvpo.objectives.grpo import STD_EPSILON

OFFLINE: dict[str, Any] = {"use_cpu": True, "report_to": "none", "gradient_checkpointing": False}
"""Checkpointing is TRL's default and costs time; without it TRL is at its fastest."""


def grpo_trainer(
    model: PreTrainedModel, rows: int, group_size: int, *, half: bool, kind: type = GRPOTrainer, **settings: Any
) -> GRPOTrainer:
    """Return a GRPOTrainer with TRL's defaults, except for settings that offline CPU training or the comparison need.

    Args:
        model: Model, trained in place; TRL adds its own head to it, so pass a copy.
        rows: Number of completions per forward.
        group_size: Number of completions per prompt.
        half: Use bfloat16 by autocast instead of float32.
        kind: GRPOTrainer or a class with its arguments.
        settings: Other fields of GRPOConfig.
    """
    directory = tempfile.mkdtemp()
    if settings.get("beta"):
        model.save_pretrained(directory)  # TRL loads its reference from the directory of the model
        model.config._name_or_path = directory
    config = GRPOConfig(
        output_dir=directory,
        bf16=half,
        per_device_train_batch_size=rows,
        num_generations=group_size,
        **{**OFFLINE, **settings},
    )
    data = Dataset.from_list([{"prompt": "a"}] * max(1, rows))
    trainer = kind(
        model, lambda completions, **_: [0.0] * len(completions), config, data, processing_class=fresh_tokenizer(["a"])
    )
    trainer.current_gradient_accumulation_steps = 1  # set by the training loop, which does not run here
    trainer.model.train()
    return trainer


def train(
    model: PreTrainedModel,
    tokenizer: Any,
    rows: Sequence[dict[str, Any]],
    reward: Any,
    *,
    kind: type = GRPOTrainer,
    **settings: Any,
) -> list[dict[str, float]]:
    """Run GRPOTrainer with AdamW at a constant rate, by default in float32.

    Args:
        model: Model, trained in place.
        tokenizer: Tokenizer of the model.
        rows: Prompts with the columns that the reward needs.
        reward: Reward function.
        kind: GRPOTrainer or a class with its arguments.
        settings: Other fields of GRPOConfig.

    Returns:
        For each step: its seconds, the seconds of sampling and of the update, the sampled tokens and the mean reward.
    """
    schedule = {"lr_scheduler_type": "constant", "weight_decay": 0.0}
    silence = {"logging_steps": 1, "save_strategy": "no", "disable_tqdm": True}
    config = GRPOConfig(output_dir=tempfile.mkdtemp(), **{"bf16": False, **OFFLINE, **schedule, **silence, **settings})
    clock = _Clock()
    data = Dataset.from_list(list(rows))
    trainer = kind(model, reward, config, data, processing_class=tokenizer, callbacks=[clock])
    sampling, rewarding = _timed(trainer, "_generate"), _timed(trainer, "_calculate_rewards")
    trainer.train()
    lines = [line for line in trainer.state.log_history if "reward" in line]
    completions = config.generation_batch_size
    return [
        {
            "seconds": seconds,
            "sampling": sampling[step],
            "update": seconds - sampling[step] - rewarding[step],
            "tokens": line["completions/mean_length"] * completions,
            "reward": line["reward"],
        }
        for step, (seconds, line) in enumerate(zip(clock.seconds, lines, strict=True))
    ]


class _Clock(TrainerCallback):
    """Seconds of each step."""

    def __init__(self) -> None:
        self.began, self.seconds = 0.0, list[float]()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.began = now()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(now() - self.began)


def _timed(owner: Any, name: str) -> list[float]:
    """Return a list of the seconds of each call of a method from now on."""
    found: list[float] = []
    method = getattr(owner, name)

    def timed(*arguments: Any, **keywords: Any) -> Any:
        began = now()
        try:
            return method(*arguments, **keywords)
        finally:
            found.append(now() - began)

    setattr(owner, name, timed)
    return found


def inputs_of(groups: Sequence[Group]) -> dict[str, Tensor]:
    """Return TRL's `inputs`: prompts padded on the left, completions on the right, TRL's own advantages."""
    rows = [(group.prompt, row) for group in groups for row in group.completions]
    prompts, completions = [prompt for prompt, _ in rows], [row.tokens for _, row in rows]
    prompt_ids, prompt_mask = _padded(prompts, left=True)
    completion_ids, completion_mask = _padded(completions, left=False)
    inputs = {
        "prompt_ids": prompt_ids,
        "prompt_mask": prompt_mask,
        "completion_ids": completion_ids,
        "completion_mask": completion_mask,
        "advantages": torch.cat([_advantages(group) for group in groups]),
        "num_items_in_batch": completion_mask.sum(),
    }
    for theirs, ours in (("old_per_token_logps", "old_logprobs"), ("ref_per_token_logps", "ref_logprobs")):
        values = [getattr(row, ours) for _, row in rows]
        if values[0] is not None:
            inputs[theirs] = torch.nn.utils.rnn.pad_sequence(list(map(torch.as_tensor, values)), batch_first=True)
    return inputs


def cut(inputs: dict[str, Tensor], size: int) -> list[dict[str, Tensor]]:
    """Split the batch into parts of `size` rows, as gradient accumulation does; its number of tokens stays the same."""
    rows = len(inputs["prompt_ids"])
    return [
        {name: value if value.ndim == 0 else value[start : start + size] for name, value in inputs.items()}
        for start in range(0, rows, size)
    ]


def backward(trainer: GRPOTrainer, inputs: dict[str, Tensor], rows: int) -> None:
    """Run TRL's forward, loss and backward, `rows` completions at a time."""
    for part in cut(inputs, rows):
        trainer._compute_loss(trainer.model, part).backward()


def fast_backward(trainer: FastGRPOTrainer, inputs: dict[str, Tensor], group_size: int) -> None:
    """Run gvpo's update on TRL's tensors, as FastGRPOTrainer does in the last micro-step of an optimizer step."""
    places = torch.arange(len(inputs["prompt_ids"]), device=inputs["prompt_ids"].device)
    trainer._served = [
        Served(0, inputs | {GROUP: places // group_size, REWARD: torch.zeros_like(inputs["advantages"])})
    ]
    trainer._update(trainer.model)


@torch.no_grad()
def logprobs(trainer: GRPOTrainer, model: Any, inputs: dict[str, Tensor], rows: int) -> Tensor:
    """Return log-probs [B, C] from TRL's pass for old or reference log-probs."""
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    found, _, _ = trainer._get_per_token_logps_and_entropies(
        model, ids, mask, inputs["completion_ids"].shape[1], batch_size=rows
    )
    return found


def _advantages(group: Group) -> Tensor:
    rewards = torch.tensor([row.reward for row in group.completions])
    return (rewards - rewards.mean()) / (rewards.std() + STD_EPSILON)


def _padded(rows: Sequence[Sequence[int]], *, left: bool) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        where = slice(width - len(row), width) if left else slice(0, len(row))
        ids[index, where], mask[index, where] = torch.tensor(row), 1
    return ids, mask
