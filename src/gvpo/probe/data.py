"""Candidates: prompts with completions and optional rewards, read as texts from rows of logged groups.

docs/guides/probe.md describes the rows. This module does not depend on features or probes. All texts of a file are kept
in memory.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gvpo.data import GroupRow, completion_text, load_records, numbered, read_groups
from gvpo.errors import DataError
from gvpo.types import Prompt


@dataclass(frozen=True)
class Candidates:
    """A prompt and the completions to choose from.

    Args:
        prompt: Text or messages.
        completions: k texts.
        rewards: k numbers, or None for completions without a reward.
        id: ID of the prompt, unique in a dataset.
        row: The row that it was read from.
    """

    prompt: Prompt
    completions: Sequence[str]
    rewards: Sequence[float | None]
    id: str
    row: Mapping[str, Any]


def read_candidates(path: str | Path) -> list[Candidates]:
    """Read the rows of a file or a Hub dataset as candidates, in order; see `candidates`.

    Raises:
        DataError: If the file cannot be read, or the form of a row is unknown.
    """
    return candidates(load_records(path))


def candidates(records: Sequence[Mapping[str, Any]]) -> list[Candidates]:
    """Return rows as candidates.

    Args:
        records: Rows in the form of `gvpo.data.read_groups`; `rewards` may be absent. If prompts or completions are
            token IDs, the columns `prompt_text` and `texts` must contain their texts.

    Raises:
        DataError: If there are no rows, or a row has another form or no text; the message contains its number, counted
            from 1.
    """
    if not records:
        raise DataError("there are no candidates; the dataset is empty")
    return [
        numbered(number, _candidates, row, record)
        for number, (row, record) in enumerate(zip(read_groups(records), records, strict=True), start=1)
    ]


def _candidates(row: GroupRow, record: Mapping[str, Any]) -> Candidates:
    prompt = row.problem.prompt
    if not prompt:
        raise DataError("the prompt is token ids, and features are of texts; give text or messages")
    texts = [completion_text(completion) for completion in row.completions]
    others = {name: value for name, value in record.items() if name not in ("prompt", "id")}
    rewards = [completion.reward for completion in row.completions]
    return Candidates(prompt, texts, rewards, row.problem.id, {"prompt": prompt, **others})
