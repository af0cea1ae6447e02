r"""Whether two mathematical answers are the same: numbers first, then LaTeX through math-verify's parser and grader.

Three rules that math-verify has not: numbers are compared by their relative difference (1.6e-19 is not 3.2e-19),
capital letters are other symbols than small ones, and formulas are tried at points before they are simplified, which is
faster and cannot round a small coefficient away. What math-verify would guard with signals is not guarded here: call
this where a hanging comparison can be ended from outside.
"""

import logging
import re
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

from gvpo.rewards import mathpython, mathtext
from gvpo.rewards.mathtext import Form
from gvpo.rewards.number import MAX_CHARACTERS as MAX_NUMBER
from gvpo.rewards.number import parse_number

RELATIVE = Fraction(1, 10**6)
"""Decimals are the same up to this share of the larger one, and up to one unit of the last digit written."""
MAX_CHARACTERS, MAX_DEPTH = 20_000, 40
"""An answer that is longer or nested deeper equals nothing but itself."""
_DIGITS, _SAME = 50, 40  # digits computed of exact constants, and how many of them agree in equal ones
_SCIENTIFIC = re.compile(
    r"([-+]?)(?:([0-9]*\.?[0-9]+)\s*(?:\\times|\\cdot|\*)\s*)?10\s*\^\s*\{?\s*([-+]?[0-9]{1,4})\s*\}?"
)
_MISREAD = re.compile(r"[0-9]\s+[0-9]|'")  # the parser multiplies 2 3, and takes f' for f
_INDEXED_E = re.compile(r"(?<![A-Za-z\\])([eE])(?=_)")
_E_NOTATION = re.compile(r"(?<![A-Za-z\\])([0-9.]+)[eE]([-+]?[0-9]+)(?![0-9A-Za-z])")
_BASED = re.compile(r"(-?[0-9A-F]+)_\{([0-9]+)\}")
_POINTS = (
    ("0.6180339", "1.3247179", "2.2360679"),
    ("1.7724538", "0.9159655", "0.3678794"),
    ("-1.20205", "0.7", "-2.6"),
)


