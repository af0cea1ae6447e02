"""The reference's log-probs of a fixed set of rows: computed once, stored in files, read by every later session.

<run>/reference/train-00000.safetensors ...     one file for every `PART` groups, written atomically
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from rich.console import Console
from torch import Tensor

from gvpo import runfiles
from gvpo.errors import RunError
from gvpo.progress import StepProgress
from gvpo.rollout.fingerprints import fingerprint, token_rows
from gvpo.training.learner import Learner
from gvpo.training.signals import RunStopped, StopRequests
from gvpo.types import Completion, Group
from gvpo.update.distributed import ranks
from gvpo.update.group_backward import TokenLogprobs

PART = 256
"""Groups per file; at most this many are scored again after a run was killed."""

_NAME = "ref_logprobs"


def policy_name(model: torch.nn.Module) -> str:
    """Return a short name that changes when the model learns, from a sample of its weights."""
    return hashlib.blake2b(repr(ranks.weights_sample(model)).encode(), digest_size=16).hexdigest()


def score_under_start(
    groups: Sequence[Group],
    name: str,
    *,
    learner: Learner,
    start: str | None,
    directory: Path,
    stop: StopRequests,
    console: Console,
) -> list[Group]:
    """Return the groups with the log-probs of the policy that the run starts from, before the learner's first update.

    Args:
        groups: Any groups; may be empty.
        name: Prefix of the files' names.
        learner: Learner before its first update.
        start: See `with_reference_scores`.
        directory: Directory of the files.
        stop: Stop requests, checked after each file.
        console: Console for progress.

    Raises:
        RunError: See `with_reference_scores`.
        RunStopped: If a stop was requested; finished files are kept.
    """

    def done(count: int) -> None:
        progress.update(count, {})
        if count < len(groups) and ranks.some(stop.requested):
            raise RunStopped(f"stopped before the first step; {count} of {len(groups)} prompts are scored and kept")

    if not groups:
        return []
    with StepProgress("reference", len(groups), console=console, unit="prompt") as progress:
        return with_reference_scores(groups, directory, name, start, learner.score, done)


def with_reference_scores(
    groups: Sequence[Group],
    directory: Path,
    name: str,
    start: str | None,
    score: Callable[[Sequence[Group]], list[TokenLogprobs]],
    done: Callable[[int], None],
) -> list[Group]:
    """Return the groups with `ref_logprobs` on every row, read from the files if these exist already.

    Args:
        groups: Any groups.
        directory: Directory of the files.
        name: Prefix of the files' names.
        start: `policy_name` of the reference; files of another reference are recomputed. None accepts any files,
            because the run has a checkpoint and the model that it started from may have been trained further since.
        score: Function that returns log-probs under the reference, in order of rows; with several ranks the same on
            each.
        done: Function that is called with the number of finished groups after each file.

    Raises:
        RunError: If a file is corrupt, contains other rows, or cannot be written.
    """
    attached: list[Group] = []
    for first in range(0, len(groups), PART):
        part = groups[first : first + PART]
        path = directory / f"{name}-{first // PART:05d}.safetensors"
        attached += _attached(part, _read_or_made(path, part, start, score))
        done(len(attached))
    return attached


def with_own_scores(groups: Sequence[Group], scored: Sequence[TokenLogprobs]) -> list[Group]:
    """Return the groups with scores as `ref_logprobs`; `scored` has one entry per row."""
    return _attached(groups, [each.logprobs for each in scored])


def _read_or_made(
    path: Path, part: Sequence[Group], start: str | None, score: Callable[[Sequence[Group]], list[TokenLogprobs]]
) -> list[Tensor]:
    """Return the [C] log-probs of each row of a part."""
    rows = [row for group in part for row in group.completions]
    named = fingerprint(token_rows(part))
    stored = ranks.on_first(lambda: _read(path, named, start))
    if stored is None:
        stored = torch.cat([scored.logprobs for scored in score(part)])
        data = safetensors.torch.save({_NAME: stored}, {"rows": named, "start": start or ""})
        ranks.on_first(lambda: runfiles.write_bytes(path, data))
    return list(torch.split(stored, [len(row.tokens) for row in rows]))


def _read(path: Path, named: str, start: str | None) -> Tensor | None:
    """Return the contents of a file; None if it is missing or belongs to another start."""
    if not path.exists():
        return None
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            known = file.metadata() or {}
            stored: Tensor = file.get_tensor(_NAME)
    except (safetensors.SafetensorError, OSError) as error:
        raise RunError(f"{path} is corrupt ({error}); remove it and use --resume, which computes it again") from error
    if known.get("rows") != named:
        raise RunError(f"{path} contains log-probs of other rows; resume with the same data, or start another run")
    return stored if start in (None, known.get("start")) else None


def _attached(part: Sequence[Group], values: Sequence[Tensor]) -> list[Group]:
    remaining = iter(values)

    def scored(row: Completion) -> Completion:
        return replace(row, ref_logprobs=next(remaining))

    return [replace(group, completions=[scored(row) for row in group.completions]) for group in part]
