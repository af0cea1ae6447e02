r"""Comparison of two mathematical answers, by the conventions of docs/reference/reward-functions.md.

An answer is taken apart from the outside: relations and names, lists and brackets, words, times and ratios, units,
numbers, and finally formulas. Answers that are too long, too deep or too large to compute are compared only as text.
"""

import re
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise

from gvpo.rewards.math import formulas, python_numbers
from gvpo.rewards.math import sets as mathsets
from gvpo.rewards.math import text as mathtext
from gvpo.rewards.math.formulas import RELATIVE
from gvpo.rewards.math.parse import Tree, parsed, symbols
from gvpo.rewards.math.relations import ORDERS, Relation, assignment, is_constant, relation
from gvpo.rewards.math.spelling import compact, spelled
from gvpo.rewards.math.text import Form
from gvpo.rewards.verifiers.number import MAX_CHARACTERS as MAX_NUMBER
from gvpo.rewards.verifiers.number import parse_number

MAX_CHARACTERS, MAX_DEPTH = 20_000, 40
"""Maximum length and nesting depth of an answer; beyond them, answers are compared only as text."""
ROOM, TIMES = 500, 4
"""An answer may have at most ROOM + TIMES * n characters, where n is the length of the reference answer."""
MAX_MEMBERS = 50
"""Maximum number of members of a set that may be written differently from the reference's."""
_SCIENTIFIC = re.compile(
    r"([-+]?)(?:([0-9]*\.?[0-9]+)\s*(?:\\times|\\cdot|\*|x)\s*)?10\s*\^\s*(?:\{\s*([-+]?[0-9]{1,4})\s*\}|([-+]?[0-9]{1,4}))"
)
_BASED = re.compile(r"(?:\\text\{)?(-?[0-9A-F.]+)\}?_\{\(?(?:\\text\{)?(?:base ?)?([0-9]+|[a-z]+)\}?\)?\}")
_BASES = {
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
}
_DENIAL = re.compile(
    r"\\(?:neg|lnot|not|notin)(?![A-Za-z])|(?<![A-Za-z])(?:not?|never|neither|nor)(?![A-Za-z])", re.IGNORECASE
)
_CALCULATES = re.compile(r"\*\*|[a-z0-9]\(")
_CLOCK = re.compile(r"(\d{1,2})(?::(\d\d))?(?::(\d\d))?\s*(?:([ap])\.?\s?m\.?)?", re.IGNORECASE)


def prepare() -> None:
    """Import the modules that the comparison needs, and run it once for each kind of input."""
    for gold, written in (
        (r"\frac{1}{2}", "0.5"),
        ("(x-1)(x+1)", "x^2-1"),
        (r"3\sqrt{13}", r"\sqrt{117}"),
        ("x=1", "1"),
    ):
        same_answer(gold, written)


def same_answer(gold: str, written: str, error: Fraction | None = None) -> bool:
    """Return whether an answer is the reference answer.

    Args:
        gold: Reference answer, without the box around it.
        written: Answer to compare.
        error: Maximum difference of two numbers; None for the usual rule.

    Returns:
        Whether it is. Answers that cannot be read are the same only if their texts are.
    """
    if len(gold) > MAX_CHARACTERS:
        return gold.strip() == written.strip()
    if len(written) > ROOM + TIMES * len(gold):
        return False
    known, given = parse_number(gold), parse_number(written)
    if known is not None and given is not None and "%" not in gold + written:
        return _near(known, given, _slack(gold), _slack(written), error)
    gold, written = _spelled(gold), _spelled(written)
    if not gold or not written or bool(_DENIAL.search(gold)) != bool(_DENIAL.search(written)):
        return False
    if max(mathtext.depth(gold), mathtext.depth(written)) > MAX_DEPTH:
        return compact(gold) == compact(written)
    return _same(mathtext.unwrapped(gold), mathtext.unwrapped(written), error)


@lru_cache(maxsize=4096)
def _spelled(text: str) -> str:
    if _CALCULATES.search(text.strip("* ")) and "\\" not in text:
        text = python_numbers.as_latex(text) or text
    return spelled(text)


