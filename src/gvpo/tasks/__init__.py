"""What is asked: built-in tasks by name, and rows of any data set as problems."""

from gvpo.tasks.addition import ADDITION
from gvpo.tasks.arithmetic import ARITHMETIC
from gvpo.tasks.base import Split, Task
from gvpo.tasks.countdown import COUNTDOWN
from gvpo.tasks.gsm8k import GSM8K
from gvpo.tasks.humaneval import HUMANEVAL
from gvpo.tasks.math import MATH
from gvpo.tasks.mbpp import MBPP
from gvpo.tasks.preferences import as_group, is_comparison, is_pair, per_completion, with_prompt
from gvpo.tasks.programs import CODEFORCES, LIVECODEBENCH
from gvpo.tasks.records import load_records, problems_from_records, require_file
from gvpo.tasks.tables import is_data_set, rows_of
from gvpo.tasks.word_problems import WORD_PROBLEMS

_ALL = (
    ADDITION,
    ARITHMETIC,
    CODEFORCES,
    COUNTDOWN,
    GSM8K,
    HUMANEVAL,
    LIVECODEBENCH,
    MATH,
    MBPP,
    WORD_PROBLEMS,
)
TASKS: dict[str, Task] = {task.name: task for task in _ALL}
"""The built-in tasks."""

__all__ = [
    "TASKS",
    "Split",
    "Task",
    "as_group",
    "is_comparison",
    "is_data_set",
    "is_pair",
    "load_records",
    "per_completion",
    "problems_from_records",
    "require_file",
    "rows_of",
    "with_prompt",
]