def prepare() -> None:
    """Import sympy and the parser and let the parser see each kind of input once; takes about a second."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own timeout is off
    for latex in (
        r"\frac{1}{2}+3x",
        r"e^{-2t}\sin(x)",
        r"\sqrt[3]{4}\cdot\pi",
        r"\binom{n}{2}!",
        r"k \ge 2",
        r"\log_{2}(a_{1})",
    ):
        _parsed(latex)
    same_answer(r"x^{2}-1", "(x-1)(x+1)")


def same_answer(left: str, right: str, error: Fraction | None = None) -> bool:
    """Whether two answers are the same, by the conventions of docs/rewards.md.

    Args:
        left: an answer, without the box around it.
        right: another.
        error: how far two numbers may be apart; None for the usual rule.

    Returns:
        Whether they are. False too for what cannot be read, unless it is the same text.
    """
    if max(len(left), len(right)) > MAX_CHARACTERS:
        return left.strip() == right.strip()
    left, right = mathtext.spelled(left), mathtext.spelled(right)
    if not left or not right:
        return False
    if mathtext.compact(left) == mathtext.compact(right):
        return True
    if max(mathtext.depth(left), mathtext.depth(right)) > MAX_DEPTH:
        return False
    return _same(left, right, error)


def _same(left: str, right: str, error: Fraction | None) -> bool:
    """The same for texts in their one spelling."""
    if mathtext.compact(left) == mathtext.compact(right):
        return True
    (name, value), (other, against) = mathtext.assignment(left), mathtext.assignment(right)
    if name and other and name != other:
        return _same_formula(left, right)
    return _same_form(mathtext.form(value), mathtext.form(against), error)


def _same_form(left: Form, right: Form, error: Fraction | None) -> bool:
    if left.kind == right.kind == "one":
        return _same_one(left.parts[0], right.parts[0], error)
    if len(left.parts) != len(right.parts):
        return False
    kinds = {left.kind, right.kind}
    if kinds <= {"one", "list"} or kinds == {"union"}:
        return _same_members(left.parts, right.parts, error)
    if kinds == {"tuple", "list"}:  # brackets may be missing on one side; braces are a set
        return "{}" not in (left.brackets, right.brackets) and _same_in_order(left.parts, right.parts, error)
    if kinds == {"tuple"} and len(left.parts) > 2:  # no interval: (1,2,3) and [1,2,3] are the same vector
        return _same_in_order(left.parts, right.parts, error)
    if kinds in ({"tuple"}, {"matrix"}):
        return left.brackets == right.brackets and _same_in_order(left.parts, right.parts, error)
    return False


def _same_in_order(left: Sequence[str], right: Sequence[str], error: Fraction | None) -> bool:
    return all(_same(a, b, error) for a, b in zip(left, right, strict=True))


def _same_members(left: Sequence[str], right: Sequence[str], error: Fraction | None) -> bool:
    """Whether each member on the left has a partner of its own on the right."""
    free = list(right)
    for member in left:
        partner = next((index for index, other in enumerate(free) if _same(member, other, error)), None)
        if partner is None:
            return False
        del free[partner]
    return True


def _same_one(left: str, right: str, error: Fraction | None) -> bool:
    """Two single things: words, a number, a formula."""
    word, other = mathtext.words(left), mathtext.words(right)
    if word is not None or other is not None:
        return _word(left) == _word(right)
    (left, share), (right, against) = mathtext.without_units(left), mathtext.without_units(right)
    if mathtext.compact(left) == mathtext.compact(right):
        return True
    if share == against:
        return _same_value(left, right, error)
    percentage, plain = (left, right) if share else (right, left)
    return _same_value(percentage, plain, error) or _same_value(rf"\frac{{{percentage}}}{{100}}", plain, error)


def _word(text: str) -> str:
    found = mathtext.words(text)
    return (text.strip().lower() if found is None else found).strip("()")


def _same_value(left: str, right: str, error: Fraction | None) -> bool:
    (digits, base), (others, against) = _based(left), _based(right)
    if base or against:  # it may be left out on one side
        return digits == others and (not base or not against or base == against)
    a, b = _number(left), _number(right)
    if a is not None and b is not None:
        return _near(a, b, _slack(left), _slack(right), error)
    return _same_formula(left, right, error)


def _based(text: str) -> tuple[str, str]:
    """The digits of 52_{8} and its base; the base is "" where there is none."""
    match = _BASED.fullmatch(text)
    return (match[1], match[2]) if match else (text, "")


@lru_cache(maxsize=4096)
def _number(text: str) -> Fraction | None:
    r"""The number that a text is; 1.2 \times 10^{3} too. None for what is longer than `number` reads."""
    match = _SCIENTIFIC.fullmatch(text)
    if match and len(text) <= MAX_NUMBER:
        return Fraction(f"{match[1]}{match[2] or 1}") * Fraction(10) ** int(match[3])
    return parse_number(text)


def _slack(text: str) -> Fraction | None:
    """One unit of the last digit of a decimal; None for what is written exactly."""
    match = re.search(r"(?:[0-9]*\.([0-9]*)|[0-9](?=[eE]))", text)
    if not match:
        return None
    power = re.search(r"(?:[eE]|10\s*\^\s*\{?)([-+]?[0-9]{1,4})", text)
    return Fraction(10) ** ((int(power[1]) if power else 0) - len(match[1] or ""))


def _near(a: Any, b: Any, slack: Fraction | None, other: Fraction | None, error: Fraction | None) -> bool:
    if error is not None:
        return bool(abs(a - b) <= error)
    units = [each for each in (slack, other) if each is not None]
    return bool(a == b) if not units else bool(abs(a - b) <= min(RELATIVE * max(abs(a), abs(b)), *units))


def _same_formula(left: str, right: str, error: Fraction | None = None) -> bool:
    """Through sympy: constants by their digits, formulas at points, and what has no value by math-verify."""
    a, b = _parsed(left), _parsed(right)
    if a is None or b is None:
        return False
    try:
        if a.free_symbols or b.free_symbols or a.is_Relational or b.is_Relational:
            return _same_function(a, b)
        return _same_constant(a.doit(), b.doit(), "." in left + right, error)
    except (ArithmeticError, AttributeError, NotImplementedError, RecursionError, TypeError, ValueError):
        return False


def _other_letter(match: re.Match[str]) -> str:
    """E_{1} is no power of e: the parser gets a letter for it that it does not take for the constant."""
    return r"\Xi" if match[1] == "E" else r"\xi"


@lru_cache(maxsize=4096)
def _parsed(latex: str) -> Any:
    """The sympy expression of LaTeX (or Python's arithmetic); None if it is neither. Decimals become exact."""
    from latex2sympy2_extended import latex2sympy
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig
    from sympy import Basic, Float, I, Rational, Symbol

    if _MISREAD.search(latex):
        return None
    latex = mathpython.as_latex(latex) or _INDEXED_E.sub(_other_letter, latex)
    latex = _E_NOTATION.sub(r"\1 \\cdot 10^{\2}", latex)
    try:
        expression = latex2sympy(
            latex,
            is_real=True,
            normalization_config=None,
            conversion_config=ConversionConfig(lowercase_symbols=False),
        )
        if not isinstance(expression, Basic):
            return None
        exact = {number: Rational(str(number)) for number in expression.atoms(Float)}
        return expression.xreplace({**exact, Symbol("i", real=True): I})
    except Exception:  # the parser raises bare Exceptions
        return None


def _same_constant(a: Any, b: Any, decimals: bool, error: Fraction | None) -> bool:
    from sympy import Float, Rational

    if a == b:
        return True
    if not (a.is_finite and b.is_finite):
        return False
    if error is None and not decimals and isinstance(a, Rational) and isinstance(b, Rational):
        return False
    difference = abs((a - b).evalf(_DIGITS))
    if error is not None:
        return bool(difference <= Rational(error.numerator, error.denominator))
    share = Float(float(RELATIVE)) if decimals else Float(10, _DIGITS) ** -_SAME
    return bool(difference <= share * max(abs(a.evalf(_DIGITS)), abs(b.evalf(_DIGITS))))


def _same_function(a: Any, b: Any) -> bool:
    from math_verify import verify

    if a == b:
        return True
    agreed = _agreement(a, b)
    return agreed if agreed is not None else bool(verify(a, b, timeout_seconds=None))


def _agreement(a: Any, b: Any) -> bool | None:
    """Whether two formulas have the same values at points, positive ones and others; None if points cannot tell."""
    from sympy import Rational

    symbols = sorted(a.free_symbols | b.free_symbols, key=str)
    if a.is_Relational or b.is_Relational:
        return None
    seen = []
    for point in _POINTS:
        at = {s: Rational(point[n % 3]) + n // 3 + Rational(n, 97) for n, s in enumerate(symbols)}
        seen.append(_equal_at(a, b, at))
    if None in seen[:2]:
        return None
    if not all(seen[:2]):
        return False
    return True if seen[2] else None


def _equal_at(a: Any, b: Any, at: dict[Any, Any]) -> bool | None:
    values = [each.doit().evalf(30, subs=at) for each in (a, b)]  # exact powers of fractions take for ever
    if not all(value.is_number and value.is_finite for value in values):
        return None
    size = max(abs(value) for value in values)
    return bool(abs(values[0] - values[1]) <= size * 10**-20)
