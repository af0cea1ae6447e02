"""Problems of programming contests in the record formats of LiveCodeBench and of open-r1's CodeForces set.

LiveCodeBench: `question_content`, `starter_code`, `contest_date`, `public_test_cases` and `private_test_cases` (JSON
lists of {"input", "output", "testtype"}; private ones may be JSON in a pickle in zlib in base64), `metadata` (JSON with
`func_name`). CodeForces: `description`, `input_format`, `output_format`, `note`, `examples`, `official_tests`,
`generated_checker` (Python), `contest_start` (seconds since 1970).

References: Jain et al., LiveCodeBench (arXiv:2403.07974) and its repository's lcb_runner/benchmarks/code_generation.py;
the data card of open-r1/codeforces.
"""

import base64
import json
import pickle
import pickletools
import zlib
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, date, datetime
from functools import partial
from typing import Any

from gvpo.data.records import load_records
from gvpo.data.tasks.base import Split, Task, check_split, checked_options, shuffled
from gvpo.errors import ConfigError, DataError
from gvpo.rewards.code.forms import TestsError, read_tests
from gvpo.types import Problem

Row = Mapping[str, Any]
PROGRAM = "\nWrite a Python program that reads standard input and prints the answer, in one code block."
FUNCTION = "\nComplete this, in one Python code block:\n"
_IMPORTS = """\
import bisect, collections, functools, heapq, itertools, math, random, re, string
from typing import *
from collections import *
from functools import *
from heapq import *
from itertools import *
"""
"""Imports that starter code assumes."""
MAX_UNPACKED = 512 << 20
"""Maximum size of a problem's test cases after unpacking, in bytes."""
_OF_TEXT = ("PROTO", "FRAME", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "STOP")
"""Opcodes in a pickle of one text, in addition to the opcode of the text."""


def _window(since: str | None, until: str | None) -> Callable[[date], bool]:
    """Return a function that checks whether a day is in a window, both ends included."""
    try:
        first = date.fromisoformat(since) if since else date.min
        last = date.fromisoformat(until) if until else date.max
    except ValueError as error:
        raise ConfigError(f"since and until are days such as 2024-08-01: {error}") from None
    return lambda day: first <= day <= last


def _day(value: Any, where: str) -> date:
    """Convert a date, a date and time, text that begins with an ISO date, or seconds since 1970 to a date."""
    try:
        if isinstance(value, date):
            return value.date() if isinstance(value, datetime) else value
        return datetime.fromtimestamp(value, UTC).date() if isinstance(value, int) else date.fromisoformat(value[:10])
    except (TypeError, ValueError, OverflowError):
        raise DataError(f"{where} has the date {value!r}; write days such as 2024-08-01") from None


def _text(row: Row, column: str, where: str) -> str:
    if not isinstance(row.get(column), str):
        raise DataError(f"{where} has no {column!r}; correct the row or the task's name")
    return str(row[column])


def _livecodebench(row: Row, where: str) -> Problem:
    tests = _cases(row["public_test_cases"], where) + _cases(row.get("private_test_cases") or "[]", where)
    name = json.loads(row.get("metadata") or "{}").get("func_name")
    starter, content = row.get("starter_code") or "", _text(row, "question_content", where)
    identity = f"livecodebench/{row.get('question_id', where)}"
    runs = [{"input": test["input"], "output": test["output"]} for test in tests]
    if not name:
        return Problem(f"{content}{PROGRAM}", identity, {"tests": runs, "checker": "tokens"})
    columns = {
        "tests": [{**run, "fn_name": name} for run in runs],
        "entry_point": f"Solution.{name}" if "class Solution" in starter else name,
        "prefix": _IMPORTS,
    }
    read_tests(columns["tests"], columns["entry_point"])  # raises now if they are invalid
    return Problem(f"{content}{FUNCTION}{starter}", identity, columns)


def _cases(text: Any, where: str) -> list[dict[str, Any]]:
    """Read test cases from JSON, or from packed JSON."""
    try:
        try:
            cases = json.loads(text)
        except json.JSONDecodeError:
            cases = json.loads(_text_of_pickle(_unpacked(base64.b64decode(text, validate=True), where)))
    except (ValueError, TypeError, RecursionError, zlib.error, pickle.UnpicklingError, EOFError) as error:
        raise DataError(f"{where} has test cases that cannot be read ({error}); get the row again") from None
    return list(cases)


