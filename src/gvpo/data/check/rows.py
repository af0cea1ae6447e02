"""Dataset rows for the checks: the place, the normalized prompt text and the answer of each row."""

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
    """Place of a row: the name of its dataset, and its number there, from 1."""

    data: str
    row: int

    def __str__(self) -> str:
        return f"{self.data} row {self.row}"


@dataclass(frozen=True)
class CheckedRow:
    """A row of a dataset.

    Args:
        place: Place of the row.
        record: Its columns, unchanged.
        prompt: Its prompt; None if it has no usable prompt.
        problem: Reason why the prompt is not usable; otherwise "".
        answer: Value of the answer column; None if it has none.
        words: Normalized words of the prompt.
        bare: The words without the lines that all prompts of the dataset begin and end with, such as an instruction.
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
        """Text of the prompt; "" without a prompt."""
        return "" if self.prompt is None else prompt_text(self.prompt)

    @property
    def numbers(self) -> Counter[str]:
        """Numbers in the bare prompt, with their counts."""
        return Counter(word for word in self.bare if word.isdigit())


def read_rows(
    data: str, *, split: str = "train", prompt_column: str | None = None, answer_column: str | None = None
) -> list[CheckedRow]:
    """Read all rows of a file, of the data files in a directory, or of a Hub dataset.

    Args:
        data: Path or Hub dataset ID, as for `load_records`.
        split: Split of a Hub dataset whose ID does not name one.
        prompt_column: Column of the prompts; default: the first of `PROMPT_COLUMNS` that exists.
        answer_column: Column of the answers; default: the first of `ANSWER_COLUMNS` that exists.

    Raises:
        DataError: If the data cannot be read, have no rows, or have no such column.
    """
    files = _data_files(Path(data)) if Path(data).is_dir() else [data]
    return [row for file in files for row in _rows(file, load_records(file, split), prompt_column, answer_column)]


def prompt_text(prompt: Prompt) -> str:
    """Return the text of a prompt: the prompt itself, or its user messages."""
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
        raise DataError(f"{data} has no rows; give a file with rows")
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
    """Return the given column, or the first of the usual columns that a row has."""
    found = next((name for name in ([named] if named else usual) if any(name in record for record in records)), None)
    if named is not None and found is None:
        raise DataError(f"{data} has no {what} column {named!r}: its columns are {_names(records)}")
    return found


def _names(records: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(map(repr, records[0])) or "none"


def _prompt(record: Mapping[str, Any], column: str, number: int) -> tuple[Prompt | None, str]:
    """Return a row's prompt, or the reason why it has none."""
    if column not in record:
        return None, f"there is no {column!r}"
    try:
        prompt = checked_prompt(record[column], number)
    except DataError as error:
        return None, str(error)
    return (prompt, "") if prompt_text(prompt).strip() else (None, "no message of the user has text")


def common_frame(texts: Sequence[str]) -> tuple[int, int]:
    """Return the lengths of the common beginning and ending of all texts, in whole lines, such as an instruction.

    Args:
        texts: Texts of a dataset; fewer than two have no frame.

    Returns:
        Number of characters of the beginning and of the ending, including the line breaks next to the problem.
    """
    if len(texts) < 2:
        return 0, 0
    start = _common_start(texts).rfind("\n") + 1
    return start, _common_start([text[start:][::-1] for text in texts]).rfind("\n") + 1


def _common_start(texts: Sequence[str]) -> str:
    """Return the common prefix of all texts, which is that of the first and the last text in alphabetical order."""
    first, last = min(texts), max(texts)
    return first[: next((place for place, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))]