def _same(gold: str, written: str, error: Fraction | None) -> bool:
    """Return whether two normalized answers are the same."""
    if compact(gold) == compact(written):
        return True
    if _contradicts(written):
        return False
    gold, written = _calculated(gold), _calculated(written)
    sets = _same_sets(gold, written)
    if sets is not None:
        return sets
    (name, value), (other, against) = assignment(gold), assignment(written)
    relations = _is_relation(gold), _is_relation(written)
    if name and name == other and _same_form(mathtext.form(value), mathtext.form(against), error):
        return True
    if all(relations):
        return _same_relation(relation(gold), relation(written), error)
    if (relations[0] and not name) or (relations[1] and not other) or (name and other and name != other):
        return False
    return _same_form(mathtext.form(value), mathtext.form(against), error)


def _contradicts(text: str) -> bool:
    """Return whether an equation of three sides or more equates different numbers: x = 6 = 5."""
    found = relation(text)
    if len(found.signs) < 2 or set(found.signs) != {"="}:
        return False
    numbers = [side for side in found.sides if "." not in side and is_constant(side)]
    return any(not _same_one(numbers[-1], number, None) for number in numbers[:-1])


def _calculated(text: str) -> str:
    """Return the last side of a true equation between numbers: 7 for 3 + 4 = 7."""
    found = relation(text)
    if not found.signs or set(found.signs) != {"="} or not all(map(is_constant, found.sides)):
        return text
    *sides, last = found.sides
    return last if all(_same_one(last, side, None) for side in sides) else text


def _is_relation(text: str) -> bool:
    return len(mathtext.split(text)) == 1 and bool(relation(text).signs)


def _same_sets(gold: str, written: str) -> bool | None:
    """Return whether two sets of real numbers are the same; None if one is not clearly a set, or not of numbers."""
    if not (mathsets.is_about_sets(gold) or mathsets.is_about_sets(written)):
        return None
    names, others = mathsets.variables(gold), mathsets.variables(written)
    if len(names | others) > 1:
        return None
    left, right = mathsets.real_set(gold), mathsets.real_set(written)
    return None if left is None or right is None else left == right


def _same_relation(gold: Relation, written: Relation, error: Fraction | None) -> bool:
    """Compare two equations, inequalities or chains of them, one of which may be written from right to left."""
    pairs = (gold, written), (gold, written.flipped())
    return any(_same_chain(a, b) or _same_sides(a, b, error) for a, b in pairs)


def _same_sides(gold: Relation, written: Relation, error: Fraction | None) -> bool:
    """Return whether two relations have the same signs between the same sides."""
    if gold.signs != written.signs:
        return False
    return all(
        _same_form(mathtext.form(a), mathtext.form(b), error) for a, b in zip(gold.sides, written.sides, strict=True)
    )


def _same_chain(gold: Relation, written: Relation) -> bool:
    r"""Return whether each link is a nonzero multiple of the same link of the other: y = 2x - 3 and 2x - y - 3 = 0."""
    if len(gold.signs) != len(written.signs):
        return False
    links = zip(_links(gold), _links(written), strict=True)
    return all(_same_link(sign, tree, other, against) for (tree, sign), (against, other) in links)


def _links(found: Relation) -> list[tuple[Tree | None, str]]:
    """Return the difference of the sides at each sign."""
    trees = [_tree(side) for side in found.sides]
    differences = []
    for left, right in pairwise(trees):
        known = left is not None and right is not None
        differences.append(("+", left, ("*", Fraction(-1), right)) if known else None)
    return list(zip(differences, found.signs, strict=True))


def _same_link(sign: str, tree: Tree | None, other: str, against: Tree | None) -> bool:
    if tree is None or against is None:
        return False
    factor = formulas.ratio(against, tree)
    if factor is None or not formulas.is_real(factor):
        return False
    if sign in ORDERS and factor < 0:
        sign = Relation(("", ""), (sign,)).flipped().signs[0]
    return sign == other and sign in (*ORDERS, "=", "\\ne")


