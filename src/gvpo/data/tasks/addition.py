r"""Column addition with written steps, a task whose reasoning is easy to check.

    489+636=
    9+6+0=15        digit + digit + carry = sum, units first
    8+3+1=12
    4+6+1=11
    \boxed{1125}

Demonstrations can forget the carry (8+3+0=11), in all lines of a chain. A model that is warm-started on them usually
forgets the carry and sometimes does not, so rewards have something to reinforce.
"""

import random
from collections.abc import Iterator

from gvpo.data.tasks.base import EVAL_SHARE, Split, Task, check_split, checked_options, split_of
from gvpo.errors import ConfigError
from gvpo.types import Problem

MAX_DIGITS = 100


@checked_options("addition")
def problems(split: Split, count: int, seed: int, *, digits: int = 3) -> list[Problem]:
    """Generate different additions of two numbers.

    A pair of numbers, in either order, belongs to one split regardless of the seed.

    Args:
        split: "train" or "eval".
        count: Number of problems; fewer are returned if no more exist (with one digit).
        seed: Random seed of the choice and the order.
        digits: Number of digits of both numbers.

    Returns:
        Problems with the columns `answer` ("1125") and `steps` (["9+6+0=15", ...]).

    Raises:
        ConfigError: If an option is invalid.
    """
    check_split("addition", split)
    _check_digits(digits)
    rng = random.Random(f"addition/{split}/{digits}/{seed}")
    low, high = _range(digits)
    if 2 * EVAL_SHARE * count >= (high - low) ** 2:  # sampling until all are different would take too long
        pairs = [(a, b) for a in range(low, high) for b in range(low, high) if _split(a, b) == split]
        rng.shuffle(pairs)
        return [_problem(*pair) for pair in pairs[:count]]
    found: dict[tuple[int, int], None] = {}
    for pair in _pairs(rng, split, digits):
        if len(found) >= count:
            break
        found[pair] = None
    return [_problem(*pair) for pair in found]


@checked_options("addition")
def demonstrations(count: int, seed: int, *, digits: int = 3, forget_carry: float = 0.7) -> list[tuple[Problem, str]]:
    """Generate training problems with worked additions, some of which forget every carry.

    Args:
        count: Number of demonstrations; problems may repeat.
        seed: Random seed of the problems and of the chains that forget.
        digits: Number of digits of both numbers.
        forget_carry: Probability that a chain writes 0 for every carry, and the answer that follows from it.

    Returns:
        (problem, chain) pairs.

    Raises:
        ConfigError: If an option is invalid.
    """
    _check_digits(digits)
    if not 0 <= forget_carry <= 1:
        raise ConfigError(f"the task 'addition' needs forget_carry between 0 and 1, not {forget_carry}")
    rng = random.Random(f"addition/demonstrations/{digits}/{seed}")
    pairs = _pairs(rng, "train", digits)
    return [
        (_problem(left, right), chain(left, right, carry=rng.random() >= forget_carry))
        for left, right in (next(pairs) for _ in range(count))
    ]


def chain(left: int, right: int, *, carry: bool = True) -> str:
    """Return the written addition, from the units to the boxed sum; without `carry`, every carry is forgotten."""
    lines, answer = _work(left, right, carry=carry)
    return "\n".join([*lines, f"\\boxed{{{answer}}}"])


def _work(left: int, right: int, *, carry: bool) -> tuple[list[str], str]:
    """Return the lines of a chain and the resulting answer."""
    width = max(len(str(left)), len(str(right)))
    columns = zip(reversed(f"{left:0{width}}"), reversed(f"{right:0{width}}"), strict=True)
    lines, answer, carried, total = [], "", 0, 0
    for a, b in columns:
        total = int(a) + int(b) + carried
        lines.append(f"{a}+{b}+{carried}={total}")
        answer = f"{total % 10}{answer}"
        carried = total // 10 if carry else 0
    return lines, f"{total}{answer[1:]}"  # the last column's sum is written out


def _problem(left: int, right: int) -> Problem:
    lines, answer = _work(left, right, carry=True)
    return Problem(f"{left}+{right}=\n", f"addition/{left}+{right}", {"answer": answer, "steps": lines})


def _pairs(rng: random.Random, split: Split, digits: int) -> Iterator[tuple[int, int]]:
    """Yield random pairs of a split, without end."""
    low, high = _range(digits)
    while True:
        pair = rng.randrange(low, high), rng.randrange(low, high)
        if _split(*pair) == split:
            yield pair


def _split(left: int, right: int) -> Split:
    """Return the split of a pair, in either order."""
    return split_of(f"{min(left, right)}+{max(left, right)}")


def _range(digits: int) -> tuple[int, int]:
    return (0 if digits == 1 else 10 ** (digits - 1)), 10**digits


def _check_digits(digits: int) -> None:
    if isinstance(digits, bool) or not isinstance(digits, int) or not 1 <= digits <= MAX_DIGITS:
        raise ConfigError(f"the task 'addition' needs digits as a whole number from 1 to {MAX_DIGITS}, not {digits!r}")


ADDITION = Task(
    "addition", "boxed_answer", problems, demonstrations, summary="generated: column addition with written steps"
)
