"""Countdown: find an expression that uses each given number once and equals a target. Every problem has a solution.

Problems are generated backwards: random numbers are combined two at a time until one is left, which is the target. Sets
of numbers are held out, regardless of their targets.

Rows of other sources are {"numbers" (or "nums"), "target"}, as in `Jiayi-Pan/Countdown-Tasks-3to4` on the Hub.
"""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gvpo.data.tasks.base import Split, Task, check_split, checked_options, different, split_of
from gvpo.errors import ConfigError, DataError
from gvpo.types import Problem

PROMPT = (
    "Using the numbers {numbers}, write an expression that equals {target}. Use +, -, * and /, brackets, and each "
    "number exactly once.\nReason step by step, and put the expression in \\boxed{{}}."
)
MOST = 8
"""Maximum number of numbers in a problem."""


@dataclass(frozen=True)
class _Part:
    """A part of an expression: its value, its text, and its outermost operator ("" for a number)."""

    value: int
    text: str
    sign: str = ""


@checked_options("countdown")
def problems(
    split: Split,
    count: int,
    seed: int,
    *,
    sizes: Sequence[int] = (3, 4),
    largest: int = 99,
    target: int = 100,
    signs: str = "+-*/",
    prompt: str = PROMPT,
) -> list[Problem]:
    """Generate different problems, each of which can be solved with whole numbers.

    Args:
        split: "train" or "eval".
        count: Number of problems; fewer are returned if no more exist.
        seed: Random seed of the choice and the order.
        sizes: Possible counts of numbers per problem, 2 to 8 each.
        largest: Largest number in a problem.
        target: Largest target.
        signs: Operators of the solutions, from + - * /; at least one of + and *.
        prompt: The question, with the placeholders {numbers} ("3, 7, 25") and {target}.

    Returns:
        Problems with the columns `numbers`, `target`, `solution` ("3*7+25") and `steps` (["3*7=21", "21+25=46"]).

    Raises:
        ConfigError: If an option is invalid.
    """
    check_split("countdown", split)
    _check(sizes, largest, target, signs)
    drawn = _draws(random.Random(f"countdown/{split}/{seed}"), split, sizes, largest, target, signs)
    return different((_problem(*each, prompt) for each in drawn), count)


@checked_options("countdown")
def demonstrations(
    count: int,
    seed: int,
    *,
    sizes: Sequence[int] = (3, 4),
    largest: int = 99,
    target: int = 100,
    signs: str = "+-*/",
    prompt: str = PROMPT,
    miss: float = 0.0,
) -> list[tuple[Problem, str]]:
    """Generate training problems with worked solutions, some of which miss the target.

    Args:
        count: Number of demonstrations; problems may repeat.
        seed: Random seed of the problems and of the solutions that miss.
        sizes: See `problems`.
        largest: See `problems`.
        target: See `problems`.
        signs: See `problems`.
        prompt: See `problems`.
        miss: Probability that the numbers are combined at random, regardless of the target.

    Raises:
        ConfigError: If an option is invalid.
    """
    _check(sizes, largest, target, signs)
    if not 0 <= miss <= 1:
        raise ConfigError(f"the task 'countdown' needs miss between 0 and 1, not {miss}")
    rng = random.Random(f"countdown/demonstrations/{seed}")
    drawn = _draws(rng, "train", sizes, largest, target, signs)
    shown = []
    for numbers, solution, steps in (next(drawn) for _ in range(count)):
        worked = _put_together(rng, numbers, signs) if rng.random() < miss else (solution, steps)
        shown.append((_problem(numbers, solution, steps, prompt), written(worked[0].text, worked[1])))
    return shown


@checked_options("countdown")
def read(rows: Iterable[Mapping[str, Any]], split: Split, *, prompt: str = PROMPT) -> list[Problem]:
    """Convert the given rows of a split to problems, in their order; sets of numbers are held out.

    Args:
        rows: Rows with {"numbers" or "nums", "target"}.
        split: Split of the problems to return.
        prompt: See `problems`.

    Raises:
        DataError: If a row has no numbers or no target; rows are counted from 1.
    """
    check_split("countdown", split)
    found = []
    for number, row in enumerate(rows, start=1):
        numbers, target = row.get("numbers", row.get("nums")), row.get("target")
        whole = isinstance(numbers, list) and all(isinstance(each, int) for each in numbers)
        if not whole or not isinstance(target, int):
            raise DataError(
                f"row {number} is not of countdown; its rows have `numbers`, a list, and `target`, a number"
            )
        if _split(numbers) == split:
            columns = {"numbers": numbers, "target": target}
            found.append(Problem(_prompt(prompt, numbers, target), f"countdown/row-{number}", columns))
    return found


