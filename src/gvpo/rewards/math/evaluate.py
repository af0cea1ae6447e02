r"""Values of formulas: exact fractions if possible, 50 digits otherwise, and bounds on all of them.

Numbers of more than `MAX_BITS` binary digits are not computed: 9^{9^{9^9}}, (10^9)! and 1/0 have no value here.
"""

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any

from gvpo.rewards.math.parse import Tree

MAX_BITS, MAX_TERMS, MAX_STEPS = 40_000, 2000, 10_000
"""Limits: binary digits of a computed number, terms of a sum, and number of operations."""
DIGITS = 50
Value = Any
"""A `Fraction`, or an mpf or mpc of mpmath."""


class NoValue(ArithmeticError):
    """A formula has no value, or none that is small enough to compute."""


@lru_cache(maxsize=2)
def _context(digits: int) -> Any:
    """Return an mpmath context for numbers with this many decimal digits."""
    from mpmath import MPContext

    context = MPContext()
    context.dps = digits
    return context


def value(
    tree: Tree, at: Mapping[str, Value] | None = None, digits: int = DIGITS, complex_numbers: bool = True
) -> Value:
    r"""Return the value of a tree.

    Args:
        tree: A formula.
        at: Values of its variables, and a function for each unknown function, under "f()".
        digits: Decimal digits of values that are not fractions.
        complex_numbers: Allow steps that lead out of the real numbers, such as \sqrt{-1}.

    Raises:
        NoValue: If there is no value, or it is too large.
    """
    try:
        return _Evaluation(at or {}, _context(digits), complex_numbers).of(tree)
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError):
        raise NoValue from None


