"""Resuming a run with the same settings, the same data, and the latest intact checkpoint."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gvpo import notices, runfiles
from gvpo.config import FIELDS, TrainConfig
from gvpo.config.recipe import dump_config, restore_config
from gvpo.errors import CheckpointError, GvpoError, RunError, one_line
from gvpo.model import lora
from gvpo.model.model import load_model
from gvpo.rollout.sources.base import Source
from gvpo.system_errors import is_out_of_memory
from gvpo.training.checkpoint.files import Checkpoints, LoadedCheckpoint, TrainerState, load
from gvpo.training.checkpoint.run_directory import RunDirectory
from gvpo.training.learner import Learner
from gvpo.update.distributed import fsdp, ranks

MAY_CHANGE = (
    "checkpoint.",
    "rewards.timeout",
    "rewards.workers",
    "rewards.memory_limit",
    "environment.timeout",
    "environment.workers",
    "environment.memory_limit",
    "train.tokens_per_microbatch",
    "model.gradient_checkpointing",
    "run.dir",
    "sampling.tokens_per_batch",
    "run.trackers",
    "run.project",
    "run.rank_timeout",
    "train.sharding",
    "sampling.check",
    "sampling.engine_options",
    "sampling.engine_sleep",
    "sampling.server_",
    "sampling.weight_transfer",
    "sampling.transfer_dir",
    "rollout.expert_url",
    "rollout.expert_api_key_env",
)
"""Settings that a resumed run may change."""

HORIZON = ("train.steps", "train.epochs", "train.extend_schedule", "eval.stop_at_accuracy", "eval.patience")
"""Settings that say when a run ends, which a resumed run may change as well; its config.json then has the new ones."""

BASE = "base model under its adapter"
"""Name of the fingerprint of a LoRA run's frozen weights."""


def open_run(path: Path, config: TrainConfig, inputs: Mapping[str, str]) -> RunDirectory:
    """Open the directory of a run that is resumed.

    Args:
        path: Directory of the run.
        config: Current settings.
        inputs: Current fingerprints of the data and the rewards, by name.

    Raises:
        RunError: If there is no run, its settings cannot be read, it was started with other settings, data or
            rewards, or it cannot end where the settings ask for it.
    """
    run = RunDirectory.open(path)
    started = read_settings(run)
    before, now = _flat(started), _flat(config)
    changed = [key for key in now if before[key] != now[key] and not key.startswith((*MAY_CHANGE, *HORIZON))]
    if changed:
        key = changed[0]
        raise RunError(
            f"{path} was started with {key}={before[key]!r}, not {now[key]!r}; resume it with the same settings, "
            "or start another run"
        )
    _refuse_other_inputs(run, inputs)
    if any(before[key] != now[key] for key in HORIZON):
        _move_end(run, started, config)
    return run


def _move_end(run: RunDirectory, started: TrainConfig, config: TrainConfig) -> None:
    """Let a run end elsewhere than it was started to, and note that in its files."""
    done = max((int(path.name.removeprefix("step-")) for path in run.checkpoints.glob("step-*")), default=0)
    if config.steps != started.steps:
        _check_end(run.path, started, config, done)
        facts = runfiles.read_json(run.path / runfiles.ENVIRONMENT)
        moved = {"after_step": done, "steps_before": started.steps, "steps": config.steps}
        runfiles.write_json(run.path / runfiles.ENVIRONMENT, {**facts, "moved": [*facts.get("moved", []), moved]})
    ends = {FIELDS[key]: getattr(config, FIELDS[key]) for key in HORIZON}
    runfiles.write_text(run.config_path, dump_config(started.replace(**ends)))


def _check_end(path: Path, started: TrainConfig, config: TrainConfig, done: int) -> None:
    """Check that a run that has done some steps can end after another number of steps than planned."""
    if config.steps < done:
        raise RunError(
            f"{path} has done {done} steps already, so train.steps={config.steps} is too few; set {done} or more, or "
            "start another run"
        )
    if config.schedule == "constant" or done == 0:
        return
    schedule = f"train.schedule={config.schedule!r}"
    if not config.extend_schedule:
        raise RunError(
            f"{path} was planned for {started.steps} steps with {schedule}, which gave its {done} steps their "
            f"learning rates; add train.extend_schedule=true to continue with the rates of {config.steps} steps"
        )
    notices.warn(
        f"{schedule} is now that of {config.steps} steps; the first {done} steps had the rates of {started.steps}, so "
        "the result is not that of an unbroken run"
    )


