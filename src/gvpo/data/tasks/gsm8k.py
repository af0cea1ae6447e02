r"""GSM8K: grade-school word problems with worked solutions that end in `#### n`.

Rows are {"question", "answer"}, as in the original files and in the copy on the Hub.

Reference: Cobbe et al., Training Verifiers to Solve Math Word Problems (arXiv:2110.14168).
"""

import itertools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gvpo.data.records import load_records
from gvpo.data.tasks.base import Split, Task, check_split, checked_options, shuffled
from gvpo.errors import DataError
from gvpo.rewards.verifiers.gsm8k import MARKER, gold_answer
from gvpo.types import Problem

HUB_ID = "openai/gsm8k:main"
INSTRUCTION = "\nReason step by step, and write the final number after ####."
_FILES = {"train": "train.jsonl", "eval": "test.jsonl"}
_ANNOTATION = re.compile(r"<<[^<>]*>>")


@checked_options("gsm8k")
def problems(
    split: Split, count: int, seed: int, *, path: str | None = None, instruction: str = INSTRUCTION
) -> list[Problem]:
    """Load problems of the training or the test set.

    Args:
        split: "train", or "eval" for the test set.
        count: Maximum number of problems; chosen at random if there are more.
        seed: Random seed of the choice and the order.
        path: Directory with train.jsonl and test.jsonl, or a Hub dataset ID; default: the original dataset.
        instruction: Text after each question.

    Returns:
        Problems with the columns `answer` ("1234") and `solution` (the worked solution, unchanged).

    Raises:
        DataError: If the data cannot be read, or a row has no question or no number after `####`.
    """
    check_split("gsm8k", split)
    rows = shuffled(enumerate(_rows(path, split), start=1), f"gsm8k/{split}/{seed}")
    return [_problem(row, f"gsm8k/{split}/{number}", instruction) for number, row in rows[:count]]


@checked_options("gsm8k")
def read(rows: Iterable[Mapping[str, Any]], split: Split, *, instruction: str = INSTRUCTION) -> list[Problem]:
    """Convert all given rows to problems, in their order, for a copy of the dataset in a file or under another ID.

    Args:
        rows: Rows with {"question", "answer"}.
        split: Split of the rows, for the problem IDs.
        instruction: Text after each question.

    Raises:
        DataError: If a row has no question or no number after `####`; rows are counted from 1.
    """
    check_split("gsm8k", split)
    return [_problem(row, f"gsm8k/{split}/{number}", instruction) for number, row in enumerate(rows, start=1)]


@checked_options("gsm8k")
def demonstrations(
    count: int, seed: int, *, path: str | None = None, instruction: str = INSTRUCTION
) -> list[tuple[Problem, str]]:
    """Load training problems with their written solutions, without the calculator annotations (<<48/2=24>>).

    Args:
        count: Number of demonstrations; rows repeat from the first if there are fewer.
        seed: Random seed of the order.
        path: See `problems`.
        instruction: Text after each question.

    Raises:
        DataError: See `problems`.
    """
    different = problems("train", count, seed, path=path, instruction=instruction)
    chosen = itertools.islice(itertools.cycle(different), count)
    return [(problem, plain_solution(problem.columns["solution"])) for problem in chosen]


def plain_solution(solution: str) -> str:
    """Remove the calculator annotations from a solution."""
    return _ANNOTATION.sub("", solution)


def _rows(path: str | None, split: Split) -> list[dict[str, Any]]:
    if path is None or not Path(path).exists():
        return load_records(path or HUB_ID, "train" if split == "train" else "test")
    if not Path(path).is_dir():
        raise DataError(f"the task 'gsm8k' needs a directory with train.jsonl and test.jsonl, and {path} is a file")
    return load_records(Path(path) / _FILES[split])


def _problem(row: Mapping[str, Any], name: str, instruction: str) -> Problem:
    for column in ("question", "answer"):
        if not isinstance(row.get(column), str):
            raise DataError(f"{name} has no {column!r}; GSM8K's rows are a question and an answer")
    return Problem(f"{row['question']}{instruction}", name, {"answer": _gold(row, name), "solution": row["answer"]})


def _gold(row: Mapping[str, Any], name: str) -> str:
    if MARKER not in row["answer"]:
        raise DataError(f"{name} has no {MARKER} in its answer; GSM8K's answers end in '{MARKER} number'")
    try:
        return str(gold_answer(row["answer"]))
    except ValueError as error:
        raise DataError(f"{name}: {error}") from None


GSM8K = Task("gsm8k", "gsm8k", problems, demonstrations, read, "grade-school word problems, from the Hub or a file")