class _Evaluation:
    """The evaluation of one tree at one point."""

    def __init__(self, at: Mapping[str, Value], context: Any, complex_numbers: bool) -> None:
        self.at, self.mp, self.complex_numbers, self.steps = dict(at), context, complex_numbers, 0

    def of(self, tree: Tree) -> Value:
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise NoValue
        if isinstance(tree, Fraction):
            return tree
        if isinstance(tree, str):
            return self.symbol(tree)
        if tree[0] in ("sum", "prod"):
            return self.series(*tree)
        if tree[0] == "apply":
            return self.at[f"{tree[1]}()"](*(self.of(each) for each in tree[2:]))
        return self.bounded(self.operation(tree[0], [self.of(each) for each in tree[1:]]))

    def symbol(self, name: str) -> Value:
        if name in self.at:
            return self.at[name]
        if name == "\\pi":
            return +self.mp.pi
        if name == "e":
            return +self.mp.e
        if name == "i":
            return self.mp.mpc(0, 1)
        raise KeyError(name)

    def bounded(self, found: Value) -> Value:
        """Return a value if it is finite and not too large."""
        if isinstance(found, Fraction):
            if max(found.numerator.bit_length(), found.denominator.bit_length()) > MAX_BITS:
                raise NoValue
        elif (
            (isinstance(found, self.mp.mpc) and not self.complex_numbers)
            or not self.mp.isfinite(found)
            or (found != 0 and abs(self.mp.mag(found)) > MAX_BITS)
        ):
            raise NoValue
        return found

    def operation(self, name: str, values: list[Value]) -> Value:
        if name in ("+", "*"):
            return self.folded(name, values)
        if name in _EXACT and all(isinstance(each, Fraction) for each in values):
            return _EXACT[name](*values)
        if name == "/":
            return self.quotient(*values)
        if name == "^":
            return self.power(*values)
        if name == "root":
            return self.root(*values)
        function = getattr(self, f"call_{name}", None) or getattr(self.mp, _NAMES.get(name, name))
        return function(*map(self.real_or_complex, values))

    def real_or_complex(self, number: Value) -> Value:
        """Return a number as an mpmath number."""
        if isinstance(number, Fraction):
            return self.mp.mpf(number.numerator) / number.denominator
        if isinstance(number, self.mp.mpc) and number.imag == 0:
            return number.real
        return number

    def folded(self, name: str, values: list[Value]) -> Value:
        result = values[0]
        for each in values[1:]:
            if not (isinstance(result, Fraction) and isinstance(each, Fraction)):
                result, each = self.real_or_complex(result), self.real_or_complex(each)
            result = self.bounded(result + each if name == "+" else result * each)
        return result

    def power(self, base: Value, exponent: Value) -> Value:
        if isinstance(exponent, Fraction) and exponent.denominator == 1 and isinstance(base, Fraction):
            return _whole_power(base, int(exponent))
        number, raised = self.real_or_complex(base), self.real_or_complex(exponent)
        if number == 0:
            if self.mp.re(raised) <= 0:
                raise NoValue
            return Fraction(0)
        if abs(self.mp.log(number)) * abs(raised) > MAX_BITS:
            raise NoValue
        return self.mp.power(number, raised)

    def root(self, radicand: Value, degree: Value) -> Value:
        """Return a root; the root of a negative number is real if the degree is odd."""
        if not isinstance(degree, Fraction) or degree == 0:
            return self.power(radicand, 1 / degree)
        number = self.real_or_complex(radicand)
        odd = degree.denominator == 1 and degree.numerator % 2 == 1
        if odd and isinstance(number, self.mp.mpf) and number < 0:
            return -self.power(-number, 1 / degree)
        return self.power(radicand, 1 / degree)

    def series(self, name: str, index: str, low: Tree, high: Tree, body: Tree) -> Value:
        first, last = self.of(low), self.of(high)
        if not all(isinstance(each, Fraction) and each.denominator == 1 for each in (first, last)):
            raise NoValue
        if not -1 <= last - first <= MAX_TERMS:
            raise NoValue
        outer, result = dict(self.at), Fraction(name == "prod")
        for number in range(int(first), int(last) + 1):
            self.at[index] = Fraction(number)
            result = self.bounded(self.folded("+" if name == "sum" else "*", [result, self.of(body)]))
        self.at = outer
        return result

    def call_log(self, number: Value, base: Value = 10) -> Value:
        if number == 0 or base in (0, 1):
            raise NoValue
        return self.mp.log(number) / self.mp.log(base)

    call_lg = call_log

    def call_ln(self, number: Value) -> Value:
        if number == 0:
            raise NoValue
        return self.mp.log(number)

    def call_exp(self, number: Value) -> Value:
        return self.power(+self.mp.e, number)

    def call_cis(self, angle: Value) -> Value:
        return self.mp.expj(self.angle(angle))

    def call_abs(self, number: Value) -> Value:
        return abs(number)

    def call_sign(self, number: Value) -> Value:
        return self.mp.sign(number)

    call_sgn = call_sign

    def call_max(self, *numbers: Value) -> Value:
        return max(numbers)

    def call_min(self, *numbers: Value) -> Value:
        return min(numbers)

    def call_floor(self, number: Value) -> Value:
        return self.near_whole(number, self.mp.floor)

    def call_ceil(self, number: Value) -> Value:
        return self.near_whole(number, self.mp.ceil)

    def near_whole(self, number: Value, rounded: Callable[[Value], Value]) -> Value:
        r"""Round, and treat a number that is an integer up to rounding errors as that integer: \log_2 8 is 3."""
        if self.mp.im(number) != 0:
            raise NoValue
        nearest = self.mp.nint(number)
        whole = nearest if abs(number - nearest) < self.mp.mpf(10) ** (10 - self.mp.dps) else rounded(number)
        return Fraction(int(whole))

    def call_factorial(self, number: Value) -> Value:
        if self.mp.im(number) != 0 or abs(number) > 10_000:
            raise NoValue
        return self.mp.gamma(number + 1)

    def call_Gamma(self, number: Value) -> Value:  # noqa: N802 - the name of the function
        return self.call_factorial(number - 1)

    def call_binomial(self, top: Value, bottom: Value) -> Value:
        if max(abs(top), abs(bottom)) > 10_000:
            raise NoValue
        return self.mp.binomial(top, bottom)

    def call_mod(self, number: Value, modulus: Value) -> Value:
        return number - modulus * self.call_floor(number / modulus)

    def call_sin(self, angle: Value) -> Value:
        return self.mp.sin(self.angle(angle))

    def call_cos(self, angle: Value) -> Value:
        return self.mp.cos(self.angle(angle))

    def call_tan(self, angle: Value) -> Value:
        angle = self.angle(angle)
        return self.quotient(self.mp.sin(angle), self.mp.cos(angle))

    def call_cot(self, angle: Value) -> Value:
        angle = self.angle(angle)
        return self.quotient(self.mp.cos(angle), self.mp.sin(angle))

    def call_sec(self, angle: Value) -> Value:
        return self.quotient(Fraction(1), self.call_cos(angle))

    def call_csc(self, angle: Value) -> Value:
        return self.quotient(Fraction(1), self.call_sin(angle))

    def quotient(self, top: Value, bottom: Value) -> Value:
        """Divide; raise NoValue if the divisor is zero up to rounding errors."""
        top, bottom = self.real_or_complex(top), self.real_or_complex(bottom)
        if bottom == 0 or abs(bottom) < abs(top) * self.mp.mpf(10) ** (5 - self.mp.dps):
            raise NoValue
        return top / bottom

    def angle(self, angle: Value) -> Value:
        if self.mp.mag(angle) > 100:  # the digits before the point would need more precision
            raise NoValue
        return angle


