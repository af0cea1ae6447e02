"""Tests of row files as programs write them: byte order marks, line ends, compression and corruption."""

import bz2
import gzip
import json
import lzma
import re
import tracemalloc
from pathlib import Path

import pytest

from gvpo.data import load_records, require_file
from gvpo.data.readers import MOST_NESTED, kind_of, read_file
from gvpo.errors import DataError

ROWS = [{"prompt": "1+1=", "answer": "2"}, {"prompt": "zwei é \u2028 \x00", "answer": "3"}]
LINES = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in ROWS).encode()
CSV = b"prompt,answer\r\n1+1=,2\r\n"
BOM = b"\xef\xbb\xbf"


def zst(data: bytes) -> bytes:
    import pyarrow

    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as file:
        file.write(data)
    return bytes(sink.getvalue().to_pybytes())


SAME = {  # of ROWS
    "plain.jsonl": LINES,
    "mark.jsonl": BOM + LINES,  # Windows' editors and PowerShell put a byte order mark in front
    "two-marks.jsonl": BOM + LINES.split(b"\n")[0] + b"\n" + BOM + LINES.split(b"\n")[1],  # files put together
    "windows.jsonl": LINES.replace(b"\n", b"\r\n"),
    "old-mac.jsonl": LINES.replace(b"\n", b"\r"),
    "blank.jsonl": b"\n\n  \n" + LINES.replace(b"\n", b"\n\t\n"),
    "no-end.jsonl": LINES.rstrip(b"\n"),
    "rows.jsonl.gz": gzip.compress(LINES),
    "two-members.jsonl.gz": b"".join(gzip.compress(line) for line in LINES.splitlines(keepends=True)),
    "rows.jsonl.bz2": bz2.compress(LINES),
    "rows.jsonl.xz": lzma.compress(LINES),
    "rows.jsonl.zst": zst(LINES),
    "mark.json": BOM + json.dumps(ROWS).encode(),
    "rows.json.gz": gzip.compress(json.dumps(ROWS).encode()),
    "rows.v2.jsonl": LINES,
}


@pytest.mark.parametrize("name", SAME)
def test_every_encoding_of_text_gives_the_same_rows(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(SAME[name])
    assert load_records(tmp_path / name) == ROWS


@pytest.mark.parametrize("data", [CSV, BOM + CSV, CSV.replace(b"\r\n", b"\n")])
def test_csv_with_a_mark_and_windows_line_ends(tmp_path: Path, data: bytes):
    (tmp_path / "a.csv").write_bytes(data)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(data))
    assert load_records(tmp_path / "a.csv") == load_records(tmp_path / "a.csv.gz") == ROWS[:1]


def test_a_long_cell_of_csv_is_read(tmp_path: Path):
    (tmp_path / "a.csv").write_text(f"prompt\n{'x' * 200_000}\n")
    assert len(load_records(tmp_path / "a.csv")[0]["prompt"]) == 200_000


