"""What can only fail at the end of a run is tried before its first step: a save, the room for it, the place for files.

The model card is tried by the session, and what a push to the hub needs by `gvpo.training.checkpoint.publish`.
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
from gvpo.rollout.rewards import reward_pool
from gvpo.training.checkpoint.publish import check_account
from gvpo.training.learner import Learner
from gvpo.update.distributed import ranks

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from gvpo.training.inputs import Policy, RunInputs

TRIAL = ".trial"
"""Name of the directory in a run's in which a save is tried; it is removed at once."""


def rehearse(inputs: "RunInputs", policy: "Policy") -> None:
    """Try what a run needs besides settings, model and data, before hours of work; nothing is left behind.

    Raises:
        GvpoError: the place cannot be written, the hub refuses the account, nothing can be saved, or a reward cannot be
            sent to its workers.
    """
    config = inputs.settings
    ranks.on_first(lambda: check_place(config.run_dir or Path("runs")))
    ranks.on_first(lambda: check_account(config))
    ranks.on_first(lambda: try_save(config, policy.model, inputs.tokenizer))  # the other ranks would save nothing
    if inputs.rewards:
        reward_pool(config, inputs.rewards).close()


def try_save(
    config: TrainConfig, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", run: Path | None = None
) -> None:
    """Save what a checkpoint holds besides weights, read it back, and remove it.

    Args:
        config: Without checkpoint.verify nothing is read back.
        model: The policy, whole.
        tokenizer: Its tokenizer.
        run: The run's directory, where the save is tried; default the system's place for temporary files.

    Raises:
        ModelError, RoundTripError: No checkpoint could be written or read.
        RunError: The directory cannot be written.
    """
    place = _temporary() if run is None else _inside(run)
    # the reader of the first checkpoint says what tokenizers warn of
    with place as directory, _refusals_of(run or directory), notices.without(TokenizerWarning):
        rehearse_save(model, tokenizer, directory, reload=config.checkpoint_verify)


def check_place(run: Path) -> None:
    """Refuse a run directory that could not be made or written, without writing.

    Raises:
        RunError: It, or the nearest directory above it that exists, is a file or read-only.
    """
    runfiles.require_writable(run / runfiles.CONFIG, advice="choose another run.dir")


def warn_of_short_disk(config: TrainConfig, learner: Learner, run: Path) -> None:
    """Warn if the checkpoints of a run need more room than its disk has."""
    one, count = _checkpoint_bytes(learner), _checkpoints_at_once(config)
    free = shutil.disk_usage(run).free
    if one * count > free:
        notices.warn(
            f"the disk of {run} has {_gigabytes(free)} free, and {count} checkpoints of {_gigabytes(one)} may be there "
            "at once; make room, choose another run.dir, or lower checkpoint.keep"
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
    """Return how many checkpoints there may be: those kept, the best one, and the one that is being written."""
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
    """Make a directory in a run's, and remove it; one that a crash has left makes way."""
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
    """Say in a line what the system refuses."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunError(
            f"cannot write to {place}: {reason}; make room or choose another run.dir, then go on with --resume"
        ) from error
