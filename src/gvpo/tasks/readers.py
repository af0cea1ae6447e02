"""Files of rows: JSON lines, JSON, CSV and parquet, compressed or not. Whatever is wrong is named by its place."""

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import sys
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from gvpo.errors import DataError

Row = dict[str, Any]

MOST_NESTED = 100
"""Levels of lists and objects in a row; Python cannot go into much deeper ones."""

_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def _from_zst(data: bytes) -> bytes:
    import pyarrow

    whole: bytes = pyarrow.input_stream(pyarrow.BufferReader(data), compression="zstd").read()
    return whole


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.decompress,
    ".bz2": bz2.decompress,
    ".xz": lzma.decompress,
    ".zst": _from_zst,
}
"""How a compressed file is read, by the last ending of its name."""


def kind_of(path: str | Path) -> str | None:
    """Return the ending that says how a file is read, such as ".jsonl" of rows.jsonl.gz; None if none does."""
    endings = Path(path).suffixes
    if endings and endings[-1] in COMPRESSIONS:
        return endings[-2] if len(endings) > 1 and endings[-2] in _TEXT_READERS else None
    return endings[-1] if endings and endings[-1] in READERS else None


def read_file(path: Path) -> list[Row]:
    """Return the rows of a file whose `kind_of` is known.

    Raises:
        DataError: it cannot be read; the place of what is wrong is named.
    """
    kind = kind_of(path)
    try:
        return _read_parquet(path) if kind == ".parquet" else _TEXT_READERS[str(kind)](_text(path), str(path))
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not text in UTF-8: {error.reason} at byte {error.start}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None


def _text(path: Path) -> str:
    """Return a file's text without the byte order mark that some programs put in front."""
    data = path.read_bytes()
    if decompress := COMPRESSIONS.get(path.suffix):
        data = _decompressed(decompress, data, path)
    if data.startswith(_UTF16):
        raise DataError(f"{path} is text in UTF-16; save it as UTF-8")
    return data.decode("utf-8-sig")


def _decompressed(decompress: Callable[[bytes], bytes], data: bytes, path: Path) -> bytes:
    try:
        return decompress(data)
    except (OSError, ValueError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{path} is damaged or cut off ({error}); compress or copy it again") from None


def _read_jsonl(text: str, name: str) -> list[Row]:
    rows = []
    for number, line in enumerate(io.StringIO(text, newline=None), start=1):
        if line := line.strip().removeprefix("\ufeff"):  # of a file that was put behind another one
            rows.append(_object(line, f"{name} line {number}"))
    return rows


def _object(line: str, where: str) -> Row:
    row = _parsed(line, where, "write one object per line")
    if not isinstance(row, dict):
        raise DataError(f"{where} is a {type(row).__name__}; write one object per line")
    _require_shallow(row, where)
    return row


def _read_json(text: str, name: str) -> list[Row]:
    rows = _parsed(text, name, "with one object per line, call it .jsonl")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(
            f"{name} is not a list of objects; write [{{...}}, ...], or one object per line in a .jsonl file"
        )
    for number, row in enumerate(rows, start=1):
        _require_shallow(row, f"{name} row {number}")
    return rows


def _parsed(text: str, where: str, advice: str) -> Any:
    """Return what JSON says.

    Args:
        text: the JSON.
        where: for messages.
        advice: what to do about text that is no JSON.

    Raises:
        DataError: it is no JSON, names a key twice, or is nested too deeply.
    """
    try:
        return json.loads(text, object_pairs_hook=_without_repetition)
    except RecursionError:
        raise _too_deep(where) from None
    except _RepeatedKey as error:
        raise DataError(f"{where} has the key {error.args[0]!r} twice in one object; keep one of them") from None
    except ValueError as error:
        hint = "remove the comma before the bracket" if re.search(r",\s*[}\]]", text) else advice
        raise DataError(f"{where} is not valid JSON: {error}; {hint}") from None


class _RepeatedKey(Exception):
    pass


def _without_repetition(pairs: list[tuple[str, Any]]) -> Row:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _RepeatedKey(next(name for name in names if names.count(name) > 1))
    return found


def _require_shallow(value: Any, where: str) -> None:
    """Refuse a value whose lists and objects are nested deeper than `MOST_NESTED`.

    Raises:
        DataError: it is.
    """
    level = [value]
    for _ in range(MOST_NESTED):
        level = [inner for outer in level for inner in _inner(outer)]
        if not level:
            return
    raise _too_deep(where)


def _inner(value: Any) -> Iterable[Any]:
    values = value.values() if isinstance(value, dict) else value
    return [each for each in values if isinstance(each, dict | list)]


def _too_deep(where: str) -> DataError:
    return DataError(
        f"{where} is nested more than {MOST_NESTED} levels deep; remove the row, or keep that part as text"
    )


def _read_csv(text: str, name: str) -> list[Row]:
    csv.field_size_limit(sys.maxsize)
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        rows = list(reader)
    except csv.Error as error:
        raise DataError(
            f"{name} is not valid CSV after line {reader.line_num}: {error}; quote cells that hold quotes"
        ) from None
    header = reader.fieldnames or []
    if repeated := [column for column in header if list(header).count(column) > 1]:
        raise DataError(f"{name} has the column {repeated[0]!r} twice; rename or remove one")
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            raise DataError(f"{name} row {number} has not as many cells as the header; quote cells that hold commas")
    return [dict(row) for row in rows]


def _read_parquet(path: Path) -> list[Row]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return [dict(row) for row in parquet.read_table(path).to_pylist()]
    except UnicodeDecodeError:
        raise  # named as text that is not UTF-8
    except (pa.ArrowException, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path} is not a parquet file that can be read: {reason}") from None


_TEXT_READERS: dict[str, Callable[[str, str], list[Row]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
}
READERS = (*_TEXT_READERS, ".parquet")
"""Endings of the files that are read; text may be compressed, and its name then ends in one of `COMPRESSIONS` more."""