def _whole_power(base: Fraction, exponent: int) -> Fraction:
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(base) != 1 and base != 0 and (bits - 1 or 1) * abs(exponent) > MAX_BITS:
        raise NoValue
    return base**exponent if abs(base) != 1 else base ** (exponent % 2)


def _up_to_5000(number: Fraction) -> int:
    if number.denominator != 1 or not 0 <= number <= 5000:
        raise NoValue
    return int(number)


def _binomial(top: Fraction, bottom: Fraction) -> Fraction:
    """Return a binomial coefficient; its top may be a fraction, as in the binomial series."""
    if bottom.denominator != 1 or (top < 0 and top.denominator == 1) or abs(bottom) > 2000 or abs(top) > 10_000:
        raise NoValue
    result = Fraction(int(bottom >= 0))
    for step in range(int(bottom)):
        result = result * (top - step) / (step + 1)
    return result


def _common(function: Callable[..., int]) -> Callable[..., Fraction]:
    """Turn a function of integers, gcd or lcm, into one of fractions."""

    def of_fractions(*numbers: Fraction) -> Fraction:
        if any(number.denominator != 1 for number in numbers):
            raise NoValue
        return Fraction(function(*map(int, numbers)))

    return of_fractions


_EXACT: dict[str, Callable[..., Fraction]] = {
    "/": lambda top, bottom: top / bottom,
    "abs": abs,
    "floor": lambda number: Fraction(math.floor(number)),
    "ceil": lambda number: Fraction(math.ceil(number)),
    "mod": lambda number, modulus: number % modulus,
    "max": max,
    "min": min,
    "sgn": lambda number: Fraction((number > 0) - (number < 0)),
    "sign": lambda number: Fraction((number > 0) - (number < 0)),
    "factorial": lambda number: Fraction(math.factorial(_up_to_5000(number))),
    "factorial2": lambda number: Fraction(math.prod(range(_up_to_5000(number), 0, -2))),
    "binomial": _binomial,
    "gcd": _common(math.gcd),
    "lcm": _common(math.lcm),
}
_NAMES = {
    "arcsin": "asin",
    "arccos": "acos",
    "arctan": "atan",
    "arccot": "acot",
    "Re": "re",
    "Im": "im",
    "arsinh": "asinh",
    "arcosh": "acosh",
    "artanh": "atanh",
    "arcsinh": "asinh",
    "arccosh": "acosh",
    "arctanh": "atanh",
    "factorial2": "fac2",
}