def written(solution: str, steps: Sequence[str]) -> str:
    """Return a worked solution: its steps, one per line, then the expression in a box."""
    return "\n".join([*steps, f"\\boxed{{{solution}}}"])


def _draws(
    rng: random.Random, split: Split, sizes: Sequence[int], largest: int, most: int, signs: str
) -> Iterator[tuple[list[int], _Part, list[str]]]:
    """Yield numbers of a split with an expression of them whose result is from 1 to `most`, without end."""
    while True:
        numbers = [rng.randint(1, largest) for _ in range(rng.choice(sizes))]
        if _split(numbers) != split:
            continue
        whole, steps = _put_together(rng, numbers, signs)
        if 1 <= whole.value <= most:
            yield numbers, whole, steps


def _put_together(rng: random.Random, numbers: Sequence[int], signs: str) -> tuple[_Part, list[str]]:
    """Combine two parts at a time until one is left; every intermediate value is a whole number above 0."""
    parts = [_Part(number, str(number)) for number in numbers]
    steps = []
    while len(parts) > 1:
        left, right = (parts.pop(rng.randrange(len(parts))) for _ in range(2))
        sign = rng.choice([sign for sign in signs if _fits(left.value, sign, right.value)])
        whole = _joined(left, sign, right)
        steps.append(f"{left.value}{sign}{right.value}={whole.value}")
        parts.append(whole)
    return parts[0], steps


def _fits(left: int, sign: str, right: int) -> bool:
    """Return whether the result is a whole number above 0; a sum and a product always are."""
    return sign in "+*" or (left > right if sign == "-" else left % right == 0)


def _joined(left: _Part, sign: str, right: _Part) -> _Part:
    """Join two parts with an operator, in brackets if they need them."""
    results = {"+": left.value + right.value, "-": left.value - right.value, "*": left.value * right.value}
    value = results[sign] if sign in results else left.value // right.value
    first = f"({left.text})" if sign in "*/" and left.sign in ("+", "-") else left.text
    bare = (
        right.sign == "" or sign == "+" or (sign == "*" and right.sign == "*") or (sign == "-" and right.sign in "*/")
    )
    return _Part(value, f"{first}{sign}{right.text if bare else f'({right.text})'}", sign)


def _problem(numbers: Sequence[int], solution: _Part, steps: Sequence[str], prompt: str) -> Problem:
    columns = {"numbers": list(numbers), "target": solution.value, "solution": solution.text, "steps": list(steps)}
    name = f"countdown/{'-'.join(map(str, numbers))}={solution.value}"
    return Problem(_prompt(prompt, numbers, solution.value), name, columns)


def _prompt(template: str, numbers: Sequence[int], target: int) -> str:
    try:
        text = template.format(numbers=", ".join(map(str, numbers)), target=target)
    except (KeyError, IndexError, ValueError) as error:
        raise ConfigError(
            f"the prompt of the task 'countdown' cannot be filled in: {error!r}; double other braces"
        ) from None
    return text


def _split(numbers: Sequence[int]) -> Split:
    """Return the split of a set of numbers, in any order."""
    return split_of(",".join(map(str, sorted(numbers))))


def _check(sizes: Sequence[int], largest: int, target: int, signs: str) -> None:
    whole = [*sizes, largest, target] if isinstance(sizes, list | tuple) and sizes else [None]
    if not all(type(number) is int and number >= 1 for number in whole):
        raise ConfigError("the task 'countdown' needs sizes as a list, and largest and target as whole numbers above 0")
    if not all(2 <= size <= MOST for size in sizes):
        raise ConfigError(f"the task 'countdown' needs sizes from 2 to {MOST}, not {list(sizes)}")
    if not signs or set(signs) - set("+-*/") or not set(signs) & set("+*"):
        raise ConfigError(f"the task 'countdown' needs signs of + - * /, + or * among them, not {signs!r}")


COUNTDOWN = Task(
    "countdown", "countdown", problems, demonstrations, read, "generated or read: reach a target with given numbers"
)
