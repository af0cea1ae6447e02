"""Trials before the first step of what could fail at the end of a run: saving, disk space and directories.

The session tries the model card, and `gvpo.training.checkpoint.publish` checks the requirements of a push to the Hub.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from gvpo import notices, runfiles
from gvpo.config import TrainConfig
from gvpo.errors import RunError
from gvpo.model.tokenizer import TokenizerWarning
from gvpo.model.trial_save import rehearse_save
from gvpo.rollout.episodes.setup import environment_pool
from gvpo.rollout.rewards import reward_pool
from gvpo.training.checkpoint.publish import check_account
from gvpo.training.checks import check_old_logprobs
from gvpo.training.learner import Learner
from gvpo.update.distributed import ranks

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from gvpo.training.inputs import Policy, RunInputs

TRIAL = ".trial"
"""Name of the directory inside a run's directory in which a save is tried; it is removed immediately."""


def rehearse(inputs: "RunInputs", policy: "Policy") -> None:
    """Try a run's requirements besides settings, model and data before hours of work, and leave no files.

    Raises:
        GvpoError: If the directory cannot be written, the Hub rejects the account, nothing can be saved, a reward
            or the environment cannot be sent to its workers, or logged groups lack the log-probs that the objective
            reads.
    """
    config = inputs.settings
    check_old_logprobs(inputs)
    ranks.on_first(lambda: check_place(config.run_dir or Path("runs")))
    ranks.on_first(lambda: check_account(config))
    ranks.on_first(lambda: try_save(config, policy.model, inputs.tokenizer))  # the other ranks would save nothing
    if inputs.rewards:
        reward_pool(config, inputs.rewards).close()
    if inputs.environment is not None:
        environment_pool(config, inputs.environment).close()


def try_save(
    config: TrainConfig, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", run: Path | None = None
) -> None:
    """Save the contents of a checkpoint other than weights, read them back, and remove them.

    Args:
        config: Settings; without checkpoint.verify nothing is read back.
        model: The whole policy.
        tokenizer: Tokenizer of the policy.
        run: Directory of the run, in which the save is tried; by default, the system's directory for temporary files.

    Raises:
        ModelError, RoundTripError: If no checkpoint could be written or read.
        RunError: If the directory cannot be written.
    """
    place = _temporary() if run is None else _inside(run)
    # warnings of tokenizers are printed when the first checkpoint is read
    with place as directory, _refusals_of(run or directory), notices.without(TokenizerWarning):
        rehearse_save(model, tokenizer, directory, reload=config.checkpoint_verify)


def check_place(run: Path) -> None:
    """Check, without writing, that a run directory could be created and written.

    Raises:
        RunError: If it, or its nearest existing parent, is a file or read-only.
    """
    runfiles.require_writable(run / runfiles.CONFIG, advice="choose another run.dir")


def warn_of_short_disk(config: TrainConfig, learner: Learner, run: Path) -> None:
    """Warn if the checkpoints of a run need more room than its disk has."""
    one, count = _checkpoint_bytes(learner), _checkpoints_at_once(config)
    free = shutil.disk_usage(run).free
    if one * count > free:
        notices.warn(
            f"the disk of {run} has {_gigabytes(free)} free, but {count} checkpoints of {_gigabytes(one)} may exist "
            "at the same time; make room, choose another run.dir, or lower checkpoint.keep"
        )


def _checkpoint_bytes(learner: Learner) -> int:
    """Return the size of weights, AdamW's two moments in float32, and the stored reference."""
    trained = [weight for weight in learner.model.parameters() if weight.requires_grad]
    kept = trained if hasattr(learner.model, "peft_config") else list(learner.model.parameters())
    stored = learner.reference.state_dict().values() if learner.reference is not None else []
    return _bytes(kept) + 8 * sum(weight.numel() for weight in trained) + _bytes(stored)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _checkpoints_at_once(config: TrainConfig) -> int:
    """Return the maximum number of checkpoints on disk: the kept ones, the best, and the one being written."""
    saves = 1 if config.checkpoint_every == 0 else -(-config.steps // config.checkpoint_every)
    return min(saves, config.checkpoint_keep + 2)


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.3g} GB"


@contextlib.contextmanager
def _temporary() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@contextlib.contextmanager
def _inside(run: Path) -> Iterator[Path]:
    """Create a directory inside a run's directory, and remove it afterwards; remove one that a crash has left."""
    directory = run / TRIAL
    with _refusals_of(run):
        if directory.exists():
            shutil.rmtree(directory)
        directory.mkdir()
    try:
        yield directory
    finally:
        with _refusals_of(run):
            shutil.rmtree(directory)


@contextlib.contextmanager
def _refusals_of(place: Path) -> Iterator[None]:
    """Report in one line what the system rejects."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunError(
            f"cannot write to {place}: {reason}; make room or choose another run.dir, then use --resume"
        ) from error