DEEP = "[" * 100_000 + "]" * 100_000
DEEPER_THAN_ALLOWED = "[" * (MOST_NESTED + 1) + "]" * (MOST_NESTED + 1)
BAD = [
    # text of another kind
    ("a.jsonl", LINES.decode().encode("utf-16"), "a.jsonl is text in UTF-16; save it as UTF-8"),
    ("a.csv", CSV.decode().encode("utf-16-be", "strict").join([b"\xfe\xff", b""]), "text in UTF-16; save it as UTF-8"),
    ("a.json", '[{"prompt": "é"}]'.encode("latin-1"), "a.json is not text in UTF-8: invalid continuation byte at byte"),
    # compressed files that are corrupt, or of another kind
    ("a.jsonl.gz", gzip.compress(LINES)[:-9], "a.jsonl.gz is corrupt or truncated"),
    ("a.jsonl.gz", LINES, "a.jsonl.gz is corrupt or truncated"),
    ("a.jsonl.bz2", bz2.compress(LINES)[:-5], "a.jsonl.bz2 is corrupt or truncated"),
    ("a.jsonl.xz", LINES, "a.jsonl.xz is corrupt or truncated"),
    ("a.jsonl.zst", LINES, "a.jsonl.zst is corrupt or truncated"),
    ("a.parquet.gz", b"", "a.parquet.gz is not a readable data file; give a file that ends in one of .jsonl"),
    ("a.gz", b"", "a.gz is not a readable data file"),
    # JSON that goes too deep for Python
    ("a.jsonl", f'{{"prompt": "a"}}\n{{"prompt": {DEEP}}}\n', "a.jsonl line 2 is nested more than 100 levels deep"),
    ("a.jsonl", '{"a":' * 100_000 + "1" + "}" * 100_000, "a.jsonl line 1 is nested more than 100 levels deep"),
    ("a.jsonl", f'{{"prompt": {DEEPER_THAN_ALLOWED}}}', "a.jsonl line 1 is nested more than 100 levels deep"),
    ("a.json", f'[{{"prompt": {DEEP}}}]', "a.json is nested more than 100 levels deep"),
    ("a.json", f'[{{}}, {{"prompt": {DEEPER_THAN_ALLOWED}}}]', "a.json row 2 is nested more than 100 levels deep"),
    # slips of those who write JSON by hand
    ("a.jsonl", '{"prompt": "a", "prompt": "b"}', "a.jsonl line 1 has the key 'prompt' twice in one object"),
    ("a.json", '[{"prompt": "a", "x": {"y": 1, "y": 2}}]', "a.json has the key 'y' twice in one object; keep one"),
    ("a.jsonl", '{"prompt": "a",}', "a.jsonl line 1 is not valid JSON: .*; remove the comma before the bracket"),
    ("a.json", '[{"prompt": "a"},\n]', "a.json is not valid JSON: .*; remove the comma before the bracket"),
    ("a.jsonl", "{'prompt': 'a'}", "a.jsonl line 1 is not valid JSON: .*; write one object per line"),
    ("a.jsonl", '{"prompt": ' + "1" * 5000 + "}", "a.jsonl line 1 is not valid JSON: Exceeds the limit"),
    ("a.json", "", "a.json is not valid JSON: Expecting value"),
    # CSV
    ("a.csv", "prompt,prompt\na,b\n", "a.csv has the column 'prompt' twice; rename or remove one"),
    ("a.csv", 'prompt\n"a" b\n', "a.csv is not valid CSV after line 1: "),
    ("a.csv", 'prompt\n"a\n', "is not valid CSV after line 1: unexpected end of data"),
    ("a.parquet", "", "a.parquet is not a readable parquet file"),
]


@pytest.mark.parametrize(("name", "data", "message"), BAD, ids=range(len(BAD)))
def test_error_is_one_line_with_the_place_of_the_problem(tmp_path: Path, name: str, data: str | bytes, message: str):
    (tmp_path / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    with pytest.raises(DataError, match=message) as raised:
        load_records(tmp_path / name)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 500 + len(str(tmp_path))


def test_rows_of_the_maximum_depth_are_read(tmp_path: Path):
    levels = MOST_NESTED - 2
    (tmp_path / "a.jsonl").write_text(f'{{"prompt": "a", "x": {"[" * levels}{"]" * levels}}}')
    assert load_records(tmp_path / "a.jsonl")[0]["prompt"] == "a"


def test_a_missing_compressed_file_is_not_a_hub_id():
    with pytest.raises(DataError, match=re.escape("there is no file nowhere/rows.jsonl.gz; check the path")):
        require_file("nowhere/rows.jsonl.gz")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.jsonl", ".jsonl"),
        ("b/a.v1.json.gz", ".json"),
        ("a.parquet", ".parquet"),
        ("a.parquet.gz", None),
        ("a.gz", None),
        ("owner/data", None),
        ("owner/data.v2:main#test", None),
        ("", None),
    ],
)
def test_the_name_of_a_file_determines_its_format(name: str, kind: str | None):
    assert kind_of(name) == kind


def test_lines_are_read_one_by_one(tmp_path: Path):
    """Expect a large unpacked file to need the memory of its rows, not of its text."""
    path = tmp_path / "rows.jsonl.gz"
    line = b'{"prompt": "a"}' + b" " * 1000 + b"\n"
    path.write_bytes(gzip.compress(line * 20_000))  # 20 MB of text
    tracemalloc.start()
    rows = read_file(path)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(rows) == 20_000
    assert most < 10e6
