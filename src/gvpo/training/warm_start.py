"""A recipe from start to end: make or load the model, warm it up if asked, train it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gvpo import notices, runfiles
from gvpo.config import TrainConfig
from gvpo.errors import CheckpointError, ConfigError, RunError
from gvpo.model.fresh_tokenizer import fresh_tokenizer
from gvpo.model.model import load_model
from gvpo.model.tokenizer import load_tokenizer
from gvpo.rollout.offline import resolve_reference
from gvpo.training.checkpoint.files import verify
from gvpo.training.checkpoint.publish import check_hub, model_in
from gvpo.training.checkpoint.run_directory import RunDirectory
from gvpo.training.checks import check_files
from gvpo.training.objective import build_objective
from gvpo.training.signals import StopRequests
from gvpo.training.trackers import check_trackers
from gvpo.training.trainer import Trainer, free_directory
from gvpo.update.distributed import ranks

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WARM_START = "warm-start"


def train_recipe(config: TrainConfig, *, resume: bool = False) -> dict[str, Any]:
    """Run a recipe; its warm start, if it has one, is a run of its own inside the run directory.

    Args:
        config: the settings; a missing run.dir becomes a free directory under runs/.
        resume: go on where the run in run.dir stopped, in its warm start or after it.

    Returns:
        The summary, as in summary.json.

    Raises:
        GvpoError: settings, data or training that cannot work; the message says what to do.
        KeyboardInterrupt: Ctrl-C, SIGTERM or SIGHUP, after the step that was running and a checkpoint of it.
    """
    ranks.start(config.rank_timeout)
    run_dir = config.run_dir or ranks.on_first(lambda: free_directory("runs", config.objective))
    with notices.collected(quiet=not ranks.is_first()):
        start = ranks.on_first(lambda: config.model_path and model_in(config.model_path))
        config = resolve_reference(config.replace(run_dir=run_dir, model_path=start))
        ranks.on_first(lambda: _require_place(run_dir, resume=resume))
        build_objective(config)  # a wrong objective is found before the warm start, and what else cannot work
        check_files(config)
        check_trackers(config)
        check_hub(config)
        if config.warm_start_steps > 0 and not resume:
            _check_run_after_warm_start(config)
        with StopRequests():  # a request in the warm start's last moments also stops the run after it
            model, tokenizer = _starting_model(config, resume=resume)
            began = resume and ranks.on_first(lambda: runfiles.is_run(run_dir))
            return Trainer(model, args=config, processing_class=tokenizer).train(resume=began)


def _require_place(run_dir: Path, *, resume: bool) -> None:
    """A free directory for a new run, or the run to go on with."""
    if not resume:
        RunDirectory.require_free(run_dir)
    elif not (runfiles.is_run(run_dir) or runfiles.is_run(run_dir / WARM_START)):
        raise RunError(f"there is no run in {run_dir}; start one without --resume, or correct run.dir")


def _starting_model(config: TrainConfig, *, resume: bool) -> "tuple[PreTrainedModel | str, PreTrainedTokenizerBase]":
    """The model that the run starts from, and its tokenizer."""
    tokenizer = _tokenizer(config)
    if config.warm_start_steps > 0:
        return _finished_warm_start(warm_start_settings(config), tokenizer, resume=resume), tokenizer
    return _given_model(config, tokenizer), tokenizer


def _check_run_after_warm_start(config: TrainConfig) -> None:
    """What cannot work after the warm start is found before it."""
    tokenizer = _tokenizer(config)
    Trainer(_given_model(config, tokenizer), args=config, processing_class=tokenizer).check()


def _given_model(config: TrainConfig, tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedModel | str":
    if config.model_path is not None:
        return config.model_path
    init = {"vocab_size": len(tokenizer), **_special_ids(tokenizer), **(config.model_init or {})}
    return load_model(init=init, seed=config.seed, attention=config.attention)


def _tokenizer(config: TrainConfig) -> "PreTrainedTokenizerBase":
    """The tokenizer of the settings: made, named, or the model's own."""
    if config.vocabulary is not None:
        return fresh_tokenizer(config.vocabulary)
    named = config.tokenizer or config.model_path
    if named is not None:
        return load_tokenizer(named)
    if config.model_init is None:
        raise ConfigError("there is no model: set model.path to a directory or hub id, or model.init to make one")
    raise ConfigError("model.init needs a tokenizer: set model.vocabulary, or model.tokenizer to a directory")


def _special_ids(tokenizer: "PreTrainedTokenizerBase") -> dict[str, int | None]:
    return {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}


SHARED = (
    *("seed", "rank_timeout"),
    *("model_path", "model_init", "vocabulary", "tokenizer", "compute_dtype", "attention", "gradient_checkpointing"),
    *("task", "task_options", "warm_start_demonstrations", "warm_start_options"),
    *("chat", "system_prompt", "template_args", "stop_token_ids"),
    *("weight_decay", "adam_beta1", "adam_beta2", "adam_eps", "max_grad_norm", "router_aux_coef"),
    *("tokens_per_microbatch", "prefix_sharing", "sharding"),
)
"""Settings that a warm start takes from its run: the model, the demonstrations, the prompts, and how updates work."""


def warm_start_settings(config: TrainConfig) -> TrainConfig:
    """Return the settings of the stage that makes the starting model; all that are not named here are the defaults."""
    return TrainConfig(
        run_dir=Path(config.run_dir or ".") / WARM_START,
        objective="sft",
        steps=config.warm_start_steps,
        prompts_per_step=config.warm_start_batch,
        learning_rate=config.warm_start_learning_rate,
        schedule=config.warm_start_schedule,
        warmup_updates=config.warm_start_warmup,
        eval_problems=0,
        rollouts_every=0,
        checkpoint_verify=False,
        **{name: getattr(config, name) for name in SHARED},
    )


def _finished_warm_start(stage: TrainConfig, tokenizer: "PreTrainedTokenizerBase", *, resume: bool) -> str:
    """The directory of the warm model, trained now unless an earlier sitting did."""
    directory = Path(stage.run_dir or ".")
    if resume and (model := ranks.on_first(lambda: _whole_model(directory))) is not None:
        return str(model)
    began = resume and ranks.on_first(lambda: runfiles.is_run(directory))
    trainer = Trainer(_given_model(stage, tokenizer), args=stage, processing_class=tokenizer)
    return str(trainer.train(resume=began)["model"])


def _whole_model(directory: Path) -> Path | None:
    """The model of a finished warm start, wherever the run has been moved to; None without one, or a damaged one."""
    summary = runfiles.read_json(directory / runfiles.SUMMARY)
    if "model" not in summary:
        return None
    path = directory / runfiles.CHECKPOINTS / Path(summary["model"]).name
    try:
        verify(path)
    except CheckpointError:
        return None  # resuming the warm start names the damage
    return path
