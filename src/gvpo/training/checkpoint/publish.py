"""Publishing a trained model on the Hugging Face Hub.

This module depends on huggingface_hub and the run directory's layout; it uploads files that were saved before.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import CommitOperationAdd
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # it is in utils' own __init__

from gvpo import notices
from gvpo.config import TrainConfig
from gvpo.errors import ConfigError, RunError, one_line
from gvpo.model import lora
from gvpo.model_directories import checkpoint_in

PRIVATE_TO_THE_RUN = "trainer"
"""Directory that is not uploaded: optimizer, reference and state serve to resume, and are larger than the model."""


def push_to_hub(directory: str | Path, repo_id: str, *, private: bool = True, token: str | None = None) -> str:
    """Upload a checkpoint's model, tokenizer and card.

    Args:
        directory: A checkpoint, or a run, whose latest checkpoint is uploaded.
        repo_id: `owner/name`; created if it does not exist.
        private: Whether a repository that is created now is private.
        token: Token of an account that may write there; by default HF_TOKEN, or the token of `hf auth login`.

    Returns:
        The page of the repository.

    Raises:
        ConfigError: If there is no token, or the name is not valid for a repository.
        RunError: If there is no model in `directory`, or the Hub rejects the upload or cannot be reached.

    Example:
        >>> push_to_hub("runs/demo", "me/addition-gvpo")  # doctest: +SKIP
    """
    check_push(repo_id, token)
    checkpoint = checkpoint_in(directory)
    api = huggingface_hub.HfApi(token=token)
    try:
        page = api.create_repo(repo_id, private=private, exist_ok=True)
        api.create_commit(repo_id, _public_files(checkpoint), commit_message=f"gvpo: {checkpoint.name}")
    except (HfHubHTTPError, OSError, ValueError, RuntimeError) as error:
        raise RunError(f"cannot push {checkpoint} to {repo_id}: {one_line(error)}") from error
    return str(page)


def _public_files(checkpoint: Path) -> list[CommitOperationAdd]:
    """Return the files of a checkpoint to upload; an adapter whose base is on this machine names only its last part."""
    names = sorted(path.relative_to(checkpoint) for path in checkpoint.rglob("*") if path.is_file())
    public = [name for name in names if name.parts[0] != PRIVATE_TO_THE_RUN and not name.parts[0].startswith(".")]
    return [
        CommitOperationAdd(str(name), _adapter_settings(file) if str(name) == lora.CONFIG_FILE else file)
        for name, file in ((name, checkpoint / name) for name in public)
    ]


def _adapter_settings(file: Path) -> bytes:
    text = file.read_text(encoding="utf-8")
    settings = json.loads(text)
    name = settings.get("base_model_name_or_path") or ""
    base = Path(name)
    if not name or not (base.is_absolute() or base.is_dir()):
        return text.encode()
    notices.warn(
        f"the adapter's base model is a directory of this machine, so the uploaded adapter calls it {base.name!r} and "
        "others cannot load it; also upload the base, or upload a merged model (gvpo merge)"
    )
    return json.dumps({**settings, "base_model_name_or_path": base.name}, indent=2, sort_keys=True).encode()


def check_push(repo_id: str, token: str | None = None) -> None:
    """Check that a model can be pushed, hours before it is.

    Raises:
        ConfigError: If the name is not valid for a repository, or there is no token.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ConfigError(f"checkpoint.push_to_hub={repo_id!r}: {one_line(error)}") from None
    if "/" not in repo_id:
        raise ConfigError(f"checkpoint.push_to_hub={repo_id!r} has no owner; write it as owner/name")
    if token is None and huggingface_hub.get_token() is None:
        raise ConfigError("pushing to the Hub needs a token: run `hf auth login`, or set HF_TOKEN")


def check_hub(config: TrainConfig) -> None:
    """Call `check_push` with a run's settings if they request a push; an offline mode is an error too.

    Raises:
        ConfigError: If the model could not be pushed.
    """
    if config.push_to_hub is None:
        return
    check_push(config.push_to_hub)
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise ConfigError("checkpoint.push_to_hub needs the network and HF_HUB_OFFLINE is set; unset one of them")


def check_account(config: TrainConfig) -> None:
    """Ask the Hub whether a run's model can be pushed at its end, if the settings request it.

    If the Hub does not answer, only warn: it may answer later, and a push that fails loses nothing.

    Raises:
        ConfigError: If the Hub does not know the token, or the token may not write to that owner's repositories.
    """
    if config.push_to_hub is None:
        return
    try:
        account = huggingface_hub.HfApi(token=None).whoami()
    except (HfHubHTTPError, OSError, ValueError, RuntimeError) as error:
        reason = one_line(error)
        if getattr(getattr(error, "response", None), "status_code", None) in (401, 403):
            raise ConfigError(f"the Hub does not accept the token: {reason}; run `hf auth login`") from error
        notices.warn(
            f"the Hub does not confirm that {config.push_to_hub} can be pushed at the end ({reason}); if it cannot, "
            "the model stays in the run's directory"
        )
        return
    _require_writer(account, config.push_to_hub)


def _require_writer(account: Mapping[str, Any], repo_id: str) -> None:
    """Raise ConfigError if a token is read-only or not the owner's; fine-grained tokens report too little."""
    role = (account.get("auth", {}).get("accessToken") or {}).get("role")
    if role == "read":
        raise ConfigError(f"the token is read-only, but {repo_id} is to be pushed; create one with write access")
    owners = [account.get("name"), *(one.get("name") for one in account.get("orgs") or [])]
    owner = repo_id.partition("/")[0]
    if role == "write" and owner not in owners:
        known = ", ".join(str(name) for name in owners if name)
        raise ConfigError(f"checkpoint.push_to_hub={repo_id!r}: the token can write for {known}, not for {owner}")