def _unpacked(packed: bytes, where: str) -> bytes:
    """Decompress bytes. Check the size first, because a few kilobytes can unpack to more than the memory.

    Raises:
        DataError: If the unpacked size exceeds MAX_UNPACKED.
    """
    unpacker, rest, size = zlib.decompressobj(), packed, 0
    while rest and size <= MAX_UNPACKED:
        size += len(unpacker.decompress(rest, 1 << 20))
        rest = unpacker.unconsumed_tail
    if size > MAX_UNPACKED:
        raise DataError(f"{where} has test cases of more than {MAX_UNPACKED >> 20} MiB once unpacked; remove the row")
    return zlib.decompress(packed)


def _text_of_pickle(data: bytes) -> str:
    """Return the only text in a pickle, without executing the pickle, because it could call any function.

    Raises:
        UnpicklingError: If the pickle contains anything else.
    """
    texts: list[str] = []
    for opcode, argument, _ in pickletools.genops(data):
        if isinstance(argument, str) and "UNICODE" in opcode.name:
            texts.append(argument)
        elif "GLOBAL" in opcode.name:
            raise pickle.UnpicklingError(f"it would call {'.'.join((argument or ' '.join(texts[-2:])).split())}")
        elif opcode.name not in _OF_TEXT:
            raise pickle.UnpicklingError(f"it contains something other than a text, {opcode.name}")
    if len(texts) != 1:
        raise pickle.UnpicklingError(f"it contains {len(texts)} texts instead of one")
    return texts[0]


def _codeforces(row: Row, where: str) -> Problem:
    parts = [row.get("title"), _text(row, "description", where)]
    parts += [_section("Input", row.get("input_format")), _section("Output", row.get("output_format"))]
    parts.append(_section("Note", row.get("note")))
    parts += [f"Example\nInput:\n{each['input']}\nOutput:\n{each['output']}" for each in row.get("examples") or []]
    tests = [{"input": test["input"], "output": test["output"]} for test in row.get("official_tests") or []]
    columns = {"tests": tests or None, "checker": row.get("generated_checker") or "tokens"}
    text = "\n\n".join(part for part in parts if part)
    return Problem(f"{text}{PROGRAM}", f"codeforces/{row.get('id', where)}", columns)


def _section(title: str, text: str | None) -> str:
    return f"{title}\n{text}" if text else ""


def _read(
    task: str, rows: Iterable[Row], split: Split, *, since: str | None = None, until: str | None = None
) -> list[Problem]:
    """Convert the rows of a window of days to problems, in their order.

    Args:
        task: A key of `_FORMATS`.
        rows: Rows of that format.
        split: Name of a split, which is only checked; the rows or the window of days determine what is held out.
        since: The first day, such as 2024-08-01; default: no limit.
        until: The last day; default: no limit.

    Raises:
        ConfigError: If since or until is not a day.
        DataError: If a row does not have the format; rows are counted from 1.
    """
    check_split(task, split)
    make, column, _ = _FORMATS[task]
    inside, kept = _window(since, until), []
    for number, row in enumerate(rows, start=1):
        where = f"{task} row {number}"
        if not (since or until) or inside(_day(row.get(column), where)):
            kept.append(_made(make, row, where))
    return kept


def _made(make: Callable[[Row, str], Problem], row: Row, where: str) -> Problem:
    try:
        return make(row, where)
    except TestsError as error:
        raise DataError(f"{where}: {error}") from None
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise DataError(f"{where} has another format ({type(error).__name__}: {error}); correct the row") from None


def _problems(
    task: str,
    split: Split,
    count: int,
    seed: int,
    *,
    path: str | None = None,
    since: str | None = None,
    until: str | None = None,
) -> list[Problem]:
    """Load rows from a file or Hub dataset `path`, call `_read`, and choose at most `count` problems by `seed`."""
    found = _read(
        task,
        load_records(path or _FORMATS[task][2], "train" if split == "train" else "test"),
        split,
        since=since,
        until=until,
    )
    return shuffled(found, f"{task}/{split}/{seed}")[:count]


_FORMATS: dict[str, tuple[Callable[[Row, str], Problem], str, str]] = {
    "livecodebench": (_livecodebench, "contest_date", "livecodebench/code_generation_lite"),
    "codeforces": (_codeforces, "contest_start", "open-r1/codeforces"),
}
"""By task: the function that converts a row to a problem, the column with its date, and the Hub dataset."""


def _task(name: str) -> Task:
    check = checked_options(name)
    return Task(
        name,
        "code_tests",
        check(partial(_problems, name)),
        read=check(partial(_read, name)),
        summary="problems of programming contests, with hidden tests",
    )


LIVECODEBENCH, CODEFORCES = _task("livecodebench"), _task("codeforces")
