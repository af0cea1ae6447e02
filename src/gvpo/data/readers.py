"""Files of rows: JSON lines, JSON, CSV and parquet, compressed or not. Errors name the place of the problem."""

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from gvpo.errors import DataError, one_line, type_of

Row = dict[str, Any]

MOST_NESTED = 100
"""Maximum nesting of lists and objects in a row; Python cannot process much deeper nesting."""

_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def _open_zst(path: Path) -> Any:
    import pyarrow

    return pyarrow.input_stream(str(path), compression="zstd")


COMPRESSIONS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _open_zst,
}
"""Function that opens a compressed file, by the last suffix of its name."""

_DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError)
"""Exceptions while reading a file. Without an errno, the content of the file does not match its name."""


def kind_of(path: str | Path) -> str | None:
    """Return the suffix that determines the format, such as ".jsonl" for rows.jsonl.gz, or None if it is unknown."""
    endings = Path(path).suffixes
    if endings and endings[-1] in COMPRESSIONS:
        return endings[-2] if len(endings) > 1 and endings[-2] in _TEXT_READERS else None
    return endings[-1] if endings and endings[-1] in READERS else None


def read_file(path: Path) -> list[Row]:
    """Return the rows of a file whose `kind_of` is known.

    Raises:
        DataError: If the file cannot be read; the message names the place of the problem.
    """
    kind = kind_of(path)
    try:
        return _read_parquet(path) if kind == ".parquet" else _read_text(path, _TEXT_READERS[str(kind)])
    except UnicodeDecodeError as error:
        raise _not_utf8(str(path), error) from None
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise DataError(f"{path} cannot be read: {error.strerror}") from None
        raise DataError(f"{path} is corrupt or truncated ({error}); compress or copy it again") from None


def _read_text(path: Path, read: "_TextReader") -> list[Row]:
    """Return the rows of a text file, which may be compressed and may begin with a byte order mark."""
    with COMPRESSIONS.get(path.suffix, _open)(path) as opened, io.BufferedReader(opened) as file:
        start = file.peek(len(codecs.BOM_UTF8))
        if start.startswith(_UTF16):
            raise DataError(f"{path} is text in UTF-16; save it as UTF-8")
        if start.startswith(codecs.BOM_UTF8):
            file.read(len(codecs.BOM_UTF8))
        return read(file, str(path))


def _open(path: Path) -> Any:
    return path.open("rb", buffering=0)


def _not_utf8(where: str, error: UnicodeDecodeError) -> DataError:
    return DataError(f"{where} is not text in UTF-8: {error.reason} at byte {error.start}")


def _read_jsonl(file: IO[bytes], name: str) -> list[Row]:
    rows = []
    for number, data in enumerate(_lines(file), start=1):
        where = f"{name} line {number}"
        try:
            line = data.decode().strip().removeprefix("\ufeff")  # the mark of a file that was appended to another one
        except UnicodeDecodeError as error:
            raise _not_utf8(where, error) from None
        if line:
            rows.append(_object(line, where))
    return rows


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the lines of a file one by one, because a large text and its rows may not fit in memory together."""
    for line in file:
        yield from line.splitlines()  # which may end in "\r" alone


def _object(line: str, where: str) -> Row:
    row = _parsed(line, where, "write one object per line")
    if not isinstance(row, dict):
        raise DataError(f"{where} is {type_of(row)}; write one object per line")
    if line.count("[") + line.count("{") > MOST_NESTED:
        _require_shallow(row, where)
    return row


def _read_json(file: IO[bytes], name: str) -> list[Row]:
    rows = _parsed(file.read().decode(), name, "if it has one object per line, rename it to .jsonl")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(
            f"{name} is not a list of objects; write [{{...}}, ...], or one object per line in a .jsonl file"
        )
    for number, row in enumerate(rows, start=1):
        _require_shallow(row, f"{name} row {number}")
    return rows


def _parsed(text: str, where: str, advice: str) -> Any:
    """Parse JSON.

    Args:
        text: The JSON.
        where: Place of the text, for messages.
        advice: Remedy for text that is not JSON, for messages.

    Raises:
        DataError: If the text is not JSON, repeats a key, or is nested too deeply.
    """
    try:
        return _DECODER.decode(text)
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


_DECODER = json.JSONDecoder(object_pairs_hook=_without_repetition)
"""Shared decoder, because creating a decoder takes longer than reading a row."""


def _require_shallow(value: Any, where: str) -> None:
    """Check the nesting of a value.

    Raises:
        DataError: If lists and objects are nested deeper than `MOST_NESTED`.
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


def _read_csv(file: IO[bytes], name: str) -> list[Row]:
    csv.field_size_limit(sys.maxsize)
    try:
        reader = csv.DictReader(io.StringIO(file.read().decode(), newline=""), strict=True)
        rows = list(reader)
    except csv.Error as error:
        raise DataError(
            f"{name} is not valid CSV after line {reader.line_num}: {error}; write a quote inside a quoted cell twice"
        ) from None
    header = reader.fieldnames or []
    if repeated := [column for column in header if list(header).count(column) > 1]:
        raise DataError(f"{name} has the column {repeated[0]!r} twice; rename or remove one")
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            raise DataError(
                f"{name} row {number} does not have as many cells as the header; quote cells that contain commas"
            )
    return [dict(row) for row in rows]


def _read_parquet(path: Path) -> list[Row]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return [dict(row) for row in parquet.read_table(path).to_pylist()]
    except UnicodeDecodeError:
        raise  # the caller reports that the text is not UTF-8
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise DataError(f"{path} is not a readable parquet file: {one_line(error)}") from None


_TextReader = Callable[[IO[bytes], str], list[Row]]
_TEXT_READERS: dict[str, _TextReader] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
}
READERS = (*_TEXT_READERS, ".parquet")
"""Suffixes of readable files. Text may be compressed; its name then has an additional suffix from `COMPRESSIONS`."""
