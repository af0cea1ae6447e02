r"""Equations, inequalities and assignments: their sides, and the left sides that are only a name.

`x = 5`, `f(x) = 2x`, `|AB| = 3`, `AB:BC = 2` and `x \in [1,2]` give a value a name; `2x + 3y = 6` does not: it means
something else than 6.
"""

import re
from dataclasses import dataclass

from gvpo.rewards.math import text as mathtext
from gvpo.rewards.math.parse import parsed, symbols
from gvpo.rewards.math.spelling import compact

_RELATION = re.compile(
    r"\\(?:le|ge|ne|in|approx|equiv|sim|propto|to|subset|subseteq|implies|iff|Rightarrow|Leftrightarrow)(?![A-Za-z])|<|>|:?=|\\ll(?![a-z])"
)
_SCRIPTS = r"(?:_\{[^{}]*(?:\{[^{}]*\})?[^{}]*\}|\^\{-1\}|\^\{\*\}|\^\*|')*"
_NOT_LETTERS = r"sin|cos|tan|cot|sec|csc|log|ln|sqrt|frac|pi(?![A-Za-z])|text|lfloor|lceil|arc|angle"
_LETTER = rf"(?:[A-Za-z]|\\(?!{_NOT_LETTERS})[A-Za-z]+(?:\{{[A-Za-z]+\}})?)"
_SIMPLE = rf"(?:{_LETTER}{_SCRIPTS}|\\text\{{[^{{}}]*\}}{_SCRIPTS})"
_POINTS = r"(?:[A-Z](?:_\{\w+\}|')*){2,4}"
_ARROWS = r"overline|overrightarrow|vec|widehat|hat|bar"
_SEGMENT = rf"(?:\\(?:{_ARROWS})\{{{_POINTS}\}}|m?\\angle ?(?:{_POINTS}|\w)|\\triangle ?{_POINTS}|\|{_POINTS}\|)"
_NORM = rf"(?:\\\|[^|]*\\\||\|\\(?:vec|mathbf|overrightarrow|overline)\{{\w+\}}\||\[{_POINTS}\])"
_ARGUMENTS = r"\((?:[^()]|\([^()]*\))*\)"
_CALL = (
    rf"(?:[fghFGHPpqQVWN]|\\(?:phi|psi|Phi|Psi|mathbb\{{[EP]\}}|text\{{[^{{}}]*\}})|E|Var){_SCRIPTS}(?:{_ARGUMENTS}|\[[^\[\]]*\])"
    rf"|{_LETTER}{_SCRIPTS}\((?:[A-Za-z]|\d+)(?:,(?:[A-Za-z]|\d+))*\)"
)
_NAME = rf"(?:{_CALL}|{_SEGMENT}|{_NORM}|{_SIMPLE})"
_RATED = rf"(?:{_NAME}|{_POINTS}|[A-Za-z]{{1,2}})"
_RATIO = rf"(?:{_RATED}(?:[:/]{_RATED})+|\\frac\{{{_RATED}\}}\{{{_RATED}\}})"
_TUPLE = rf"[(\[]{_NAME}(?:,{_NAME})*[)\]]|{_NAME}(?:,{_NAME})+"
_IS_NAME = re.compile(rf"{_NAME}|{_RATIO}|{_TUPLE}|answer|ans|area|volume|slope|sum|total|length|time|cost")
_NAMES_A_NUMBER = re.compile(
    rf"{_POINTS}|\|[A-Z]\||\\(?:sin|cos|tan|cot|sec|csc|det|deg|dim|ln|log|gcd|lcm|max|min){_SCRIPTS}(?:\^\{{\d\}})?"
    rf" ?(?:\\angle ?)?(?:{_SIMPLE}|{_POINTS}|{_ARGUMENTS})"
)
_FLIPPED = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le"}
ORDERS = frozenset(_FLIPPED)


@dataclass(frozen=True)
class Relation:
    """A text split at its relation signs.

    Args:
        sides: Texts between the signs; the text itself if there is no sign.
        signs: The signs, one fewer than sides.
    """

    sides: tuple[str, ...]
    signs: tuple[str, ...] = ()

    def flipped(self) -> "Relation":
        """Return the same relation from right to left: a < b as b > a."""
        return Relation(self.sides[::-1], tuple(_FLIPPED.get(sign, sign) for sign in self.signs[::-1]))


def relation(text: str) -> Relation:
    r"""Return the sides and signs of a text, with rounded values dropped: of 2/3 \approx 0.67, 2/3 is kept."""
    sides, signs, start = [], [], 0
    for match in _RELATION.finditer(mathtext.level_zero(text)):
        sides.append(text[start : match.start()].strip())
        identical = match[0] == ":=" or (match[0] == "\\equiv" and "mod" not in text)
        signs.append("=" if identical else match[0])
        start = match.end()
    sides.append(text[start:].strip())
    if signs and signs[0] in ("=", "\\approx") and not sides[0]:
        sides, signs = sides[1:], signs[1:]
    return _exact(sides, signs)


def _exact(sides: list[str], signs: list[str]) -> Relation:
    r"""Drop rounded values; `x \approx 11` gives x the value 11."""
    if "\\approx" in signs:
        at = signs.index("\\approx")
        if at > 0 or not is_name(sides[0]):
            sides, signs = sides[: at + 1], signs[:at]
        else:
            sides, signs = sides[:2], ["="]
    return Relation(tuple(sides), tuple(signs))


def named(found: Relation) -> tuple[str, str] | None:
    r"""Return the name and the value of `x=5`, `5=x`, `x=3+4=7`, `f(x)=2x` or `x \in [1,2]`; None for anything else."""
    if not found.signs or not all(found.sides):
        return None
    first, last = found.sides[0], found.sides[-1]
    if set(found.signs) <= {"="} or found.signs == ("\\in",):
        if is_name(first) or (is_number_name(first) and is_constant(last)):
            return _key(first), last
        if len(found.sides) == 2 and found.signs == ("=",) and is_name(last) and is_constant(first):
            return _key(last), first
    return None


def _key(name: str) -> str:
    return compact(mathtext.unwrapped(name))


def assignment(text: str) -> tuple[str, str]:
    r"""Return the name and the value of `x=5`; the name is "" if there is none."""
    if len(mathtext.split(text)) > 1:
        return _named_list(text)
    found = relation(text)
    if not found.signs:
        return "", found.sides[0]
    return named(found) or ("", text)


def _named_list(text: str) -> tuple[str, str]:
    """Return the name before a list of values, as in x = 1, 2, and the list."""
    first, *others = mathtext.split(text)
    found = relation(first)
    value = named(found)
    if value is None or found.signs == () or any(relation(each).signs for each in others):
        return "", text
    return value[0], text[text.index(first) + first.rindex(value[1]) :].strip()


def is_name(text: str) -> bool:
    r"""Return whether a side is only a name: x, a_{1}, |AB|, f(x), P(X=1), AB:BC, (x,y)."""
    text = compact(mathtext.unwrapped(text))
    return len(text) < 200 and text not in ("e", "i", "\\pi", "\\infty") and bool(_IS_NAME.fullmatch(text))


def is_number_name(text: str) -> bool:
    r"""Return whether a side names a number if the other side is a number: AB = 9, \cos\theta = 3/5."""
    text = compact(text)
    return len(text) < 200 and bool(_NAMES_A_NUMBER.fullmatch(text))


def is_constant(text: str) -> bool:
    """Return whether a text is a number, or a formula without a variable."""
    tree = parsed(mathtext.without_units(text)[0])
    return tree is not None and not symbols(tree)
