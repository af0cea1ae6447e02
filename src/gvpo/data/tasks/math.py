"""MATH: competition problems with levels 1 to 5, of which 3 to 5 are the usual ones to train on.

Rows are {"problem", "answer" or "solution", "level", "subject" or "type"}, and "split" where a file holds both: rows
whose split is "train" are for training, others are held out. So the data set's own files, its copies on the hub and
collections of some levels are read alike.

Reference: Hendrycks et al., Measuring Mathematical Problem Solving With the MATH Dataset (arXiv:2103.03874).
"""

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gvpo.data.normalize import words
from gvpo.data.readers import kind_of
from gvpo.data.records import load_records
from gvpo.data.tasks.base import Split, Task, check_split, checked_options, chosen
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
    """Different problems of the training or the test set.

    Args:
        split: "train", or "eval" for the test set.
        count: how many at most; a random choice where there are more.
        seed: of that choice and of the order.
        path: a file with the rows, or a hub id; default a copy of the whole data set.
        levels: of difficulty, 1 to 5.
        subjects: of `SUBJECTS`; default all.
        whole: train on the test set's rows too, as is done where MATH-500 is held out; then there is no eval split.
        instruction: what is added after each problem.

    Returns:
        Problems with the columns `answer` (LaTeX), `level` and `subject`.

    Raises:
        ConfigError: an option that cannot be, or the eval split with `whole`.
        DataError: the data cannot be read, or a row is not one of MATH's.
    """
    check_split("math", split)
    if whole and split == "eval":
        raise ConfigError("the task 'math' with whole=true trains on every row; set data.eval, or data.eval_problems=0")
    found = read(_rows(path), split, levels=levels, subjects=subjects, whole=whole, instruction=instruction)
    random.Random(f"math/{split}/{seed}").shuffle(found)
    return found[:count]


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
    """Those of the given rows that belong to a split, in their order.

    A problem that stands twice, by its words, is taken once; one that stands in both splits is for training. Rows with
    neither an answer nor a box in their solution are left out: no completion of theirs could be judged.

    Args:
        rows: rows of MATH; where they name no split, all belong to the one that is asked for.
        split: which rows.
        levels: as for problems.
        subjects: as for problems.
        whole: rows of every split are for training.
        instruction: as for problems.

    Raises:
        ConfigError: an option that cannot be.
        DataError: a row is not one of MATH's; rows are counted from 1.
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
    """A row's answer: the column, or the last box of its solution; None if it has neither."""
    answer = row.get("answer")
    solution = _BARE_BOX.sub(r"\\boxed{\1}", str(row.get("solution", "")).replace("\\fbox{", "\\boxed{"))
    return str(answer) if answer not in (None, "") else last_boxed(solution)


def _rows(path: str | None) -> list[dict[str, Any]]:
    """All rows, those of a data set on the hub with their split."""
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


MATH = Task("math", "math_answer", problems, read=read)
