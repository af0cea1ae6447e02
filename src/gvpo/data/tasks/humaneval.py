"""HumanEval: 164 Python functions to complete from their signature and docstring; a benchmark without training data.

Rows are {"task_id", "prompt", "entry_point", "canonical_solution", "test"}. A completion may continue the prompt or
write the whole function again; the prompt's definitions and imports are available in both cases.

Reference: Chen et al., Evaluating Large Language Models Trained on Code (arXiv:2107.03374).
"""

from collections.abc import Iterable, Mapping
from typing import Any

from gvpo.data.records import load_records
from gvpo.data.tasks.base import Split, Task, check_split, checked_options, shuffled
from gvpo.errors import DataError
from gvpo.types import Problem

HUB_ID = "openai/openai_humaneval"
_COLUMNS = ("task_id", "prompt", "entry_point", "canonical_solution", "test")


@checked_options("humaneval")
def problems(split: Split, count: int, seed: int, *, path: str | None = None, instruction: str = "") -> list[Problem]:
    """Load problems of the benchmark.

    Args:
        split: "eval".
        count: Maximum number of problems; chosen at random if there are more.
        seed: Random seed of the choice and the order.
        path: A file with the rows, or a Hub dataset ID; default: the original dataset.
        instruction: Text before each prompt, for chat models.

    Returns:
        Problems with the columns of `code_tests`, and `solution`.

    Raises:
        DataError: If the data cannot be read, a row does not have HumanEval's form, or the split is "train".
    """
    found = read(load_records(path or HUB_ID, "test"), split, instruction=instruction)
    return shuffled(found, f"humaneval/{split}/{seed}")[:count]


@checked_options("humaneval")
def read(rows: Iterable[Mapping[str, Any]], split: Split, *, instruction: str = "") -> list[Problem]:
    """Convert all given rows to problems, in their order.

    Args:
        rows: Rows of HumanEval.
        split: "eval".
        instruction: Text before each prompt.

    Raises:
        DataError: If a row does not have HumanEval's form, or the split is "train"; rows are counted from 1.
    """
    check_split("humaneval", split)
    if split == "train":
        raise DataError("HumanEval has no training problems; train on another task, such as mbpp")
    return [_problem(row, number, instruction) for number, row in enumerate(rows, start=1)]


def _problem(row: Mapping[str, Any], number: int, instruction: str) -> Problem:
    for column in _COLUMNS:
        if not isinstance(row.get(column), str):
            raise DataError(f"row {number} has no {column!r}; HumanEval's rows have {', '.join(_COLUMNS)}")
    prompt, name = row["prompt"], row["entry_point"]
    columns = {
        "tests": f"{row['test']}\ncheck({name})\n",
        "entry_point": name,
        "setup": prompt,  # some tests use the helpers that it defines
        "prefix": prompt,
        "solution": row["canonical_solution"],
    }
    return Problem(f"{instruction}{prompt}", row["task_id"], columns)


HUMANEVAL = Task("humaneval", "code_tests", problems, read=read, summary="164 functions to complete; only held out")
