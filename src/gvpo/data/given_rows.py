"""Rows of a run's dataset, read once, with gvpo's column names."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gvpo.config import TrainConfig
from gvpo.data import is_comparison, is_pair, load_records, rows_of
from gvpo.errors import DataError
from gvpo.types import Problem

Dataset = str | Path | Iterable[Mapping[str, Any] | Problem]
"""A file, a Hub dataset ID, a `datasets.Dataset`, a data frame, an Arrow table, or any rows with a `prompt`."""

COLUMNS = ("prompt", "answer", "completion", "messages", "chosen", "rejected", "completions", "rewards")
"""Columns that may have another name in the data, set by `data.NAME_column`."""


@dataclass(frozen=True)
class Rows:
    """A dataset in memory, and its name."""

    items: Sequence[Any]
    name: str

    @property
    def kind(self) -> Literal["problems", "pairs", "groups"]:
        """Return what the rows are, by the first of them."""
        row = self.items[0] if self.items else None
        if is_pair(row):
            return "pairs"
        return "groups" if is_comparison(row) else "problems"

    def first(self, most: int | None) -> "Rows":
        """Return the first `most` rows; None returns all."""
        return Rows(self.items[:most], self.name)


def read_rows(
    config: TrainConfig, dataset: Dataset, *, split: str = "train", most: int | None = None, held_out: bool = False
) -> Rows:
    """Return a dataset's rows. Read them once, because an iterator yields them only once.

    Args:
        config: Configuration with the column names.
        dataset: A file, a Hub dataset ID, or data that `gvpo.data.rows_of` accepts.
        split: Split of a Hub dataset whose ID does not name one.
        most: Number of rows to read from a stream, which may be endless.
        held_out: Whether rows may lack columns that only training needs.

    Raises:
        DataError: If the file cannot be read, a stream does not end, or a row lacks a column that the settings name.
    """
    from_file = isinstance(dataset, str | Path)
    found = load_records(dataset, split) if isinstance(dataset, str | Path) else rows_of(dataset, most)
    names = {name: given for name in COLUMNS if (given := getattr(config, f"{name}_column")) is not None}
    if names:
        found = [_renamed(row, names, number, held_out=held_out) for number, row in enumerate(found, start=1)]
    return Rows(found, Path(str(dataset)).name if from_file else "data")


def _renamed(row: Any, names: Mapping[str, str], number: int, *, held_out: bool) -> Any:
    """Return a row with each column of `names` under its key; it replaces a column of that name."""
    if not isinstance(row, Mapping):
        return row
    for name, given in names.items():
        if given not in row and not held_out:
            raise DataError(
                f"row {number} has no column {given!r}, which data.{name}_column names; its columns are "
                f"{', '.join(map(repr, row))}"
            )
    taken = {name: row[given] for name, given in names.items() if given in row}
    return {**{name: value for name, value in row.items() if name not in names.values()}, **taken}
