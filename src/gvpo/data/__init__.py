"""Training data: built-in tasks by name, and rows of any dataset as problems."""

from gvpo.data.group_rows import GroupRow, WrittenCompletion, completion_text, group_record, read_groups, write_groups
from gvpo.data.preferences import as_group, is_comparison, is_pair, per_completion, with_prompt
from gvpo.data.records import load_records, numbered, problems_from_records, require_file
from gvpo.data.tables import is_data_set, rows_of
from gvpo.data.tasks.addition import ADDITION
from gvpo.data.tasks.arithmetic import ARITHMETIC
from gvpo.data.tasks.base import Split, Task, Written
from gvpo.data.tasks.calculator import CALCULATOR
from gvpo.data.tasks.countdown import COUNTDOWN
from gvpo.data.tasks.gsm8k import GSM8K
from gvpo.data.tasks.guess_number import GUESS_NUMBER
from gvpo.data.tasks.humaneval import HUMANEVAL
from gvpo.data.tasks.math import MATH
from gvpo.data.tasks.mbpp import MBPP
from gvpo.data.tasks.programs import CODEFORCES, LIVECODEBENCH
from gvpo.data.tasks.reasoning_gym import REASONING_GYM
from gvpo.data.tasks.word_problems import WORD_PROBLEMS

_ALL = (
    ADDITION,
    ARITHMETIC,
    CALCULATOR,
    CODEFORCES,
    COUNTDOWN,
    GSM8K,
    GUESS_NUMBER,
    HUMANEVAL,
    LIVECODEBENCH,
    MATH,
    MBPP,
    REASONING_GYM,
    WORD_PROBLEMS,
)
TASKS: dict[str, Task] = {task.name: task for task in _ALL}
"""The built-in tasks."""

__all__ = [
    "TASKS",
    "GroupRow",
    "Split",
    "Task",
    "Written",
    "WrittenCompletion",
    "as_group",
    "completion_text",
    "group_record",
    "is_comparison",
    "is_data_set",
    "is_pair",
    "load_records",
    "numbered",
    "per_completion",
    "problems_from_records",
    "read_groups",
    "require_file",
    "rows_of",
    "with_prompt",
    "write_groups",
]
