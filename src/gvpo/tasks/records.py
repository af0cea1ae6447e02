"""Rows of a data set, wherever they lie, and the problems that they are."""

import csv
import difflib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gvpo.downloads import from_hub
from gvpo.errors import DataError
from gvpo.types import Problem, Prompt

Record = Mapping[str, Any]
"""One row: `prompt`, perhaps `id`, and the columns that the rewards need."""

OTHER_NAMES = ("question", "problem", "instruction", "query", "input", "text", "messages")
"""What other data sets call a prompt."""


def load_records(path_or_id: str | Path, split: str = "train") -> list[dict[str, Any]]:
    """All rows of a file or of a data set on the hub.

    Args:
        path_or_id: a .jsonl, .json (a list of objects), .parquet or .csv file; or a hub id, `owner/name`, with
            `:config` and `#split` after it where they are needed (`openai/gsm8k:main#test`).
        split: of a hub data set whose id names none.

    Returns:
        The rows in order.

    Raises:
        DataError: there is no such file or data set, or it cannot be read; a bad line is named by its number.
    """
    require_file(path_or_id)
    path = Path(path_or_id)
    reader = READERS.get(path.suffix)
    return _from_hub(str(path_or_id), split) if reader is None else _read(path, reader)


def require_file(path_or_id: str | Path) -> None:
    """Nothing, if `load_records` can try: a file of a kind that it reads is there, or this is no file but a hub id.

    Raises:
        DataError: the file is missing, or of another kind.
    """
    path = Path(path_or_id)
    if path.suffix in READERS and not path.exists():
        raise DataError(f"there is no file {path}; check the path, which is relative to the working directory")
    if path.suffix not in READERS and path.exists():
        kinds = ", ".join(READERS)
        raise DataError(f"{path} is not a data file that can be read; give a file that ends in one of {kinds}")


def problems_from_records(records: Iterable[Record]) -> list[Problem]:
    """Rows as problems: `prompt` (text or messages), `id` (default the row's number), all else for the rewards.

    Args:
        records: rows; each is an object with a `prompt`.

    Returns:
        One problem a row, in order.

    Raises:
        DataError: a row without a prompt (the column that may be meant is suggested), an empty prompt, one that is
            neither text nor messages, or an id that two rows have. Rows are counted from 1.
    """
    problems = [_problem(record, number) for number, record in enumerate(records, start=1)]
    seen: dict[str, int] = {}
    for number, problem in enumerate(problems, start=1):
        if problem.id in seen:
            raise DataError(
                f"rows {seen[problem.id]} and {number} have the same id {problem.id!r}; "
                "make ids unique, or drop the column"
            )
        seen[problem.id] = number
    return problems


def _problem(record: Record, number: int) -> Problem:
    if not isinstance(record, Mapping):
        raise DataError(f"row {number} is a {type(record).__name__}; rows are objects with a `prompt`")
    if "prompt" not in record:
        raise DataError(f"row {number} has no `prompt`{_suggestion(list(record))}")
    prompt = checked_prompt(record["prompt"], number)
    name = record.get("id")
    columns = {key: value for key, value in record.items() if key not in ("prompt", "id")}
    return Problem(prompt, f"row-{number}" if name is None else str(name), columns)


def _suggestion(columns: list[str]) -> str:
    if not columns:
        return "; it has no columns at all"
    known = [name for name in OTHER_NAMES if name in columns]
    near = [*difflib.get_close_matches("prompt", columns, n=1), *known]
    return f"; rename {near[0]!r} to `prompt`" if near else f"; its columns are {', '.join(map(repr, columns))}"


def checked_prompt(prompt: Any, number: int) -> Prompt:
    """`prompt` if it is one.

    Args:
        prompt: text, or messages with `role` and `content`.
        number: of the row, for the message.

    Raises:
        DataError: it is empty, or something else.
    """
    if isinstance(prompt, str):
        if not prompt.strip():
            raise DataError(f"row {number} has an empty prompt; remove the row or write one")
        return prompt
    if not isinstance(prompt, list | tuple):
        raise DataError(f"the prompt of row {number} is a {type(prompt).__name__}; give text or a list of messages")
    if not prompt:
        raise DataError(f"row {number} has an empty prompt; remove the row or give it a message")
    for message in prompt:
        if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
            raise DataError(
                f"the prompt of row {number} has a message without `role` and `content`; "
                'write messages as {"role": "user", "content": "..."}'
            )
    return list(prompt)


def _read(path: Path, reader: Any) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = reader(path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not text in UTF-8: {error.reason} at byte {error.start}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    return rows


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    rows = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                rows.append(_parse_line(line, f"{path} line {number}"))
    return rows


def _parse_line(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where} is not valid JSON: {error}; write one object a line") from None
    if not isinstance(row, dict):
        raise DataError(f"{where} is a {type(row).__name__}; write one object a line")
    return row


def _read_json(path: Path) -> list[dict[str, Any]]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not valid JSON: {error}; with one object a line, call it .jsonl") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path} is not a list of objects; write [{{...}}, ...], or one object a line in a .jsonl file")
    return rows


def _read_csv(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            raise DataError(f"{path} row {number} has not as many cells as the header; quote cells that hold commas")
    return [dict(row) for row in rows]


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return [dict(row) for row in parquet.read_table(path).to_pylist()]
    except pa.ArrowException as error:
        raise DataError(f"{path} is not a parquet file that can be read: {error}") from None


READERS = {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv, ".parquet": _read_parquet}
"""How a file is read, by the ending of its name."""


def _from_hub(name: str, split: str) -> list[dict[str, Any]]:
    import datasets

    where, _, named_split = name.partition("#")
    repository, _, config = where.partition(":")
    try:
        with from_hub(repository):
            return [dict(row) for row in datasets.load_dataset(repository, config or None, split=named_split or split)]
    except Exception as error:
        first = str(error).partition("\n")[0]
        raise DataError(
            f"{name!r} is neither a file nor a data set that can be loaded ({type(error).__name__}: {first}); "
            "check the spelling, or the network for a hub id"
        ) from error
