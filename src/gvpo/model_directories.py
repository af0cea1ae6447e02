"""Find a model in a directory, in the latest checkpoint of a run, or on the Hub, without importing torch."""

from pathlib import Path

from gvpo import runfiles
from gvpo.errors import ModelError, RunError
from gvpo.hub import may_be_hub_id

MODEL_CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
"""Files that describe a whole model and an adapter."""


def model_in(path_or_id: str) -> str:
    """Return the latest checkpoint of a run; return anything else, such as a model's directory or Hub ID, unchanged.

    Raises:
        RunError: If the run has no checkpoint.
    """
    is_run = (Path(path_or_id) / runfiles.CHECKPOINTS).is_dir()
    return str(checkpoint_in(path_or_id)) if is_run else path_or_id


def checkpoint_in(directory: str | Path) -> Path:
    """Return the latest checkpoint of a run; return a directory with a model or an adapter itself.

    Raises:
        RunError: If there is none.
    """
    directory = Path(directory)
    if (directory / runfiles.CHECKPOINTS).is_dir():
        found = sorted((directory / runfiles.CHECKPOINTS).glob("step-*"))
        if not found:
            raise RunError(f"the run in {directory} has no checkpoint; set checkpoint.every, or let it finish")
        return found[-1]
    if not _is_described(directory) or not list(directory.glob("*.safetensors")):
        raise RunError(f"there is no model in {directory}; pass a run's directory or one of its checkpoints")
    return directory


def require_model(path_or_id: str) -> str:
    """Return the directory or Hub ID of a model, after all checks that need neither torch nor the network.

    Args:
        path_or_id: Directory of a model, of an adapter or of a run, or a Hub model ID.

    Raises:
        ModelError: If it is a file or another directory, or is missing and cannot be a Hub ID.
        RunError: If it is a run without a checkpoint.
    """
    found = model_in(path_or_id)
    require_directory(found, "model")
    if Path(found).is_dir() and not _is_described(Path(found)):
        raise ModelError(no_config(found))
    return found


def require_directory(path_or_id: str, what: str) -> None:
    """Check that a text is an existing directory, or may be a Hub ID.

    Args:
        path_or_id: The text.
        what: Kind of the model, such as "tokenizer" or "adapter", for the message.

    Raises:
        ModelError: If it is neither.
    """
    if Path(path_or_id).is_file():
        raise ModelError(f"{path_or_id} is a file; give the directory that save_pretrained wrote, or a Hub model ID")
    if not Path(path_or_id).is_dir() and not may_be_hub_id(path_or_id):
        raise ModelError(no_directory(path_or_id, what))


def require_adapter(path_or_id: str | Path) -> None:
    """Check that a text is a directory with an adapter, or may be a Hub ID.

    Raises:
        ModelError: If it is neither.
    """
    require_directory(str(path_or_id), "adapter")
    if Path(path_or_id).is_dir() and not (Path(path_or_id) / ADAPTER_CONFIG).is_file():
        raise ModelError(
            f"there is no adapter in {path_or_id}: it has no {ADAPTER_CONFIG}; give a directory that has one"
        )


def no_directory(path: str, what: str) -> str:
    """Return the message for a missing directory that is not a Hub ID either."""
    article = "an" if what.startswith("a") else "a"
    return f"there is no directory {path!r} to load {article} {what} from; check the path"


def no_config(path: str) -> str:
    """Return the message for a directory without a model."""
    return f"{path} has no {MODEL_CONFIG}, so it is not a model; give the directory that save_pretrained wrote"


def _is_described(directory: Path) -> bool:
    return any((directory / name).is_file() for name in (MODEL_CONFIG, ADAPTER_CONFIG))
