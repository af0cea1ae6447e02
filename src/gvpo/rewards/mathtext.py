r"""The text of mathematical answers: one spelling of each thing, and what an answer is made of.

Knows LaTeX's brackets, commas and units; no mathematics (that is mathvalues.py).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

_REMOVED = re.compile(
    r"\\(?:left|right|[bB]igg?[lr]?)(?![A-Za-z])\.?"
    r"|\\(?:displaystyle|limits|quad|qquad)(?![A-Za-z])|\\[!;:\[\]]|\\\(|\\\)|\$|~"
)
_RULES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\\$|−", lambda match: "-" if match.group() == "−" else ""),  # noqa: RUF001
        (r"(?<=\d)(?:\{,\}|,\\!|\\,)\s*(?=\d{3})", ""),  # thousands: 10{,}000, 10,\!000, 10\,000
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\l?dots(?![A-Za-z])", r"\\ldots"),
        (r"\\(?:geq|geqslant)(?![A-Za-z])|≥", r"\\ge"),
        (r"\\(?:leq|leqslant)(?![A-Za-z])|≤", r"\\le"),
        (r"\\(?:lbrace|\{)", r"\\{"),
        (r"\\(?:rbrace|\})", r"\\}"),
        (r"\\(?:mbox|textrm|textbf|textit|textnormal|mathrm|mathbf|operatorname|rm)\s*\{", r"\\text{"),
        (r"\\text\{\s*,?\s*(?:and|or)\s*,?\s*\}|\s,?(?:and|or)\s", ", "),
        (r"π", r"\\pi "),
        (r"∞|(?<![A-Za-z\\])(?:inf|infinity)(?![A-Za-z])", r"\\infty "),
        (r"√", r"\\sqrt"),
        (r"∪", r"\\cup "),  # noqa: RUF001
        (r"×", r"\\times "),  # noqa: RUF001
        (r"°|\\degrees?(?![A-Za-z])", r"^\\circ"),
        (r"\^\s*\{\s*\\circ\s*\}", r"^\\circ"),
        (r"\\frac\s*([0-9A-Za-z])\s*(?=[0-9A-Za-z{\\])", r"\\frac{\1}"),
        (r"\\frac\s*(\{[^{}]*\})\s*([0-9A-Za-z])", r"\\frac\1{\2}"),
        (r"\\sqrt\s*([0-9A-Za-z])", r"\\sqrt{\1}"),
        (r"([_^])\s*\{\s*([0-9A-Za-z])\s*\}", r"\1{\2}"),
        (r"([_^])\s*([0-9A-Za-z])", r"\1{\2}"),
        (r"\\[, ]|\s+", " "),
    )
]
_TOKEN = re.compile(r"\\[{}]|[()\[\]{},;]")
_OPENING, _CLOSING = ("(", "[", "{", "\\{"), (")", "]", "}", "\\}")
_THOUSANDS = re.compile(r"(?<![0-9.,(\[{])[0-9]{1,3}(?:,[0-9]{3})+(?!,?[0-9])")
_MATRIX = re.compile(r"\\begin\{([pb]matrix|array)\}(?:\{[lcr|]*\})?(.*)\\end\{\1\}")
_NAME = r"(?:[A-Za-z]|\\[A-Za-z]+)\s*(?:_\{[^{}]*\})?'*\s*(?:\(\s*[A-Za-z, ]*\))?"
_ASSIGNED = re.compile(rf"({_NAME}|\(\s*{_NAME}(?:,\s*{_NAME})*\s*\))\s*(?:=|\\in(?![A-Za-z]))(?!.*[=<>])\s*(.+)")
_UNITS = (
    "degrees?|radians?|percent|meters?|metres?|kilometers?|kilometres?|centimeters?|inch(?:es)?|feet|foot|ft|miles?|yards?"
    "|mm|cm|km|dm|kg|mg|grams?|pounds?|lbs?|ounces?|oz|seconds?|secs?|minutes?|mins?|hours?|hrs?|days?|weeks?|months?|years?"
    "|mph|kmh|km/h|m/s|cents?|dollars?|euros?|rupees?|units?|liters?|litres?|gallons?|people|students?|ways?|times|points?"
    "|Hz|kHz|MHz|GHz|eV|keV|MeV|GeV|nm|Pa|kPa|mol|kJ|rad"
)
_POWER = r"(?:\s*\^\s*\{?\s*\d\s*\}?)?"
_UNIT_AT_END = re.compile(
    rf"(?<=[0-9}})\].%])\s*(?:\\text\{{[^{{}}]*\}}{_POWER}|\s(?:square |cubic |sq\.? )?(?:{_UNITS}){_POWER}"
    rf"|(?:{_UNITS})(?![A-Za-z]){_POWER}|\^\\circ(?:\s*[CF])?)\s*$"
)
_PERCENT = re.compile(r"\s*(?:\\?%|\\text\{\s*(?:percent|\\?%)\s*\}|\bpercent)\s*$")


@dataclass(frozen=True)
class Form:
    r"""What an answer is made of.

    Args:
        parts: its members; the answer itself where it is a single thing.
        kind: "one", "list" (1,2 or \{1,2\}), "tuple" ((1,2), or an interval), "union" or "matrix".
        brackets: of a tuple, "(]"; "{}" of a set; rows x columns of a matrix; else "".
    """

    parts: tuple[str, ...]
    kind: str = "one"
    brackets: str = ""


def spelled(text: str) -> str:
    r"""`text` with one spelling for each thing: no $, \left or \!, \frac43 as \frac{4}{3}, \dfrac as \frac."""
    for pattern, replacement in _RULES[:2]:
        text = pattern.sub(replacement, text)
    text = _REMOVED.sub("", text)
    for pattern, replacement in _RULES[2:]:
        text = pattern.sub(replacement, text)
    return text.strip().removesuffix(".").strip()


def compact(text: str) -> str:
    """`text` without white space, but for one space between two letters or two digits."""
    return re.sub(r"(?<![0-9A-Za-z]) +| +(?![0-9A-Za-z])", "", text)


def depth(text: str) -> int:
    """How deep its brackets are nested."""
    return max((level for _, _, level in _brackets(text)), default=0)


def assignment(text: str) -> tuple[str, str]:
    r"""The name and the value of `x=5`, `f(x)=2x` or `x \in [1,2]`; the name is "" where there is none.

    Of an exact value and a rounded one, `2/3 \approx 0.67`, it is the exact one.
    """
    exact, _, rounded = text.partition("\\approx")
    text = exact.strip() or rounded.strip()
    match = _ASSIGNED.fullmatch(text)
    return (compact(match[1]), match[2]) if match else ("", text)


def without_units(text: str) -> tuple[str, bool]:
    """`text` without the unit, degree or percent sign at its end, and whether it was a percentage."""
    share = _PERCENT.sub("", text)
    if share != text and share:
        return share.strip(), True
    bare = _UNIT_AT_END.sub("", text).strip()
    return (bare or text), False


def words(text: str) -> str | None:
    r"""The words of an answer that is \text{...} as a whole, in lower case; None if it is not."""
    match = re.fullmatch(r"\s*\\text\{([^{}]*)\}\s*", text)
    return " ".join(match[1].split()).strip(" .").lower() if match else None


def form(text: str) -> Form:
    """What an answer is made of. 58,500 is a number; a list of two is 58, 500."""
    return _form(_THOUSANDS.sub(lambda match: match.group().replace(",", ""), text))


def _form(text: str) -> Form:
    parts = _split(text)
    if len(parts) > 1:
        return Form(tuple(each for part in parts for each in _signs(part)), "list")
    enclosed = _enclosed(text)
    if enclosed is not None:
        return _bracketed(text, *enclosed)
    if "\\cup" in text:
        return Form(tuple(part.strip() for part in text.split("\\cup")), "union")
    matrix = _MATRIX.fullmatch(text)
    if matrix:
        rows = [row.split("&") for row in matrix[2].split("\\\\") if row.strip()]
        return Form(tuple(cell.strip() for row in rows for cell in row), "matrix", "x".join(str(len(r)) for r in rows))
    signs = _signs(text)
    return Form(signs, "list") if len(signs) > 1 else Form((text,))


def _bracketed(text: str, opening: str, inner: str, closing: str) -> Form:
    parts = _split(inner)
    if opening == "\\{":
        return Form(tuple(each for part in parts for each in _signs(part)), "list", "{}")
    if len(parts) > 1 and opening in "([":
        return Form(parts, "tuple", opening + closing)
    if opening == "(" and closing == ")":
        return _form(inner.strip())
    return Form((text,))


def _signs(text: str) -> tuple[str, ...]:
    r"""Both values of a \pm."""
    if text.count("\\pm") != 1:
        return (text,)
    upper, lower = text.replace("\\pm", "+"), text.replace("\\pm", "-")
    return upper.strip().removeprefix("+").strip(), lower


def _split(text: str) -> tuple[str, ...]:
    """`text` cut at the commas (or semicolons) outside all brackets."""
    parts, start = [], 0
    for position, token, level in _brackets(text):
        if level == 0 and token in ",;":
            parts.append(text[start:position])
            start = position + 1
    parts.append(text[start:])
    return tuple(part.strip() for part in parts if part.strip())


def _enclosed(text: str) -> tuple[str, str, str] | None:
    """The opening, the inside and the closing of brackets around all of `text`."""
    tokens = [each for each in _brackets(text) if each[1] not in ",;"]
    if not tokens or tokens[0][0] != 0 or tokens[0][1] not in _OPENING or tokens[0][1] == "{":
        return None
    closed = next(((position, token) for position, token, level in tokens[1:] if level == 0), None)
    if closed is None or closed[0] + len(closed[1]) != len(text):
        return None
    return tokens[0][1], text[len(tokens[0][1]) : closed[0]], closed[1]


def _brackets(text: str) -> Iterator[tuple[int, str, int]]:
    """Each bracket, comma and semicolon: where it is, what it is, how deep it is (a closing one: after it)."""
    level = 0
    for match in _TOKEN.finditer(text):
        token = match.group()
        level += (token in _OPENING) - (token in _CLOSING)
        yield match.start(), token, level
