r"""Mathematical answers: is the last box of a completion equal to the reference answer?

The comparison (values.py) computes with mpmath, the extra `math`, and bounds its own work. If an answer still takes
long, no other row loses its verdict: every answer is a separate call to a worker process with a deadline. Inside a
`RewardPool` that is one of the pool's workers, elsewhere a worker of a small pool that this module keeps.
"""

import functools
import importlib.util
import os
import re
import threading
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from gvpo.errors import RewardError
from gvpo.rewards.base import Answer, RewardBatch, completion_text
from gvpo.rewards.math import python_numbers, values
from gvpo.rewards.math import text as mathtext
from gvpo.rewards.math.evaluate import NoValue, value
from gvpo.rewards.math.parse import parsed, symbols
from gvpo.rewards.math.relations import assignment
from gvpo.rewards.math.spelling import spelled
from gvpo.rewards.pool.pool import RewardPool
from gvpo.rewards.verifiers.boxed import has_box, last_answer
from gvpo.rewards.verifiers.number import parse_number
from gvpo.workers.process import in_worker
from gvpo.workers.reasons import no_value

DEADLINE = 5.0
"""Maximum number of seconds per answer outside a pool of the caller, which has its own deadline."""
MAX_GOLD = 4000
"""Maximum number of characters of a reference answer; those of public datasets have at most 210."""
_ANSWER_IS = re.compile(r"\banswer\s*(?:is|=|:)\s*:?", re.IGNORECASE)
_AT_THE_END = re.compile(r"(?:\.\s.*|[\s.*]*)$")
_lock = threading.Lock()


def math_answer(
    completions: Sequence[Answer], answer: Sequence[Any], error: Sequence[Any] | None = None, **columns: Any
) -> list[float | None]:
    r"""Return 1 if the completion's answer is the same mathematical object as `answer`, else 0.

    A completion's answer is the content of its last \boxed{...}; without a box, the rest of the line after the last
    "answer is" or "answer:". `docs/reference/reward-functions.md` has the convention for every family of answers.

    Args:
        completions: k completions.
        answer: k answers: LaTeX, Python-like numbers, numbers, a list of them, a solution that ends in a box or in
            GSM8K's `#### n`; None abstains.
        error: k tolerances, the allowed difference of two numbers (OlympiadBench's column of this name), or None.
        columns: Not used.

    Returns:
        k values: 1.0, 0.0, or None. None has a reason (`no_value`) if `answer` is empty, has more than `MAX_GOLD`
        characters, or is a calculation whose result is too large. Outside a pool it is also the value of an answer that
        takes longer than `DEADLINE`.

    Raises:
        RewardError: If the extra `math` is not installed.
        ValueError: If a tolerance is not a number.
    """
    tolerances = [_tolerance(value) for value in ([None] * len(completions) if error is None else error)]
    if not in_worker():
        return _in_own_pool(completions, answer, error)
    rows = enumerate(zip(completions, answer, tolerances, strict=True))
    return [None if gold is None else _judged(row, text, gold_text(gold), error) for row, (text, gold, error) in rows]


def _judged(row: int, completion: Answer, gold: str, tolerance: Fraction | None) -> float | None:
    fault = _fault(gold)
    if fault:
        no_value(row, fault)
        return None
    written = final_answer(completion_text(completion))
    return float(written is not None and values.same_answer(gold, written, tolerance))


@functools.lru_cache(maxsize=4096)
def _fault(gold: str) -> str:
    """Return why no completion can match a reference answer; "" if one can."""
    if not gold.strip("$ \n"):
        return "the answer is empty; fill it in, or remove the row"
    if len(gold) > MAX_GOLD:
        return f"the answer has {len(gold)} characters, and at most {MAX_GOLD} are read; put the final answer in a box"
    if _has_no_value(gold):
        return f"the answer {gold[:60]!r} has no value, or one that is too large to compute; correct it"
    return ""


def _has_no_value(gold: str) -> bool:
    """Return whether a reference answer is a calculation whose result cannot be computed, such as 9^{9^{9^9}}."""
    _, text = assignment(mathtext.unwrapped(spelled(gold)))
    if ":" in text:  # a time or a ratio, which has no value if a part is 0
        return False
    tree = parsed(python_numbers.as_latex(text) or text)
    if tree is None or symbols(tree):
        return False
    try:
        value(tree)
    except NoValue:
        return True
    return False


def _require_installed() -> None:
    if importlib.util.find_spec("mpmath") is None:
        raise RewardError("the reward math_answer needs mpmath; pip install 'gvpo[math]'")


def prepare() -> None:
    """Prepare a worker, once before its first call.

    Raises:
        RewardError: If the extra `math` is not installed.
    """
    _require_installed()
    values.prepare()


math_answer.check_ready = _require_installed  # type: ignore[attr-defined]
math_answer.prepare = prepare  # type: ignore[attr-defined]
math_answer.row_by_row = True  # type: ignore[attr-defined]


def gold_text(answer: Any) -> str:
    r"""Return a reference answer without its surroundings: \boxed{...}, a solution, `####`, a list."""
    if isinstance(answer, list | tuple):
        return ", ".join(gold_text(each) for each in answer)
    text = str(answer)
    if "####" in text:
        return text.rpartition("####")[2].strip()
    boxed = last_answer(text)
    return text if boxed is None else boxed


def final_answer(text: str) -> str | None:
    r"""Return a completion's answer: its last boxes, or else the text after the last "answer is"; None without both."""
    boxed = last_answer(text)
    if boxed is not None or has_box(text):
        return boxed
    stated = None
    for stated in _ANSWER_IS.finditer(text):  # noqa: B007 - only the last match is needed
        pass
    if stated is None:
        return None
    line = text[stated.end() :].strip(" *:\n").partition("\n")[0]
    return _AT_THE_END.sub("", line).strip(" *")


def _tolerance(value: Any) -> Fraction | None:
    if value is None or value == "":
        return None
    number = parse_number(str(value))
    if number is None:
        raise ValueError(f"the error {str(value)[:80]!r} is not a number; clean the column, or leave it empty")
    return number


def _in_own_pool(
    completions: Sequence[Answer], answer: Sequence[Any], error: Sequence[Any] | None
) -> list[float | None]:
    _require_installed()
    errors = [None] * len(completions) if error is None else error
    rows = zip(completions, answer, errors, strict=True)
    batches = [RewardBatch("", [written], {"answer": gold, "error": most}) for written, gold, most in rows]
    with _lock:
        judged = _own_pool(os.getpid()).score(batches)
    return [verdict.reward for (verdict,) in judged]


@functools.lru_cache(maxsize=1)
def _own_pool(process: int) -> RewardPool:
    """Return the pool of this process; a fork creates its own pool."""
    return RewardPool({"math_answer": math_answer}, timeout=DEADLINE)
