"""Going on with a run: the same settings, the same data, and the newest whole checkpoint."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gvpo import runfiles
from gvpo.config import TrainConfig
from gvpo.config.recipe import restore_config
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
    "train.tokens_per_microbatch",
    "model.gradient_checkpointing",
    "run.dir",
    "sampling.tokens_per_batch",
    "run.trackers",
    "run.project",
    "run.rank_timeout",
    "train.sharding",
)
"""Settings that a resumed run may have otherwise than it started with."""

BASE = "base model under its adapter"
"""What the fingerprint of the frozen weights of a LoRA run is called."""


def open_run(path: Path, config: TrainConfig, inputs: Mapping[str, str]) -> RunDirectory:
    """Open the directory of a run that is resumed.

    Args:
        path: of the directory.
        config: the settings now.
        inputs: fingerprints of the data and the rewards now, by name.

    Raises:
        RunError: there is none, its settings cannot be read, or it was started with other settings, data or rewards.
    """
    run = RunDirectory.open(path)
    before = _flat(_settings(run.config_path))
    now = _flat(config)
    changed = [key for key in now if before[key] != now[key] and not key.startswith(MAY_CHANGE)]
    if changed:
        key = changed[0]
        raise RunError(
            f"{path} was started with {key}={before[key]!r}, not {now[key]!r}; resume it with the same settings, "
            "or start another run"
        )
    _refuse_other_inputs(run, inputs)
    return run


def _refuse_other_inputs(run: RunDirectory, inputs: Mapping[str, str]) -> None:
    before = run.read_inputs()
    fresh = not run.read_metrics()  # the rewards that stopped it have decided nothing, and may be fixed
    if fresh:
        before |= {name: value for name, value in inputs.items() if name.startswith("reward ")}
    # A run that has no adapter any more is refused for that by its checkpoint, which says it better.
    kept = before if BASE in inputs else {name: value for name, value in before.items() if name != BASE}
    other = next((name for name in {**kept, **inputs} if kept.get(name) != inputs.get(name)), None)
    if other is not None:
        raise RunError(
            f"{run.path} was started with another {other}; resume it with the same, or start a new run: leave out "
            "--resume and choose another run.dir"
        )
    if fresh:
        runfiles.write_json(run.path / runfiles.INPUTS, before)


def _settings(file: Path) -> TrainConfig:
    try:
        return restore_config(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(
            f"{file} cannot be read ({one_line(error)}); put the one there that another run with the same settings "
            "writes, then go on with --resume"
        ) from error


def _flat(config: TrainConfig) -> dict[str, Any]:
    return {f"{section}.{key}": value for section, table in config.to_recipe().items() for key, value in table.items()}


def restore(run: RunDirectory, learner: Learner, source: Source, config: TrainConfig) -> TrainerState:
    """Restore weights, optimizer, reference, source and state of the newest whole checkpoint, if there is one.

    A run without a checkpoint starts over.

    Args:
        run: its directory.
        learner: what the weights go into.
        source: where the groups of the next steps come from.
        config: the run's settings.

    Raises:
        CheckpointError: no checkpoint is whole, or the newest one is of another model.
    """
    checkpoints = Checkpoints(run.checkpoints, config.checkpoint_keep)
    loaded = _newest(checkpoints)
    if loaded is None:
        return TrainerState()
    _restore_fitting(loaded, learner, config)
    source.load_state_dict(loaded.source)
    return loaded.state


def _newest(checkpoints: Checkpoints) -> LoadedCheckpoint | None:
    """The newest whole checkpoint, found and verified by the first rank; the others only read it."""
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
    except (KeyError, TypeError, ValueError, RuntimeError) as error:  # whatever torch says of other names and shapes
        if isinstance(error, GvpoError) or is_out_of_memory(error):
            raise
        raise CheckpointError(
            f"{loaded.path} does not fit the model that is trained ({one_line(error)}); remove it "
            "to go on from the one before"
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
        raise RunError(f"{checkpoint} holds a LoRA adapter; resume the run with the peft_config that it started with")
    dtype = learner.model.dtype
    saved: Mapping[str, Any] = load_model(checkpoint, dtype=dtype, attention=config.attention).state_dict()
    learner.model.load_state_dict(_split(learner.model.state_dict(), saved))


def _split(own: Mapping[str, Any], whole: Mapping[str, Any]) -> dict[str, Any]:
    """Whole weights, split over the ranks as a model's own are."""
    return {name: fsdp.like(own[name], value) if name in own else value for name, value in whole.items()}
