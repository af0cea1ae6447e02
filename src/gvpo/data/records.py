"""Rows of a dataset from any location, and their conversion to problems."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from gvpo.data.readers import COMPRESSIONS, READERS, kind_of, read_file
from gvpo.data.run_groups import are_rollouts, groups_of_rollouts, is_rollout_directory, read_run_groups
from gvpo.errors import DataError, type_of
from gvpo.hub import from_hub
from gvpo.messages import plain_messages, unicode_text, well_formed
from gvpo.nearest import nearest
from gvpo.types import Problem, Prompt

T = TypeVar("T")

Record = Mapping[str, Any]
"""A row with `prompt`, optionally `id`, and the columns that the rewards need."""

OTHER_NAMES = ("question", "problem", "instruction", "query", "input", "text", "messages")
"""Names of the prompt column in other datasets."""


def load_records(path_or_id: str | Path, split: str = "train") -> list[dict[str, Any]]:
    """Return all rows of a file, a Hub dataset or a run.

    Args:
        path_or_id: A .jsonl, .json (a list of objects), .csv or .parquet file, where text may be compressed
            (.jsonl.gz); a run directory or one of its rollout files, whose rows are the groups that the run was trained
            on; or a Hub dataset ID, `owner/name`, with optional `:config` and `#split` (`openai/gsm8k:main#test`).
        split: Split of a Hub dataset whose ID does not name one.

    Returns:
        The rows in order.

    Raises:
        DataError: If the file or dataset does not exist or cannot be read; the message names an invalid line.
    """
    require_file(path_or_id)
    path = Path(path_or_id)
    if is_rollout_directory(path):
        return read_run_groups(path)
    if kind_of(path) is None:
        return _from_hub(str(path_or_id), split)
    rows = read_file(path)
    return groups_of_rollouts(rows) if are_rollouts(rows) else rows


def require_file(path_or_id: str | Path) -> None:
    """Raise DataError unless the argument is a run, an existing file of a known kind, or a possible Hub dataset ID."""
    path = Path(path_or_id)
    if is_rollout_directory(path):
        return
    if kind_of(path) is not None and not path.exists():
        raise DataError(f"there is no file {path}; check the path, which is relative to the working directory")
    if path.is_dir():
        raise DataError(f"{path} is a directory, but not of a run; give a run directory, or a data file")
    if kind_of(path) is None and path.exists():
        raise DataError(
            f"{path} is not a readable data file; give a file that ends in one of {', '.join(READERS)}, the "
            f"first three perhaps compressed ({', '.join(COMPRESSIONS)})"
        )


def problems_from_records(records: Iterable[Record]) -> list[Problem]:
    """Convert rows to problems: `prompt` (text or messages), `id` (default: the row's number), others for the rewards.

    Args:
        records: Rows; each is an object with a `prompt`.

    Returns:
        One problem per row, in order.

    Raises:
        DataError: If a prompt is missing (the message suggests a column), is empty, or is neither text nor messages, or
            if two rows have the same ID. Rows are counted from 1.
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
        raise DataError(f"row {number} is {type_of(record)}; rows are objects with a `prompt`")
    if "prompt" not in record:
        raise DataError(f"row {number} has no `prompt`{_suggestion(list(record))}")
    if pictures := [name for name in ("image", "images") if _is_given(record.get(name))]:
        raise DataError(
            f"row {number} has `{pictures[0]}`, and gvpo trains on text alone; remove the row or the column"
        )
    prompt = checked_prompt(record["prompt"], number)
    name = record.get("id")
    columns = {key: value for key, value in record.items() if key not in ("prompt", "id")}
    return Problem(prompt, f"row-{number}" if name is None else well_formed(str(name)), columns)


def _is_given(value: Any) -> bool:
    """Return whether a cell has a value; a list of nulls does not count."""
    if isinstance(value, str | bytes | Mapping | list | tuple):
        return bool(value) and (not isinstance(value, list | tuple) or any(item is not None for item in value))
    return value is not None and value == value


def _suggestion(columns: list[str]) -> str:
    if not columns:
        return "; it has no columns at all"
    if "conversations" in columns:
        return "; write its 'conversations' as `messages`, each with `role` and `content`"
    known = [name for name in OTHER_NAMES if name in columns]
    near = [*nearest("prompt", columns), *known]
    if near:
        return f"; rename {near[0]!r} to `prompt`, or name it with data.prompt_column"
    return f"; its columns are {', '.join(map(repr, columns))}"


def checked_prompt(prompt: Any, number: int) -> Prompt:
    """Return a prompt as text, or as messages whose content is text.

    Args:
        prompt: Text, or messages with `role` and `content`.
        number: Number of the row, for the message.

    Raises:
        DataError: If the prompt is empty, is not text (an image), contains half of a character, or has another type.
    """
    if not isinstance(prompt, str | list | tuple):
        raise DataError(f"the prompt of row {number} is {type_of(prompt)}; give text or a list of messages")
    if not prompt or (isinstance(prompt, str) and not prompt.strip()):
        advice = "write one" if isinstance(prompt, str) else "give it a message"
        raise DataError(f"row {number} has an empty prompt; remove the row or {advice}")
    if are_token_ids(prompt):
        raise DataError(
            f"the prompt of row {number} is token ids, which are allowed only in groups; give text or messages"
        )
    try:
        return unicode_text(prompt) if isinstance(prompt, str) else plain_messages(prompt)
    except DataError as error:
        raise DataError(f"the prompt of row {number}: {error}") from None


def numbered(number: int, read: Callable[..., T], *args: Any) -> T:
    """Call `read` and add the row's number to its errors.

    Raises:
        DataError: If `read` raises it.
    """
    try:
        return read(*args)
    except DataError as error:
        raise DataError(f"row {number}: {error}") from None


def are_token_ids(value: Any) -> bool:
    """Return whether a prompt or a completion is given as token IDs."""
    return isinstance(value, list | tuple) and len(value) > 0 and all(type(item) is int for item in value)


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
            f"{name!r} is neither a file nor a dataset that can be loaded ({type(error).__name__}: {first}); "
            "check the spelling, or the network for a Hub dataset ID"
        ) from error
