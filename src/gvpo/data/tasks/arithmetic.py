"""Arithmetic problems: the family determines the operation, and the level the size of the numbers.

The answer of every family follows from its steps, which are true equations, so exercises are correct by construction.
"""

import math
import random
from collections.abc import Callable, Sequence
from fractions import Fraction

from gvpo.data.tasks.generated import SIZES, Exercise, generated

_SMALL = {1: 10, 2: 10, 3: 20, 4: 100, 5: 1000}
"""Upper bound of second factors, divisors and slopes by level."""


def _sum(rng: random.Random, level: int) -> Exercise:
    numbers = _numbers(rng, level, 2 + level // 2)
    return _chained("+", numbers, lambda total, number: total + number)


def _difference(rng: random.Random, level: int) -> Exercise:
    numbers = _numbers(rng, level, 2 + level // 3)
    if level < 3:
        numbers.sort(reverse=True)
    return _chained("-", numbers, lambda total, number: total - number)


def _chained(sign: str, numbers: Sequence[int], apply: Callable[[int, int], int]) -> Exercise:
    """Return an exercise with one operator, computed from left to right."""
    total, steps = numbers[0], []
    for number in numbers[1:]:
        before, total = total, apply(total, number)
        steps.append(f"{before} {sign} {number} = {total}")
    return Exercise(f"Compute {f' {sign} '.join(map(str, numbers))}.", steps, str(total))


def _product(rng: random.Random, level: int) -> Exercise:
    left, right = rng.randrange(2, SIZES[level]), rng.randrange(2, _SMALL[level])
    parts = [int(digit) * 10**place for place, digit in enumerate(reversed(str(right))) if digit != "0"]
    steps = [f"{left} * {part} = {left * part}" for part in parts]
    if len(parts) > 1:
        steps.append(f"{' + '.join(str(left * part) for part in parts)} = {left * right}")
    return Exercise(f"Compute {left} * {right}.", steps, str(left * right))


def _quotient(rng: random.Random, level: int) -> Exercise:
    quotient, divisor = rng.randrange(2, SIZES[level]), rng.randrange(2, _SMALL[level])
    dividend = quotient * divisor
    steps = [f"{divisor} * {quotient} = {dividend}", f"{dividend} / {divisor} = {quotient}"]
    return Exercise(f"Compute {dividend} / {divisor}.", steps, str(quotient))


def _remainder(rng: random.Random, level: int) -> Exercise:
    divisor = rng.randrange(3, 2 * _SMALL[level])
    dividend = rng.randrange(divisor, SIZES[level] + 2 * divisor)
    quotient, rest = divmod(dividend, divisor)
    steps = [f"{divisor} * {quotient} = {dividend - rest}", f"{dividend} - {dividend - rest} = {rest}"]
    return Exercise(f"What is the remainder when {dividend} is divided by {divisor}?", steps, str(rest))


def _expression(rng: random.Random, level: int) -> Exercise:
    """Generate (a + b) * c, plus or minus one more number for each level above the first."""
    a, b, c = (rng.randrange(2, 10 * level) for _ in range(3))
    sign = rng.choice("+-")
    inner = a + b if sign == "+" else a - b
    text, total = f"({a} {sign} {b}) * {c}", inner * c
    steps = [f"{a} {sign} {b} = {inner}", f"{inner} * {c} = {total}"]
    for number in (rng.randrange(2, SIZES[level]) for _ in range(level - 1)):
        sign = rng.choice("+-")
        before, total = total, total + number if sign == "+" else total - number
        steps.append(f"{before} {sign} {number} = {total}")
        text = f"{text} {sign} {number}"
    return Exercise(f"Compute {text}.", steps, str(total))


def _equation(rng: random.Random, level: int) -> Exercise:
    """Generate a x + b = c, or a x + b = c x + d from level 3."""
    x, slope, extra = rng.randrange(2, SIZES[level]), rng.randrange(2, _SMALL[level]), rng.randrange(1, SIZES[level])
    total = slope * x + extra
    steps = [f"{total} - {extra} = {slope * x}", f"{slope * x} / {slope} = {x}"]
    if level < 3:
        return Exercise(f"Solve {slope}x + {extra} = {total} for x.", steps, str(x))
    other = rng.randrange(2, _SMALL[level])
    steps.insert(0, f"{slope + other} - {other} = {slope}")
    return Exercise(f"Solve {slope + other}x + {extra} = {other}x + {total} for x.", steps, str(x))


def _fraction(rng: random.Random, level: int) -> Exercise:
    """Generate the sum of two fractions, in lowest terms."""
    (a, b), (c, d) = ((rng.randrange(1, 6 * level), rng.randrange(2, 6 * level)) for _ in range(2))
    common = math.lcm(b, d)
    left, right = a * common // b, c * common // d
    total = Fraction(a, b) + Fraction(c, d)
    steps = [f"{a}/{b} = {left}/{common}", f"{c}/{d} = {right}/{common}"]
    steps.append(f"{left}/{common} + {right}/{common} = {left + right}/{common}")
    if total.denominator != common:
        steps.append(f"{left + right}/{common} = {total}")
    return Exercise(f"Compute {a}/{b} + {c}/{d} and simplify.", steps, _latex(total))


def _latex(value: Fraction) -> str:
    return str(value) if value.denominator == 1 else f"\\frac{{{value.numerator}}}{{{value.denominator}}}"


def _numbers(rng: random.Random, level: int, count: int) -> list[int]:
    return [rng.randrange(2, SIZES[level]) for _ in range(count)]


ARITHMETIC = generated(
    "arithmetic",
    {
        "sum": _sum,
        "difference": _difference,
        "product": _product,
        "quotient": _quotient,
        "remainder": _remainder,
        "expression": _expression,
        "equation": _equation,
        "fraction": _fraction,
    },
    "generated: sums, products, equations and more, in five levels",
)
