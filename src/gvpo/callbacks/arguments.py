"""The settings of a run under the names of transformers' `TrainingArguments`, for callbacks."""

import json
from pathlib import Path
from typing import Any

from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from gvpo.config import TrainConfig
from gvpo.update.distributed import ranks


class CallbackArguments:
    """Argument `args` of callbacks: settings by transformers' names, and all settings of `TrainConfig` by their own.

    Args:
        config: Settings of the run.
        run_dir: Directory of the run, if it has begun.
        evaluates: Whether the run has held-out data.
    """

    def __init__(self, config: TrainConfig, run_dir: Path | None, *, evaluates: bool) -> None:
        values = {**config.model_dump(), **_of_transformers(config, run_dir, evaluates=evaluates)}
        vars(self).update(values)

    def __getattr__(self, name: str) -> Any:
        """Raise AttributeError for a name that is neither a setting nor one of transformers' that gvpo fills."""
        raise AttributeError(f"gvpo has no training argument {name!r} (`gvpo docs python` lists those that exist)")

    def to_dict(self) -> dict[str, Any]:
        """Return all arguments, with values that JSON can express."""
        values: dict[str, Any] = json.loads(json.dumps(vars(self), default=str))
        return values

    def to_sanitized_dict(self) -> dict[str, Any]:
        """Return all arguments as numbers, booleans and strings, for trackers."""
        return {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in self.to_dict().items()
        }

    def to_json_string(self) -> str:
        """Return all arguments as JSON."""
        return json.dumps(self.to_dict(), indent=2)


def _of_transformers(config: TrainConfig, run_dir: Path | None, *, evaluates: bool) -> dict[str, Any]:
    directory = run_dir or config.run_dir
    by_steps = evaluates and config.eval_every > 0
    return {
        "output_dir": None if directory is None else str(directory),
        "logging_dir": None if directory is None else str(directory / "tensorboard"),
        "run_name": None if directory is None else directory.name,
        "max_steps": config.steps,
        "num_train_epochs": config.epochs,
        "per_device_train_batch_size": config.prompts_per_step * config.group_size,
        "gradient_accumulation_steps": 1,
        "num_generations": config.group_size,
        "max_completion_length": config.max_tokens,
        "lr_scheduler_type": config.schedule,
        "warmup_steps": config.warmup_updates,
        "adam_epsilon": config.adam_eps,
        "logging_strategy": IntervalStrategy.STEPS,
        "logging_steps": 1,
        "logging_first_step": True,
        "eval_strategy": IntervalStrategy.STEPS if by_steps else IntervalStrategy.NO,
        "eval_steps": config.eval_every or None,
        "eval_delay": 0,
        "eval_on_start": True,
        "save_strategy": SaveStrategy.STEPS if config.checkpoint_every > 0 else SaveStrategy.NO,
        "save_steps": config.checkpoint_every,
        "save_total_limit": config.checkpoint_keep,
        "load_best_model_at_end": False,
        "metric_for_best_model": "eval_accuracy" if evaluates else None,
        "greater_is_better": True,
        "report_to": list(config.trackers),
        "hub_model_id": config.push_to_hub,
        "push_to_hub": config.push_to_hub is not None,
        "world_size": ranks.count(),
        "process_index": ranks.rank(),
        "should_save": ranks.is_first(),
        "disable_tqdm": True,
    }
