"""Candidates: prompts with completions, and with rewards where there are some. The rows of logged groups, as texts.

Knows the form of the rows (docs/guides/probe.md); nothing of features or probes. All texts of a file are in memory.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gvpo.data import as_group, load_records, per_completion, problems_from_records
from gvpo.errors import DataError
from gvpo.messages import content_text, unicode_text
from gvpo.types import Problem, Prompt


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
    """Rows as candidates.

    Args:
        records: `{"prompt", "completions", "rewards"}` (logged groups; `rewards` may be absent), or any other form
            that `gvpo.data.as_group` knows: pairs, scores, ranks. A prompt is text or messages; a completion is text,
            one message of the assistant, or token ids with `texts` beside them.

    Raises:
        DataError: there are no rows, or one is of no such form; it is named by its number, counted from 1.
    """
    if not records:
        raise DataError("there are no candidates; the data set is empty")
    problems = problems_from_records([_group(record, number) for number, record in enumerate(records, start=1)])
    return [
        _candidates(problem, record, number)
        for number, (problem, record) in enumerate(zip(problems, records, strict=True), start=1)
    ]


def _group(record: Mapping[str, Any], number: int) -> Mapping[str, Any]:
    try:
        group = as_group(record)
    except DataError as error:
        raise DataError(f"row {number}: {error}") from None
    if _are_ids(group.get("prompt")):
        raise DataError(f"row {number}: the prompt is token ids, and features are of texts; give text or messages")
    return group


def _candidates(problem: Problem, record: Mapping[str, Any], number: int) -> Candidates:
    columns = problem.columns
    written = columns.get("completions")
    if not isinstance(written, list | tuple) or not written:
        raise DataError(
            f"row {number} has no list `completions`; give `prompt` and `completions`, and `rewards` to fit"
        )
    texts = _column(columns, "texts", len(written), number)
    completions = [_text(*pair, number) for pair in zip(written, texts, strict=True)]
    rewards = [_reward(value, number) for value in _column(columns, "rewards", len(written), number)]
    others = {name: value for name, value in record.items() if name not in ("prompt", "id")}
    return Candidates(problem.prompt, completions, rewards, problem.id, {"prompt": problem.prompt, **others})


def _column(columns: Mapping[str, Any], name: str, count: int, number: int) -> list[Any]:
    """The values of a column, one a completion; None each where it is absent."""
    try:
        return per_completion(columns, name, count)
    except DataError as error:
        raise DataError(f"row {number}: {error}") from None


def _text(written: Any, text: Any, number: int) -> str:
    if _are_ids(written) and isinstance(text, str):
        written = text
    try:
        if isinstance(written, str):
            return unicode_text(written)
        if isinstance(written, list | tuple) and written and isinstance(written[-1], Mapping):
            return content_text(written[-1].get("content"))
    except DataError as error:
        raise DataError(f"row {number}: a completion: {error}") from None
    raise DataError(
        f"row {number}: a completion is {str(written)[:40]!r}; give text, a message of the assistant, or token ids "
        "with the column `texts` beside them"
    )


def _are_ids(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(type(item) is int for item in value)


def _reward(value: Any, number: int) -> float | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if not isinstance(value, int | float) or math.isinf(value):
        raise DataError(f"row {number}: a reward is {str(value)[:40]!r}; give finite numbers, null where there is none")
    return float(value)
