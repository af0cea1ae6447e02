"""Rows of data sets as the checks see them: where each stands, its prompt's text in one spelling, its answer."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gvpo.data import load_records
from gvpo.data.normalize import words
from gvpo.data.readers import READERS, kind_of
from gvpo.data.records import OTHER_NAMES, checked_prompt
from gvpo.errors import DataError
from gvpo.types import Prompt

PROMPT_COLUMNS = ("prompt", *OTHER_NAMES, "description", "question_content")
ANSWER_COLUMNS = ("answer", "final_answer")


@dataclass(frozen=True)
class Place:
    """Where a row stands: the data set as it was named, and the row's number in it, from 1."""

    data: str
    row: int

    def __str__(self) -> str:
        return f"{self.data} row {self.row}"


@dataclass(frozen=True)
class CheckedRow:
    """A row of a data set.

    Args:
        place: where it stands.
        record: its columns as they are.
        prompt: its prompt; None where it has none that can be used.
        problem: why not; "" where it has one.
        answer: of the answer column; None where it has none.
        words: of the prompt, in their one spelling.
        bare: the same without the lines that all prompts of the data set begin and end with, such as an instruction.
    """

    place: Place
    record: Mapping[str, Any]
    prompt: Prompt | None
    problem: str
    answer: Any
    words: tuple[str, ...]
    bare: tuple[str, ...]

    @property
    def text(self) -> str:
        """The prompt's text; "" where it has none."""
        return "" if self.prompt is None else prompt_text(self.prompt)

    @property
    def numbers(self) -> Counter[str]:
        """The numbers in the bare prompt, and how often each is there."""
        return Counter(word for word in self.bare if word.isdigit())


def read_rows(
    data: str, *, split: str = "train", prompt_column: str | None = None, answer_column: str | None = None
) -> list[CheckedRow]:
    """All rows of a file, of the data files in a directory, or of a data set on the hub.

    Args:
        data: path or hub id, as for `load_records`.
        split: of a hub data set whose id names none.
        prompt_column: where the prompts are; default the first of `PROMPT_COLUMNS` that there is.
        answer_column: where the answers are; default the first of `ANSWER_COLUMNS` that there is.

    Raises:
        DataError: it cannot be read, has no rows, or has no such column.
    """
    files = _data_files(Path(data)) if Path(data).is_dir() else [data]
    return [row for file in files for row in _rows(file, load_records(file, split), prompt_column, answer_column)]


def prompt_text(prompt: Prompt) -> str:
    """The text of a prompt: itself, or what the user says in its messages."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(str(message["content"]) for message in prompt if message["role"] == "user")


def _data_files(directory: Path) -> list[str]:
    files = sorted(str(file) for file in directory.iterdir() if kind_of(file) is not None)
    if not files:
        raise DataError(f"{directory} has no data file; give a directory with files that end in {', '.join(READERS)}")
    return files


def _rows(
    data: str, records: Sequence[Mapping[str, Any]], prompt_column: str | None, answer_column: str | None
) -> list[CheckedRow]:
    if not records:
        raise DataError(f"{data} has no rows; give a file with some")
    asked = _column(data, records, "prompt", prompt_column, PROMPT_COLUMNS)
    answered = _column(data, records, "answer", answer_column, ANSWER_COLUMNS)
    if asked is None:
        raise DataError(f"{data} has no prompts: its columns are {_names(records)}; name one with data.prompt_column")
    prompts = [_prompt(record, asked, number) for number, record in enumerate(records, start=1)]
    texts = [None if prompt is None else prompt_text(prompt) for prompt, _ in prompts]
    start, end = common_frame([text for text in texts if text is not None])
    return [
        CheckedRow(
            place=Place(data, number),
            record=record,
            prompt=prompt,
            problem=problem,
            answer=None if answered is None else record.get(answered),
            words=words(text or ""),
            bare=words((text or "")[start : len(text or "") - end]),
        )
        for number, (record, (prompt, problem), text) in enumerate(zip(records, prompts, texts, strict=True), start=1)
    ]


def _column(
    data: str, records: Sequence[Mapping[str, Any]], what: str, named: str | None, usual: Sequence[str]
) -> str | None:
    """The column that is named, or the first of the usual ones that a row has."""
    found = next((name for name in ([named] if named else usual) if any(name in record for record in records)), None)
    if named is not None and found is None:
        raise DataError(f"{data} has no {what} column {named!r}: its columns are {_names(records)}")
    return found


def _names(records: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(map(repr, records[0])) or "none"


def _prompt(record: Mapping[str, Any], column: str, number: int) -> tuple[Prompt | None, str]:
    """A row's prompt, or why it has none."""
    if column not in record:
        return None, f"there is no {column!r}"
    try:
        prompt = checked_prompt(record[column], number)
    except DataError as error:
        return None, str(error)
    return (prompt, "") if prompt_text(prompt).strip() else (None, "no message of the user has text")


def common_frame(texts: Sequence[str]) -> tuple[int, int]:
    """How many characters all texts begin and end with alike, in whole lines: an instruction around every problem.

    Args:
        texts: of a data set; fewer than two have no frame.

    Returns:
        The lengths of the beginning and of the ending, the line breaks that part them from the problem included.
    """
    if len(texts) < 2:
        return 0, 0
    start = _common_start(texts).rfind("\n") + 1
    return start, _common_start([text[start:][::-1] for text in texts]).rfind("\n") + 1


def _common_start(texts: Sequence[str]) -> str:
    """What all texts begin with: what the first and the last of them in the order of the alphabet begin with."""
    first, last = min(texts), max(texts)
    return first[: next((place for place, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))]