def _refuse_other_inputs(run: RunDirectory, inputs: Mapping[str, str]) -> None:
    before = run.read_inputs()
    fresh = not run.read_metrics()  # the code that stopped it has affected nothing yet, and may be fixed
    if fresh:
        before |= {name: value for name, value in inputs.items() if name.startswith(("reward ", "environment"))}
    # If a run no longer has an adapter, the check of its checkpoint reports that more clearly.
    kept = before if BASE in inputs else {name: value for name, value in before.items() if name != BASE}
    other = next((name for name in {**kept, **inputs} if kept.get(name) != inputs.get(name)), None)
    if other is not None:
        raise RunError(
            f"{run.path} was started with another {other}; resume it with the same one, or start a new run: omit "
            "--resume and choose another run.dir"
        )
    if fresh:
        runfiles.write_json(run.path / runfiles.INPUTS, before)


def read_settings(run: RunDirectory) -> TrainConfig:
    """Return the settings that a run was started with.

    Raises:
        RunError: If they cannot be read.
    """
    file = run.config_path
    try:
        return restore_config(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(
            f"{file} cannot be read ({one_line(error)}); replace it with the file of another run with the same "
            "settings, then use --resume"
        ) from error


def _flat(config: TrainConfig) -> dict[str, Any]:
    return {f"{section}.{key}": value for section, table in config.to_recipe().items() for key, value in table.items()}


def restore(run: RunDirectory, learner: Learner, source: Source, config: TrainConfig) -> TrainerState:
    """Restore weights, optimizer, reference, source and state of the latest intact checkpoint, if there is one.

    A run without a checkpoint starts over.

    Args:
        run: Directory of the run.
        learner: Learner that receives the weights.
        source: Source of the groups of the next steps.
        config: Settings of the run.

    Raises:
        CheckpointError: If no checkpoint is intact, or the latest one belongs to another model.
    """
    checkpoints = Checkpoints(run.checkpoints, config.checkpoint_keep)
    loaded = _newest(checkpoints)
    if loaded is None:
        return TrainerState()
    _restore_fitting(loaded, learner, config)
    source.load_state_dict(loaded.source)
    return loaded.state


def _newest(checkpoints: Checkpoints) -> LoadedCheckpoint | None:
    """Return the latest intact checkpoint. The first rank finds and verifies it; the others only read it."""
    found: list[LoadedCheckpoint] = []

    def find() -> Path | None:
        checkpoints.clean()
        newest = checkpoints.newest()
        found.extend([newest] if newest is not None else [])
        return newest.path if newest is not None else None

    path = ranks.on_first(find)
    if path is None or found:
        return found[0] if found else None
    return load(path, verified=True)


def _restore_fitting(loaded: LoadedCheckpoint, learner: Learner, config: TrainConfig) -> None:
    try:
        _restore_learner(loaded, learner, config)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:  # any error of torch about other names and shapes
        if isinstance(error, GvpoError) or is_out_of_memory(error):
            raise
        raise CheckpointError(
            f"{loaded.path} does not fit the model that is trained ({one_line(error)}); remove it "
            "to resume from the previous one"
        ) from error


def _restore_learner(loaded: LoadedCheckpoint, learner: Learner, config: TrainConfig) -> None:
    _restore_weights(loaded.path, learner, config)
    fsdp.load_optimizer(learner.optimizer, loaded.optimizer)
    learner.non_finite = loaded.state.non_finite
    learner.budget.restore(loaded.state.budget)
    if learner.constraints is not None:
        learner.constraints.multipliers = loaded.state.multipliers
    if learner.reference is not None and loaded.reference is not None:
        learner.reference.load_state_dict(_split(learner.reference.state_dict(), loaded.reference))


def _restore_weights(checkpoint: Path, learner: Learner, config: TrainConfig) -> None:
    if lora.is_adapted(learner.model):
        lora.read_adapter(learner.model, checkpoint)
        return
    if lora.is_adapter(checkpoint):
        raise RunError(f"{checkpoint} contains a LoRA adapter; resume the run with its original peft_config")
    dtype = learner.model.dtype
    saved: Mapping[str, Any] = load_model(checkpoint, dtype=dtype, attention=config.attention).state_dict()
    learner.model.load_state_dict(_split(learner.model.state_dict(), saved))


def _split(own: Mapping[str, Any], whole: Mapping[str, Any]) -> dict[str, Any]:
    """Split whole weights over the ranks as a model's own weights are split."""
    return {name: fsdp.like(own[name], value) if name in own else value for name, value in whole.items()}
