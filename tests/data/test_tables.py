"""Tests of datasets in memory, in every container."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from gvpo.data import is_data_set, rows_of
from gvpo.data.tables import LONGEST_STREAM
from gvpo.errors import DataError

ROWS: list[dict[str, Any]] = [{"prompt": "a", "answer": 1, "x": [1.5]}, {"prompt": "b", "answer": None, "x": [2.5]}]


class Indexed:
    """As a `torch.utils.data.Dataset` is: a length and items, no iterator."""

    def __len__(self) -> int:
        return len(ROWS)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return ROWS[place]


def frame() -> Any:
    return pytest.importorskip("pandas").DataFrame(ROWS)


def table() -> Any:
    return pytest.importorskip("pyarrow").Table.from_pylist(ROWS)


WAYS = {
    "a list": lambda: ROWS,
    "a tuple": lambda: tuple(ROWS),
    "an iterator": lambda: iter(ROWS),
    "columns": lambda: {name: [row[name] for row in ROWS] for name in ROWS[0]},
    "columns of arrays": lambda: {"prompt": np.array(["a", "b"]), "answer": [1, None], "x": np.array([[1.5], [2.5]])},
    "a pandas frame": frame,
    "an odd index": lambda: frame().set_index(frame().index * 0),
    "an Arrow table": table,
    "an Arrow batch": lambda: table().to_batches()[0],
    "a datasets one": lambda: pytest.importorskip("datasets").Dataset.from_list(ROWS),
    "a datasets stream": lambda: pytest.importorskip("datasets").Dataset.from_list(ROWS).to_iterable_dataset(),
    "items and a length": Indexed,
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_hold_rows_gives_the_same(way: str):
    data = WAYS[way]()
    assert is_data_set(data)
    assert rows_of(data) == ROWS


def test_numbers_of_numpy_are_pythons():
    row = {"a": np.float32(0.5), "b": np.int64(3), "c": [np.bool_(True)], "e": ("x",)}
    row["d"] = np.array([{"role": "user"}])
    (plain,) = rows_of([row])
    assert plain == {"a": 0.5, "b": 3, "c": [True], "d": [{"role": "user"}], "e": ("x",)}
    assert [type(plain[name]) for name in "ab"] == [float, int]
    assert type(plain["c"][0]) is bool


def test_cells_of_a_frame_without_a_value_are_none():
    pandas = pytest.importorskip("pandas")
    times = [pandas.NaT, pandas.NaT]
    data = pandas.DataFrame({"prompt": ["a", None], "n": [1.0, np.nan], "t": times, "i": [pandas.NA, 1]})
    assert rows_of(data) == [
        {"prompt": "a", "n": 1.0, "t": None, "i": None},
        {"prompt": None, "n": None, "t": None, "i": 1},
    ]


def endless() -> Iterator[dict[str, str]]:
    return ({"prompt": str(number)} for number in itertools.count())


def test_an_endless_stream_gives_the_requested_number_of_rows():
    stream = endless()
    assert [row["prompt"] for row in rows_of(stream, 3)] == ["0", "1", "2"]
    assert next(stream) == {"prompt": "3"}  # no row more was taken


def test_error_names_the_fix_for_an_endless_stream_without_a_number():
    with pytest.raises(DataError, match=r"no length and gives more than 100,000 rows; set data\.train_problems to the"):
        rows_of(endless())


def test_a_long_stream_that_ends_is_read():
    assert len(rows_of(itertools.islice(endless(), LONGEST_STREAM))) == LONGEST_STREAM


def test_a_data_set_with_a_length_is_read_whole():
    assert rows_of(ROWS, 1) == ROWS


@pytest.mark.parametrize(
    "data",
    [{"train": ROWS, "test": ROWS}, {"prompt": "a", "answer": "b"}, {}, 3, object(), lambda: ROWS],
    ids=["splits", "one row", "empty", "number", "object", "function"],
)
def test_other_objects_are_not_datasets(data: Any):
    assert not is_data_set(data)


def test_error_names_columns_of_different_lengths():
    with pytest.raises(DataError, match="the column 'answer' has 1 values and 'prompt' has 2"):
        rows_of({"prompt": ["a", "b"], "answer": [1]})
