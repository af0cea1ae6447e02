"""MATH: competition problems with levels 1 to 5, of which 3 to 5 are commonly used for training.

Rows are {"problem", "answer" or "solution", "level", "subject" or "type"}, and "split" if a file contains both splits:
rows whose split is "train" are for training, others are held out. The original files, the copies on the Hub and
collections of some levels all have this form.

Reference: Hendrycks et al., Measuring Mathematical Problem Solving With the MATH Dataset (arXiv:2103.03874).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gvpo.data.normalize import words
from gvpo.data.readers import kind_of
from gvpo.data.records import load_records
from gvpo.data.tasks.base import Split, Task, check_split, checked_options, chosen, shuffled
from gvpo.data.tasks.generated import INSTRUCTION
from gvpo.errors import ConfigError, DataError
from gvpo.rewards.verifiers.boxed import last_boxed
from gvpo.types import Problem

HUB_ID = "DigitalLearningGmbH/MATH-lighteval"
SUBJECTS = (
    "Algebra",
    "Counting & Probability",
    "Geometry",
    "Intermediate Algebra",
    "Number Theory",
    "Prealgebra",
    "Precalculus",
)
LEVELS = (1, 2, 3, 4, 5)
_LEVEL = re.compile(r"(?:Level )?([1-5])")
_BARE_BOX = re.compile(r"\\boxed\s+([^\s${}.,]+)")


@checked_options("math")
def problems(
    split: Split,
    count: int,
    seed: int,
    *,
    path: str | None = None,
    levels: Sequence[int] = (3, 4, 5),
    subjects: Sequence[str] | None = None,
    whole: bool = False,
    instruction: str = INSTRUCTION,
) -> list[Problem]:
    """Load different problems of the training or the test set.

    Args:
        split: "train", or "eval" for the test set.
        count: Maximum number of problems; chosen at random if there are more.
        seed: Random seed of the choice and the order.
        path: A file with the rows, or a Hub dataset ID; default: a copy of the whole dataset.
        levels: Levels of difficulty, 1 to 5.
        subjects: Subjects from `SUBJECTS`; default: all.
        whole: Train on the test set's rows too, as is usual if MATH-500 is held out; there is no eval split then.
        instruction: Text after each problem.

    Returns:
        Problems with the columns `answer` (LaTeX), `level` and `subject`.

    Raises:
        ConfigError: If an option is invalid, or the eval split is requested with `whole`.
        DataError: If the data cannot be read, or a row does not have MATH's form.
    """
    check_split("math", split)
    if whole and split == "eval":
        raise ConfigError("the task 'math' with whole=true trains on every row; set data.eval, or data.eval_problems=0")
    found = read(_rows(path), split, levels=levels, subjects=subjects, whole=whole, instruction=instruction)
    return shuffled(found, f"math/{split}/{seed}")[:count]


@checked_options("math")
def read(
    rows: Iterable[Mapping[str, Any]],
    split: Split,
    *,
    levels: Sequence[int] = (3, 4, 5),
    subjects: Sequence[str] | None = None,
    whole: bool = False,
    instruction: str = INSTRUCTION,
) -> list[Problem]:
    """Convert the given rows of a split to problems, in their order.

    A problem that occurs twice, by its words, is used once; a problem that occurs in both splits is for training. Rows
    with neither an answer nor a box in their solution are skipped, because their completions could not be scored.

    Args:
        rows: Rows of MATH; rows that name no split belong to `split`.
        split: Split of the problems to return.
        levels: Levels of difficulty, 1 to 5.
        subjects: Subjects from `SUBJECTS`; default: all.
        whole: Use rows of every split for training.
        instruction: Text after each problem.

    Raises:
        ConfigError: If an option is invalid.
        DataError: If a row does not have MATH's form; rows are counted from 1.
    """
    check_split("math", split)
    of_levels = chosen("math", "levels", levels, LEVELS)
    of_subjects = None if subjects is None else chosen("math", "subjects", subjects, SUBJECTS)
    numbered = [(number, row, _split(row, split, whole)) for number, row in enumerate(rows, start=1)]
    found: dict[tuple[str, ...], tuple[Split, Problem]] = {}
    for number, row, belongs in sorted(numbered, key=lambda each: each[2] == "eval"):
        problem = _problem(row, f"math/{number}", instruction)
        answer, level, subject = problem.columns.values()
        if answer is not None and level in of_levels and (of_subjects is None or subject in of_subjects):
            found.setdefault(words(row["problem"]), (belongs, problem))
    return [problem for belongs, problem in found.values() if belongs == split]


def answer_of(row: Mapping[str, Any]) -> str | None:
    """Return a row's answer column, or else the last box of its solution; None if it has neither."""
    answer = row.get("answer")
    solution = _BARE_BOX.sub(r"\\boxed{\1}", str(row.get("solution", "")).replace("\\fbox{", "\\boxed{"))
    return str(answer) if answer not in (None, "") else last_boxed(solution)


def _rows(path: str | None) -> list[dict[str, Any]]:
    """Load all rows; rows from the Hub also name their split."""
    if path is not None and kind_of(path) is not None:
        return load_records(path)
    return [{**row, "split": name} for name in ("train", "test") for row in load_records(path or HUB_ID, name)]


def _split(row: Mapping[str, Any], asked: Split, whole: bool) -> Split:
    named = row.get("split")
    if named is None:
        return asked
    return "train" if whole or named == "train" else "eval"


def _problem(row: Mapping[str, Any], name: str, instruction: str) -> Problem:
    level = _LEVEL.fullmatch(str(row.get("level", "")))
    if not isinstance(row.get("problem"), str) or not row["problem"].strip():
        raise DataError(f"{name} has no `problem`; MATH's rows have `problem`, `level`, and `answer` or `solution`")
    columns = {
        "answer": answer_of(row),
        "level": int(level[1]) if level else None,
        "subject": row.get("subject", row.get("type")),
    }
    return Problem(f"{row['problem']}{instruction}", name, columns)


MATH = Task("math", "math_answer", problems, read=read, summary="competition problems with levels 1 to 5")
