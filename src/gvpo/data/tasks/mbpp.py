"""MBPP: short Python functions, each with three assertions.

Rows are {"task_id", "text", "code", "test_list", "test_setup_code"}, as in the original file and in the copy on the
Hub. Task IDs 11 to 510 are the test set and 511 to 974 are for training (including 511 to 600 for validation). IDs 1 to
10 are for few-shot prompts and in neither split here.

Reference: Austin et al., Program Synthesis with Large Language Models (arXiv:2108.07732).
"""

import ast
from collections.abc import Iterable, Mapping
from typing import Any

from gvpo.data.records import load_records
from gvpo.data.tasks.base import Split, Task, check_split, checked_options, shuffled
from gvpo.errors import DataError
from gvpo.rewards.code.forms import parse_quietly
from gvpo.types import Problem

HUB_ID = "google-research-datasets/mbpp:full"
INSTRUCTION = "\nWrite the whole solution in one Python code block."
_IDS = {"eval": range(11, 511), "train": range(511, 975)}
_HUB_SPLITS = {"eval": ("test",), "train": ("train", "validation")}


@checked_options("mbpp")
def problems(
    split: Split, count: int, seed: int, *, path: str | None = None, shown: int = 3, instruction: str = INSTRUCTION
) -> list[Problem]:
    """Load problems of the training or the test set.

    Args:
        split: "train", or "eval" for the test set.
        count: Maximum number of problems; chosen at random if there are more.
        seed: Random seed of the choice and the order.
        path: A file with all rows, or a Hub dataset ID; default: the original dataset.
        shown: Number of assertions in the prompt, starting with the first; they also show the function's name.
        instruction: Text after each task.

    Returns:
        Problems with the columns of `code_tests`, and `solution`.

    Raises:
        DataError: If the data cannot be read, or a row does not have MBPP's form.
    """
    check_split("mbpp", split)
    rows = load_records(path) if path else [row for each in _HUB_SPLITS[split] for row in load_records(HUB_ID, each)]
    found = read(rows, split, shown=shown, instruction=instruction)
    return shuffled(found, f"mbpp/{split}/{seed}")[:count]


@checked_options("mbpp")
def read(
    rows: Iterable[Mapping[str, Any]], split: Split, *, shown: int = 3, instruction: str = INSTRUCTION
) -> list[Problem]:
    """Convert the given rows of a split to problems, in their order.

    Args:
        rows: Rows of MBPP.
        split: Split of the problems to return; the task IDs determine the split.
        shown: Number of assertions in the prompt.
        instruction: Text after each task.

    Raises:
        DataError: If a row does not have MBPP's form; rows are counted from 1.
    """
    check_split("mbpp", split)
    checked = [_checked(row, number) for number, row in enumerate(rows, start=1)]
    return [_problem(row, shown, instruction) for row in checked if row["task_id"] in _IDS[split]]


def _checked(row: Mapping[str, Any], number: int) -> Mapping[str, Any]:
    for column, kind in (("task_id", int), ("text", str), ("code", str), ("test_list", list)):
        if not isinstance(row.get(column), kind):
            raise DataError(f"row {number} has no {column!r}; MBPP's rows have task_id, text, code and test_list")
    return row


def _problem(row: Mapping[str, Any], shown: int, instruction: str) -> Problem:
    tests, given = list(row["test_list"]), row.get("test_setup_code") or ""
    examples = "\n".join(tests[:shown])
    prompt = f"{row['text']}\nIt has to pass:\n{examples}{instruction}" if examples else f"{row['text']}{instruction}"
    names, imports = _interface(row["code"], "\n".join([given, *tests]), f"mbpp/{row['task_id']}")
    columns = {"tests": tests, "entry_point": names, "setup": f"{imports}\n{given}", "solution": row["code"]}
    return Problem(prompt, f"mbpp/{row['task_id']}", columns)


def _interface(solution: str, tests: str, name: str) -> tuple[list[str], str]:
    """Return the solution's definitions that the tests use, which a completion must define too, and its imports."""
    try:
        body, nodes = parse_quietly(solution).body, list(ast.walk(parse_quietly(tests)))
    except SyntaxError as error:
        raise DataError(f"{name} is not Python: {error}; correct its code or its tests") from None
    used = {node.id for node in nodes if isinstance(node, ast.Name)}
    defined = [node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    imports = [ast.unparse(node) for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
    return [each for each in dict.fromkeys(defined) if each in used], "\n".join(imports)


MBPP = Task("mbpp", "code_tests", problems, read=read, summary="short Python functions with three assertions")