def _same_form(gold: Form, written: Form, error: Fraction | None) -> bool:
    if gold.kind == written.kind == "one":
        return _same_one(gold.parts[0], written.parts[0], error)
    if len(gold.parts) != len(written.parts):
        return False
    kinds = {gold.kind, written.kind}
    if kinds <= {"one", "list"} or kinds == {"union"}:
        return _same_members(gold.parts, written.parts, error)
    if kinds == {"tuple", "list"}:  # brackets may be missing on one side, except those of a set or an interval
        if {gold.brackets, written.brackets} & {"{}", "(]", "[)"} or (gold.brackets == "[]" and len(gold.parts) == 2):
            return False
        return _same_in_order(_in_order_of_names(gold.parts), _in_order_of_names(written.parts), error)
    if kinds == {"tuple"} and len(gold.parts) > 2:  # not an interval: (1,2,3) and [1,2,3] are the same vector
        return _same_in_order(gold.parts, written.parts, error)
    if kinds == {"tuple", "matrix"}:
        return _is_vector(gold) and _is_vector(written) and _same_in_order(gold.parts, written.parts, error)
    if kinds in ({"tuple"}, {"matrix"}):
        return gold.brackets == written.brackets and _same_in_order(gold.parts, written.parts, error)
    return False


def _in_order_of_names(parts: Sequence[str]) -> Sequence[str]:
    """Return named coordinates in alphabetical order: y=3, x=2 is (2,3)."""
    names = [assignment(part)[0] for part in parts]
    if len(set(names)) < len(names) or not all(len(name) == 1 for name in names):
        return parts
    return [part for _, part in sorted(zip(names, parts, strict=True))]


def _is_vector(form: Form) -> bool:
    """Return whether a form is a tuple (not a half-open interval), or a matrix of one column or one row."""
    if form.kind == "tuple":
        return form.brackets in ("()", "[]")
    return bool(re.fullmatch(r"1(x1)*|\d+", form.brackets))


def _same_in_order(gold: Sequence[str], written: Sequence[str], error: Fraction | None) -> bool:
    return all(_same(a, b, error) for a, b in zip(gold, written, strict=True))


def _same_members(gold: Sequence[str], written: Sequence[str], error: Fraction | None) -> bool:
    """Return whether each member of one has its own partner in the other; members with the same text are partners."""
    wanted, found = Counter(map(compact, gold)), Counter(map(compact, written))
    rest, free = list((wanted - found).elements()), list((found - wanted).elements())
    if len(rest) > MAX_MEMBERS:
        return False
    for member in rest:
        partner = next((index for index, other in enumerate(free) if _same(member, other, error)), None)
        if partner is None:
            return False
        del free[partner]
    return True


def _same_one(gold: str, written: str, error: Fraction | None) -> bool:
    """Compare two single things: words, a time, a ratio, a number, a formula."""
    time, other_time = _clock(gold), _clock(written)
    if time and other_time and (same := _same_time(time, other_time)) is not None:
        return same
    word, other = mathtext.words(gold), mathtext.words(written)
    if word is not None or other is not None:
        return _word(gold) == _word(written)
    (gold, share), (written, against) = (mathtext.without_units(each.removeprefix("+")) for each in (gold, written))
    if compact(gold) == compact(written):
        return True
    if ":" in gold + written:
        return _same_ratio(_parts(gold), _parts(written))
    if share == against:
        return _same_value(gold, written, error)
    percentage, plain = (gold, written) if share else (written, gold)
    return _same_value(percentage, plain, error) or _same_value(rf"\frac{{{percentage}}}{{100}}", plain, error)


def _word(text: str) -> str:
    found = mathtext.words(text)
    return (text.strip().lower() if found is None else found).strip("()")


def _clock(text: str) -> re.Match[str] | None:
    """Return the match of a time of day: 12:00, 4:30 p.m., 9 a.m."""
    match = _CLOCK.fullmatch(re.sub(r"\\text\{([^{}]*)\}", r"\1", text).strip())
    return match if match and (match[2] or match[4]) else None


