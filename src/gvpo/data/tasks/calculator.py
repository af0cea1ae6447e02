"""Dialogues with a calculator: the answer to "4-2*7?" takes two calls of a tool, and a last line.

    4-2;   2|   2*7;   14|   =14.          calls and answers of the policy, and what `gvpo.environments` answers

Demonstrations make mistakes in most of their turns. A model that is warm-started on them can read, copy and use the
tool, and is usually wrong, so rewards have something to reinforce.
"""

import random
from collections.abc import Iterator

from gvpo.data.tasks.base import Split, Task, check_split, checked_options, different, split_of
from gvpo.environments.calculator import MODULUS, UNREADABLE, calls_of, result_of
from gvpo.errors import ConfigError
from gvpo.types import Problem

MAX_OPERATIONS = 20
LARGEST = 9
SIGNS = "+-*"


@checked_options("calculator")
def problems(split: Split, count: int, seed: int, *, operations: int = 2) -> list[Problem]:
    """Generate different expressions of digits from 1 to 9.

    An expression belongs to one split regardless of the seed.

    Args:
        split: "train" or "eval".
        count: Number of problems; fewer are returned if no more exist.
        seed: Random seed of the choice and the order.
        operations: Number of operations per expression.

    Returns:
        Problems with the columns `expression` ("4-2*7") and `answer` ("14").

    Raises:
        ConfigError: If an option is invalid.
    """
    check_split("calculator", split)
    _check(operations)
    drawn = _draws(random.Random(f"calculator/{split}/{operations}/{seed}"), split, operations)
    return different(map(_problem, drawn), count)


@checked_options("calculator")
def demonstrations(
    count: int, seed: int, *, operations: int = 2, mistakes: float = 0.5
) -> list[tuple[Problem, tuple[str, ...]]]:
    """Generate training problems with dialogues, many of which contain mistakes.

    Args:
        count: Number of demonstrations; problems may repeat.
        seed: Random seed of the problems and of the mistakes.
        operations: Number of operations per expression.
        mistakes: Probability of a mistake per turn.

    Returns:
        Problems with dialogues: turns of the policy and what it hears, alternately.

    Raises:
        ConfigError: If an option is invalid.
    """
    _check(operations)
    if isinstance(mistakes, bool) or not isinstance(mistakes, int | float) or not 0 <= mistakes <= 1:
        raise ConfigError(f"the task 'calculator' needs mistakes between 0 and 1, not {mistakes!r}")
    rng = random.Random(f"calculator/demonstrations/{operations}/{seed}")
    drawn = _draws(rng, "train", operations)
    return [(_problem(each), tuple(dialogue(rng, each, mistakes))) for each in (next(drawn) for _ in range(count))]


def dialogue(rng: random.Random, expression: str, mistakes: float) -> Iterator[str]:
    """Yield the turns of a dialogue and what the tool says between them.

    A wrong call is continued with its result, an early answer ends the dialogue, and an unreadable call is repeated;
    there is at most one. A mistake of the last turn is a wrong answer.

    Args:
        rng: Source of the mistakes.
        expression: Expression such as "4-2*7".
        mistakes: Probability of a mistake per turn.
    """
    value, operations = expression[0], [expression[place : place + 2] for place in range(1, len(expression), 2)]
    readable = False
    while operations:
        wrong = _wrong_turns(rng, value, *operations[0])
        said = f"{value}{operations[0]}" if rng.random() >= mistakes else rng.choice(wrong[readable:])
        if said.startswith("="):
            yield f"{said}."
            return
        result = result_of(said)
        yield f"{said};"
        yield UNREADABLE if result is None else f"{result}|"
        if result is None:
            readable = True
        else:
            value = str(result)
            del operations[0]
    yield f"={value if rng.random() >= mistakes else rng.randrange(MODULUS)}."


def _wrong_turns(rng: random.Random, value: str, sign: str, operand: str) -> list[str]:
    """Return an unreadable call, calls with another number or operator, and an early answer."""
    return [
        f"{value}{operand}{sign}",
        f"{rng.randrange(MODULUS)}{sign}{operand}",
        f"{value}{sign}{rng.randint(1, LARGEST)}",
        f"{value}{rng.choice(SIGNS)}{operand}",
        f"={value}",
    ]


def _problem(expression: str) -> Problem:
    columns = {"expression": expression, "answer": str(result_of(calls_of(expression)[-1]))}
    return Problem(f"{expression}?", f"calculator/{expression}", columns)


def _draws(rng: random.Random, split: Split, operations: int) -> Iterator[str]:
    """Yield random expressions of a split, without end."""
    while True:
        pairs = (f"{rng.choice(SIGNS)}{rng.randint(1, LARGEST)}" for _ in range(operations))
        expression = "".join([str(rng.randint(1, LARGEST)), *pairs])
        if split_of(expression) == split:
            yield expression


def _check(operations: int) -> None:
    if isinstance(operations, bool) or not isinstance(operations, int) or not 1 <= operations <= MAX_OPERATIONS:
        raise ConfigError(
            f"the task 'calculator' needs operations as a whole number from 1 to {MAX_OPERATIONS}, not {operations!r}"
        )


CALCULATOR = Task(
    "calculator",
    "calculator",
    problems,
    demonstrations,
    summary="generated: dialogues with a calculator, left to right",
)
