"""A recipe from start to end: create or load the model, warm it up if requested, and train it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gvpo import notices, runfiles
from gvpo.config import RunPlan, TrainConfig, resolve
from gvpo.config.plan import WARM_START
from gvpo.errors import CheckpointError, RunError
from gvpo.model.fresh_tokenizer import fresh_tokenizer
from gvpo.model.model import load_model
from gvpo.model.tokenizer import load_tokenizer
from gvpo.model_directories import model_in
from gvpo.training.checkpoint.files import verify
from gvpo.training.checkpoint.run_directory import RunDirectory, free_directory
from gvpo.training.checkpoint.trial import rehearse
from gvpo.training.checks import check_surroundings
from gvpo.training.inputs import Policy, RunInputs, prepare
from gvpo.training.loop import train
from gvpo.training.signals import StopRequests
from gvpo.update.distributed import ranks

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def train_recipe(config: TrainConfig, *, resume: bool = False) -> dict[str, Any]:
    """Run the recipe of the settings; see `train_plan`."""
    return train_plan(resolve(config), resume=resume)


def train_plan(plan: RunPlan, *, resume: bool = False) -> dict[str, Any]:
    """Run a recipe. Its warm start, if it has one, is a separate run inside the run directory.

    Args:
        plan: Plan of the recipe; without a run.dir, the run gets a free directory under runs/.
        resume: Whether to resume the run in run.dir, in its warm start or after it.

    Returns:
        The summary, as in summary.json.

    Raises:
        GvpoError: If settings, data or training cannot work; the message says what to do.
        KeyboardInterrupt: After Ctrl-C, SIGTERM or SIGHUP, once the running step is finished and saved.
    """
    ranks.start(plan.settings.rank_timeout)
    with notices.collected(quiet=not ranks.is_first()):
        plan, run_dir = _located(plan)
        inputs, policy = _prepared(plan, run_dir, resume=resume)
        if plan.warm_start is not None and not resume:
            rehearse(inputs, policy)  # find what cannot work after the warm start before it
        with StopRequests():  # a request in the warm start's last moments also stops the run after it
            if plan.warm_start is not None:
                del policy  # two models need not be in memory at the same time
                policy = inputs.policy(_warm_model(plan.warm_start, inputs.tokenizer, resume=resume))
            began = resume and ranks.on_first(lambda: runfiles.is_run(run_dir))
            return train(inputs, policy, resume=began)


def check_plan(plan: RunPlan) -> tuple[RunInputs, Policy]:
    """Do what `train_plan` does before it trains or writes anything, and print the warnings of the run.

    Returns:
        The inputs of the run, and the policy that it, or its warm start, begins with.

    Raises:
        GvpoError: If `train_plan` would raise it before its first step.
    """
    ranks.start(plan.settings.rank_timeout)
    with notices.collected(quiet=not ranks.is_first()):
        inputs, policy = _prepared(*_located(plan), resume=False)
        rehearse(inputs, policy)
        for message in inputs.notices:
            notices.warn(message)
        notices.begin()
    return inputs, policy


def _prepared(plan: RunPlan, run_dir: Path, *, resume: bool) -> tuple[RunInputs, Policy]:
    """Check the place and the surroundings of a run, and load its inputs."""
    ranks.on_first(lambda: _require_place(run_dir, resume=resume))
    check_surroundings(plan.settings)
    tokenizer = _tokenizer(plan.settings)
    return prepare(plan, _given_model(plan.settings, tokenizer), tokenizer)


def _located(plan: RunPlan) -> tuple[RunPlan, Path]:
    """Return the plan with a run directory and the absolute path of its starting model, and that directory."""
    config = plan.settings
    run_dir = config.run_dir or ranks.on_first(lambda: free_directory("runs", config.objective))
    start = ranks.on_first(lambda: config.model_path and model_in(config.model_path))
    return plan.at(run_dir, start), run_dir


def _require_place(run_dir: Path, *, resume: bool) -> None:
    """Require a free directory for a new run, or the run to resume."""
    if not resume:
        RunDirectory.require_free(run_dir)
    elif not (runfiles.is_run(run_dir) or runfiles.is_run(run_dir / WARM_START)):
        raise RunError(f"there is no run in {run_dir}; start one without --resume, or correct run.dir")


def _given_model(config: TrainConfig, tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedModel | str":
    if config.model_path is not None:
        return config.model_path
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    init = {"vocab_size": len(tokenizer), **special, **(config.model_init or {})}
    return load_model(init=init, seed=config.seed, attention=config.attention)


def _tokenizer(config: TrainConfig) -> "PreTrainedTokenizerBase":
    """Return the tokenizer of the settings: a new one, a named one, or the model's own."""
    if config.vocabulary is not None:
        return fresh_tokenizer(config.vocabulary)
    return load_tokenizer(str(config.tokenizer or config.model_path))


def _warm_model(plan: RunPlan, tokenizer: "PreTrainedTokenizerBase", *, resume: bool) -> str:
    """Return the directory of the warm model; train it now unless that was done before."""
    directory = Path(plan.settings.run_dir or WARM_START)
    if resume and (model := ranks.on_first(lambda: _whole_model(directory))) is not None:
        return str(model)
    began = resume and ranks.on_first(lambda: runfiles.is_run(directory))
    inputs, policy = prepare(plan, _given_model(plan.settings, tokenizer), tokenizer)
    return str(train(inputs, policy, resume=began)["model"])


def _whole_model(directory: Path) -> Path | None:
    """Return the model of a finished warm start, even if the run has been moved; None without an intact one."""
    summary = runfiles.read_json(directory / runfiles.SUMMARY)
    if "model" not in summary:
        return None
    path = directory / runfiles.CHECKPOINTS / Path(summary["model"]).name
    try:
        verify(path)
    except CheckpointError:
        return None  # resuming the warm start reports the damage
    return path
