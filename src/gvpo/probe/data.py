"""Candidates: prompts with completions, and with rewards where there are some. The rows of logged groups, as texts.

Knows the form of the rows (docs/guides/probe.md); nothing of features or probes. All texts of a file are in memory.
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
        prompt: text or messages.
        completions: k texts.
        rewards: k numbers, None where a completion has none.
        id: names the prompt; unique in a data set.
        row: the row that it was read from.
    """

    prompt: Prompt
    completions: Sequence[str]
    rewards: Sequence[float | None]
    id: str
    row: Mapping[str, Any]


def read_candidates(path: str | Path) -> list[Candidates]:
    """The rows of a file or a hub data set as candidates, in order; see `candidates`.

    Raises:
        DataError: the file cannot be read, or a row is not of a form that is known.
    """
    return candidates(load_records(path))


def candidates(records: Sequence[Mapping[str, Any]]) -> list[Candidates]:
    """Return rows as candidates.

    Args:
        records: rows as `gvpo.data.read_groups` reads them; `rewards` may be absent. Where prompts or completions are
            token ids, `prompt_text` and `texts` beside them say what they read.

    Raises:
        DataError: there are no rows, or one is of no such form or has no text; it is named by its number, counted
            from 1.
    """
    if not records:
        raise DataError("there are no candidates; the data set is empty")
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
