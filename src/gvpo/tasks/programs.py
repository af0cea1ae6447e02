"""Problems of programming contests in the record formats of LiveCodeBench and of open-r1's CodeForces set.

LiveCodeBench: `question_content`, `starter_code`, `contest_date`, `public_test_cases` and `private_test_cases` (JSON
lists of {"input", "output", "testtype"}; private ones may be JSON in a pickle in zlib in base64), `metadata` (JSON with
`func_name`). CodeForces: `description`, `input_format`, `output_format`, `note`, `examples`, `official_tests`,
`generated_checker` (Python), `contest_start` (seconds since 1970).

References: Jain et al., LiveCodeBench (arXiv:2403.07974) and its repository's lcb_runner/benchmarks/code_generation.py;
the data card of open-r1/codeforces.
"""

import base64
import io
import json
import pickle
import random
import zlib
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, date, datetime
from functools import partial
from typing import Any, NoReturn

from gvpo.errors import ConfigError, DataError
from gvpo.tasks.base import Split, Task, check_split, checked_options
from gvpo.tasks.records import load_records
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
"""What starter code takes for granted."""
# The benchmark does not tell tuples from lists, as its right answers are JSON.
_LISTED = """\
def listed(value):
    return [listed(item) for item in value] if isinstance(value, (list, tuple)) else value
"""


def _window(since: str | None, until: str | None) -> Callable[[date], bool]:
    """Whether a day is in a window, both ends included."""
    try:
        first = date.fromisoformat(since) if since else date.min
        last = date.fromisoformat(until) if until else date.max
    except ValueError as error:
        raise ConfigError(f"since and until are days such as 2024-08-01: {error}") from None
    return lambda day: first <= day <= last


def _day(value: Any, where: str) -> date:
    """A date, a date and time, text that begins with one in ISO form, or seconds since 1970."""
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
    if not name:
        runs = [{"input": test["input"], "output": test["output"]} for test in tests]
        return Problem(f"{content}{PROGRAM}", identity, {"tests": runs, "checker": "tokens"})
    columns = {
        "tests": [_assertion(name, test) for test in tests],
        "entry_point": f"Solution.{name}" if "class Solution" in starter else name,
        "setup": _LISTED,
        "prefix": _IMPORTS,
    }
    return Problem(f"{content}{FUNCTION}{starter}", identity, columns)


def _assertion(name: str, test: Row) -> str:
    """A test of a function as Python: each line of its input is an argument in JSON."""
    arguments = ", ".join(repr(json.loads(line)) for line in test["input"].splitlines() if line.strip())
    return f"assert listed({name}({arguments})) == {json.loads(test['output'])!r}"


def _cases(text: Any, where: str) -> list[dict[str, Any]]:
    """Test cases from JSON, or from JSON that was packed."""
    try:
        try:
            cases = json.loads(text)
        except json.JSONDecodeError:
            packed = zlib.decompress(base64.b64decode(text, validate=True))
            cases = json.loads(_TextOnly(io.BytesIO(packed)).load())
    except (ValueError, TypeError, zlib.error, pickle.UnpicklingError, EOFError) as error:
        raise DataError(f"{where} has test cases that cannot be read ({error}); get the row again") from None
    return list(cases)


class _TextOnly(pickle.Unpickler):
    """Unpickles text; a pickle from the internet may name any function to be called."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it would call {module}.{name}")


def _codeforces(row: Row, where: str) -> Problem:
    parts = [row.get("title"), _text(row, "description", where)]
    parts += [_section("Input", row.get("input_format")), _section("Output", row.get("output_format"))]
    parts += [_section("Note", row.get("note")), *map(_example, row.get("examples") or [])]
    tests = [{"input": test["input"], "output": test["output"]} for test in row.get("official_tests") or []]
    columns = {"tests": tests or None, "checker": row.get("generated_checker") or "tokens"}
    text = "\n\n".join(part for part in parts if part)
    return Problem(f"{text}{PROGRAM}", f"codeforces/{row.get('id', where)}", columns)


def _section(title: str, text: str | None) -> str:
    return f"{title}\n{text}" if text else ""


def _example(example: Row) -> str:
    return f"Example\nInput:\n{example['input']}\nOutput:\n{example['output']}"


def _read(
    task: str, rows: Iterable[Row], split: Split, *, since: str | None = None, until: str | None = None
) -> list[Problem]:
    """Rows of a window of days as problems, in their order.

    Args:
        task: a key of `_FORMATS`.
        rows: rows of that format.
        split: only checked; the rows, or the window of days, say what is held out.
        since: the first day, such as 2024-08-01; default no limit.
        until: the last day; default no limit.

    Raises:
        ConfigError: since or until is not a day.
        DataError: a row is not of the format; rows are counted from 1.
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
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise DataError(f"{where} is not of that format ({type(error).__name__}: {error}); correct the row") from None


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
    """As `_read`, from a file or hub id `path` (default the data set's own): at most `count`, chosen by `seed`."""
    found = _read(
        task,
        load_records(path or _FORMATS[task][2], "train" if split == "train" else "test"),
        split,
        since=since,
        until=until,
    )
    random.Random(f"{task}/{split}/{seed}").shuffle(found)
    return found[:count]


_FORMATS: dict[str, tuple[Callable[[Row, str], Problem], str, str]] = {
    "livecodebench": (_livecodebench, "contest_date", "livecodebench/code_generation_lite"),
    "codeforces": (_codeforces, "contest_start", "open-r1/codeforces"),
}
"""By task: how a row becomes a problem, the column with its date, and the data set on the hub."""


def _task(name: str) -> Task:
    check = checked_options(name)
    return Task(name, "code_tests", check(partial(_problems, name)), read=check(partial(_read, name)))


LIVECODEBENCH, CODEFORCES = _task("livecodebench"), _task("codeforces")
