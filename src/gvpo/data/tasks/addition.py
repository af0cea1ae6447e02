r"""Column addition with its steps written down: a task whose reasoning anybody can check at a glance.

    489+636=
    9+6+0=15        digit + digit + carry = sum, units first
    8+3+1=12
    4+6+1=11
    \boxed{1125}

Demonstrations can forget the carry (8+3+0=11), in all lines of a chain: a model warm-started on those has the right
habit latent and the wrong one in front, and rewards have something to find.
"""

import random
from collections.abc import Iterator

from gvpo.data.tasks.base import EVAL_SHARE, Split, Task, check_split, checked_options, split_of
from gvpo.errors import ConfigError
from gvpo.types import Problem

MAX_DIGITS = 100


@checked_options("addition")
def problems(split: Split, count: int, seed: int, *, digits: int = 3) -> list[Problem]:
    """Different additions of two numbers.

    A pair of numbers, in either order, belongs to one split whatever the seed.

    Args:
        split: "train" or "eval".
        count: how many; fewer come back where there are no more (one digit).
        seed: of the choice and the order.
        digits: of both numbers.

    Returns:
        Problems with the columns `answer` ("1125") and `steps` (["9+6+0=15", ...]).

    Raises:
        ConfigError: an option that cannot be.
    """
    check_split("addition", split)
    _check_digits(digits)
    rng = random.Random(f"addition/{split}/{digits}/{seed}")
    low, high = _range(digits)
    if 2 * EVAL_SHARE * count >= (high - low) ** 2:  # too many to draw at random until they are all different
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
    """Worked additions of training problems, some of which forget every carry.

    Args:
        count: how many; problems may repeat.
        seed: of the problems and of which chains forget.
        digits: of both numbers.
        forget_carry: the probability that a chain writes 0 for every carry, and the answer that follows from it.

    Returns:
        (problem, chain) pairs.

    Raises:
        ConfigError: an option that cannot be.
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
    """The written addition, from the units to the boxed sum; without `carry` every carry is forgotten."""
    lines, answer = _work(left, right, carry=carry)
    return "\n".join([*lines, f"\\boxed{{{answer}}}"])


def _work(left: int, right: int, *, carry: bool) -> tuple[list[str], str]:
    """The lines of a chain, and the answer that they add up to."""
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
    """Random pairs of a split, without end."""
    low, high = _range(digits)
    while True:
        pair = rng.randrange(low, high), rng.randrange(low, high)
        if _split(*pair) == split:
            yield pair


def _split(left: int, right: int) -> Split:
    """Where a pair belongs, in either order."""
    return split_of(f"{min(left, right)}+{max(left, right)}")


def _range(digits: int) -> tuple[int, int]:
    return (0 if digits == 1 else 10 ** (digits - 1)), 10**digits


def _check_digits(digits: int) -> None:
    if isinstance(digits, bool) or not isinstance(digits, int) or not 1 <= digits <= MAX_DIGITS:
        raise ConfigError(f"the task 'addition' needs digits as a whole number from 1 to {MAX_DIGITS}, not {digits!r}")


ADDITION = Task("addition", "boxed_answer", problems, demonstrations)