def _same_time(gold: re.Match[str], written: re.Match[str]) -> bool | None:
    """Return whether two times are the same; None if they may be ratios. One side may omit a.m. or p.m."""
    a, b = ([int(each[n] or 0) for n in (1, 2, 3)] for each in (gold, written))
    halves = {each[4].lower() for each in (gold, written) if each[4]}
    if a == b:
        return len(halves) < 2
    return False if any(each[3] or each[4] or each[2][0] == "0" for each in (gold, written)) else None


def _parts(ratio: str) -> list[Tree | None]:
    parts = ratio.split(":") if ":" in ratio else [ratio, "1"]
    return [_tree(part.strip()) for part in parts]


def _same_ratio(gold: list[Tree | None], written: list[Tree | None]) -> bool:
    """Return whether two ratios of two or more numbers are proportional; one with a zero part equals no other."""
    if len(gold) != len(written) or None in gold or None in written:
        return False
    if any(formulas.is_zero(part) for part in (*gold, *written)):
        return False
    products = zip(gold, written, strict=True)
    return all(_same_tree(("*", a, written[0]), ("*", b, gold[0]), False, None) for a, b in products)


def _same_value(gold: str, written: str, error: Fraction | None) -> bool:
    (digits, base), (others, against) = _based(gold), _based(written)
    if base or against:  # one side may omit it
        return digits == others and (not base or not against or base == against)
    a, b = _number(gold), _number(written)
    if a is not None and b is not None:
        return _near(a, b, _slack(gold), _slack(written), error)
    left, right = _tree(gold), _tree(written)
    if left is None or right is None:
        return False
    return _same_tree(left, right, "." in gold + written, error)


def _same_tree(gold: Tree, written: Tree, decimals: bool, error: Fraction | None) -> bool:
    names = symbols(gold), symbols(written)
    if any({name for name in one - other if name.startswith("\\text")} for one, other in (names, names[::-1])):
        return False  # words are not variables that may cancel: \text{not} \cdot 0
    if names[0] or names[1]:
        return formulas.same_function(gold, written)
    return formulas.same_constant(gold, written, decimals, error)


def _based(text: str) -> tuple[str, str]:
    """Return the digits of 52_{8} and its base; the base is "" if there is none."""
    match = _BASED.fullmatch(compact(text))
    base = _BASES.get(match[2], match[2]) if match else ""
    if not match or not base.isdigit() or int(base) < 2 or not re.search("[0-9]", match[1]):
        return text, ""
    return match[1], base


@lru_cache(maxsize=4096)
def _number(text: str) -> Fraction | None:
    r"""Return the number that a text is, such as 1.2 \times 10^{3}; None if it is longer than `number` reads."""
    match = _SCIENTIFIC.fullmatch(text)
    if match and len(text) <= MAX_NUMBER:
        return Fraction(f"{match[1]}{match[2] or 1}") * Fraction(10) ** int(match[3] or match[4])
    return parse_number(text)


def _tree(text: str) -> Tree | None:
    """Return the tree of a formula in LaTeX, or of Python's arithmetic."""
    return parsed(python_numbers.as_latex(text) or text)


def _slack(text: str) -> Fraction | None:
    """Return one unit of the last digit of a decimal; None if the number is written exactly."""
    match = re.search(r"(?:[0-9]*\.([0-9]*)|[0-9](?=[eE]))", text)
    if not match:
        return None
    power = re.search(r"(?:[eE]|10\s*\^\s*\{?)([-+]?[0-9]{1,4})", text)
    return Fraction(10) ** ((int(power[1]) if power else 0) - len(match[1] or ""))


def _near(a: Fraction, b: Fraction, slack: Fraction | None, other: Fraction | None, error: Fraction | None) -> bool:
    if error is not None:
        return abs(a - b) <= error
    units = [each for each in (slack, other) if each is not None]
    return a == b if not units else abs(a - b) <= min(RELATIVE * max(abs(a), abs(b)), *units)
