"""Tests of rows from every kind of file as problems, and of errors for invalid rows."""

import json

import pytest

from gvpo.data import load_records, problems_from_records
from gvpo.errors import DataError
from gvpo.types import Problem

ROWS = [{"prompt": "1+1=", "answer": "2"}, {"prompt": "zwei\nund é", "answer": "3"}]
MESSAGES = [{"role": "system", "content": "be short"}, {"role": "user", "content": "hi"}]


def write_parquet(path):
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.Table.from_pylist(ROWS), path)


WRITERS = {
    "data.jsonl": lambda path: path.write_text("\n\n".join(map(json.dumps, ROWS)), encoding="utf-8"),
    "data.json": lambda path: path.write_text(json.dumps(ROWS), encoding="utf-8"),
    "data.csv": lambda path: path.write_text('prompt,answer\n1+1=,2\n"zwei\nund é",3\n', encoding="utf-8"),
    "data.parquet": write_parquet,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_rows(tmp_path, name):
    WRITERS[name](tmp_path / name)
    assert load_records(tmp_path / name) == ROWS
    assert load_records(str(tmp_path / name)) == ROWS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"prompt": "a"}\n\n{"prompt": \n', "a.jsonl line 3 is not valid JSON"),
        ("a.jsonl", '{"prompt": "a"}\n["b"]\n', "a.jsonl line 2 is a list; write one object per line"),
        ("a.json", '{"prompt": "a"}\n{"prompt": "b"}\n', "rename it to .jsonl"),
        ("a.json", '{"prompt": "a"}', "is not a list of objects"),
        ("a.csv", "prompt,answer\na\n", "row 1 does not have as many cells as the header"),
        ("a.csv", "prompt,answer\na,b,c\n", "row 1 does not have as many cells as the header"),
        ("a.parquet", "not parquet", "is not a readable parquet file"),
        ("a.txt", "hello", "give a file that ends in one of .jsonl, .json, .csv, .parquet"),
    ],
)
def test_error_explains_files_that_cannot_be_read(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        load_records(tmp_path / name)


def test_a_missing_file_and_one_that_is_not_text(tmp_path):
    with pytest.raises(DataError, match=r"there is no file .*missing.jsonl"):
        load_records(tmp_path / "missing.jsonl")
    (tmp_path / "latin.jsonl").write_bytes('{"prompt": "é"}'.encode("latin-1"))
    with pytest.raises(DataError, match="is not text in UTF-8"):
        load_records(tmp_path / "latin.jsonl")
    (tmp_path / "dir.jsonl").mkdir()
    with pytest.raises(DataError, match=r"dir\.jsonl is a directory, but not of a run"):
        load_records(tmp_path / "dir.jsonl")


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("owner/data", (("owner/data", None), {"split": "eval"})),
        ("owner/data:main", (("owner/data", "main"), {"split": "eval"})),
        ("owner/data:main#test", (("owner/data", "main"), {"split": "test"})),
        ("owner/data#test[:5]", (("owner/data", None), {"split": "test[:5]"})),
    ],
)
def test_hub_ids_go_to_datasets(monkeypatch, name, arguments):
    calls = []

    def load_dataset(*args, **options):
        calls.append((args, options))
        return iter(ROWS)

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert load_records(name, "eval") == ROWS
    assert calls == [arguments]


def test_a_hub_id_that_does_not_load_is_one_line(monkeypatch):
    def load_dataset(*_, **__):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(DataError) as raised:
        load_records("owner/data")
    assert str(raised.value) == (
        "'owner/data' is neither a file nor a dataset that can be loaded (ConnectionError: no route); "
        "check the spelling, or the network for a Hub dataset ID"
    )


def test_rows_become_problems():
    rows = [{"prompt": "a", "answer": 1}, {"prompt": MESSAGES, "id": 7, "tags": ["x"]}]
    assert problems_from_records(iter(rows)) == [
        Problem("a", "row-1", {"answer": 1}),
        Problem(MESSAGES, "7", {"tags": ["x"]}),
    ]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"promt": "a", "question": "b"}], "row 1 has no `prompt`; rename 'promt' to `prompt`"),
        ([{"prompt": "a"}, {"question": "b", "answer": "c"}], "row 2 has no `prompt`; rename 'question' to `prompt`"),
        ([{"answer": "c", "x": 1}], "row 1 has no `prompt`; its columns are 'answer', 'x'"),
        ([{}], "row 1 has no `prompt`; it has no columns at all"),
        (["text"], "row 1 is a str; rows are objects with a `prompt`"),
        ([{"prompt": " \n"}], "row 1 has an empty prompt"),
        ([{"prompt": []}], "row 1 has an empty prompt"),
        ([{"prompt": None}], "the prompt of row 1 is None; give text or a list of messages"),
        ([{"prompt": 3}], "the prompt of row 1 is an int"),
        ([{"prompt": ["hi"]}], "row 1: message 1 has no `role` and `content`"),
        ([{"prompt": [{"role": "user"}]}], "row 1: message 1 has no `role` and `content`"),
        ([{"prompt": "a", "id": "x"}, {"prompt": "b", "id": "x"}], "rows 1 and 2 have the same id 'x'"),
    ],
)
def test_error_explains_rows_that_are_not_problems(rows, message):
    with pytest.raises(DataError, match=message):
        problems_from_records(rows)
