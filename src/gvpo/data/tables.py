"""Datasets in memory as rows: lists, data frames, Arrow tables, columns, streams."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any

from gvpo.errors import DataError

LONGEST_STREAM = 100_000
"""Maximum number of rows of a stream without a length or a requested number of rows, since it may never end."""

_COLUMNS = ("prompt", "completion", "completions", "chosen", "messages", "answer", "question", "problem")
_PLAIN = (str, int, float, bool, type(None))


def rows_of(data: Any, most: int | None = None) -> list[Any]:
    """Return the rows of a dataset in memory, with numpy values converted to Python values.

    Args:
        data: Rows, a `datasets.Dataset`, a pandas or polars data frame, an Arrow table, or a dict of columns.
        most: Number of rows to read from a stream, which has no length; None reads all.

    Raises:
        DataError: If columns differ in length, or a stream has more than `LONGEST_STREAM` rows and `most` is None.
    """
    rows = _iterated(data)
    if isinstance(data, Sized):
        return [_plain_row(row) for row in rows]
    taken = list(itertools.islice(rows, LONGEST_STREAM + 1 if most is None else most))
    if most is None and len(taken) > LONGEST_STREAM:
        raise DataError(
            f"the dataset has no length and gives more than {LONGEST_STREAM:,} rows; set data.train_problems to the "
            "number of rows to take"
        )
    return [_plain_row(row) for row in taken]


def is_data_set(data: object) -> bool:
    """Return whether `rows_of` can read `data`; a dict must contain columns."""
    if isinstance(data, Mapping):
        return _are_columns(data)
    return isinstance(data, Iterable) or (isinstance(data, Sized) and hasattr(data, "__getitem__"))


def _are_columns(data: Mapping[Any, Any]) -> bool:
    """Return whether a dict contains columns, and not the splits of a dataset or a single row."""
    return any(name in data for name in _COLUMNS) and all(
        isinstance(column, Sized) and not isinstance(column, str) for column in data.values()
    )


def _iterated(data: Any) -> Iterator[Any]:
    if isinstance(data, Mapping):
        return _from_columns(data)
    if hasattr(data, "iloc"):  # pandas: cells without a value are None, not NaN
        return iter(data.astype(object).where(data.notna(), None).to_dict("records"))
    for method in ("to_pylist", "to_dicts"):  # Arrow, polars
        if hasattr(data, method):
            return iter(getattr(data, method)())
    if isinstance(data, Iterable):
        return iter(data)
    return (data[place] for place in range(len(data)))


def _from_columns(data: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    lengths = {name: len(column) for name, column in data.items()}
    if len(set(lengths.values())) > 1:
        longest, shortest = max(lengths, key=lengths.__getitem__), min(lengths, key=lengths.__getitem__)
        raise DataError(
            f"the column {shortest!r} has {lengths[shortest]} values and {longest!r} has {lengths[longest]}; give each "
            "row one of each"
        )
    return (dict(zip(data, values, strict=True)) for values in zip(*data.values(), strict=True))


def _plain_row(row: Any) -> Any:
    return {name: _plain(value) for name, value in row.items()} if isinstance(row, Mapping) else row


def _plain(value: Any) -> Any:
    """Return a cell with numpy values converted to numbers and lists."""
    if type(value) in _PLAIN:
        return value
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return value if all(type(item) in _PLAIN for item in value) else [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return value
