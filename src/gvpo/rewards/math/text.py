r"""The structure of a mathematical answer: members, brackets, rows, words and units.

Reads LaTeX's brackets, commas and units, in the normalized spelling of spelling.py; contains no mathematics.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from gvpo.rewards.math.python_numbers import GREEK

_TOKEN = re.compile(r"\\[{}]|\\langle(?![A-Za-z])|\\rangle(?![A-Za-z])|\\begin\s*\{|\\end\s*\{|[()\[\]{},;]")
_OPENING, _CLOSING = ("(", "[", "{", "\\{", "\\langle"), (")", "]", "}", "\\}", "\\rangle")
_THOUSANDS = re.compile(r"(?<![0-9.,(\[{])[0-9]{1,3}(?:,[0-9]{3})+(?!,?[0-9])")
_MATRIX = re.compile(
    r"(?P<factor>[^,;&]*?)(?P<opening>[(\[|]?)\s*\\begin\s*\{(?P<kind>[pbvBV]?matrix\*?|smallmatrix|array|cases|aligned)\}"
    r"\s*(?:\[[^\]]*\]|\{[lcr|@\s{}]*\})?(?P<rows>(?:(?!\\begin).)*)\\end\s*\{(?P=kind)\}\s*[)\]|]?\s*"
    r"(?P<turned>\^\s*\{?\s*(?:T|\\top|\\intercal)\s*\}?)?"
)
_UNITS = (
    "degrees?|degs?|radians?|percent|per cent|pct|percentage points?|meters?|metres?|kilometers?|kilometres?"
    "|centimeters?|centimetres?|millimeters?|millimetres?|inch(?:es)?|in\\.|feet|foot|ft|miles?|yards?|yds?|mm|cm|km|dm|kg|mg|grams?|pounds?"
    "|mi|lbs?|ounces?|oz|seconds?|secs?|minutes?|mins?|hours?|hrs?|days?|weeks?|months?|years?|mph|kmh|km/h|kph|m/s|cents?"
    "|dollars?|bucks|euros?|rupees?|yen|USD|EUR|GBP|INR|JPY|CNY|RMB|units?|liters?|litres?|gallons?|acres?|people|students?"
    "|ways?|times|points?|Hz|kHz|MHz|GHz|eV|keV|MeV|GeV|nm|Pa|kPa|mol|kJ|rad|mL|ml|kW|MW|kWh|apples?|coins?|marbles?|pieces?"
)
_POWER = r"(?:\s*\^\s*\{?\s*-?\d\s*\}?)?"
_LATEX_UNIT = rf"(?:\\mu\s*)?\\text\{{(?:[^{{}}]|\{{[^{{}}]*\}})*\}}{_POWER}"
_UNIT_AT_END = re.compile(
    rf"(?:(?<=[0-9}})\].%!])|(?<=\\pi))\s*(?:{_LATEX_UNIT}(?:\s*(?:/|\\cdot)?\s*{_LATEX_UNIT}|\s*(?:/|\\cdot)\s*[A-Za-z]{{1,3}}\b{_POWER})*"
    rf"|\\frac\s*\{{\s*{_LATEX_UNIT}\s*\}}\s*\{{\s*{_LATEX_UNIT}\s*\}}"
    rf"|\s(?:square |cubic |sq\.? |cu\.? )?(?:{_UNITS}){_POWER}(?:\s*(?:/|per)\s*(?:{_UNITS}|[a-z]){_POWER})?"
    rf"|(?:{_UNITS})(?![A-Za-z]){_POWER}|\^\s*\\circ\s*(?:[CFK]|\\text\{{\s*[CFK]\s*\}})?|\\circ|\\(?:euro|pounds|cent|yen)(?![A-Za-z])|[€£¥₹₩¢]|℃|℉)\s*$"
)
_NO_THINGS = f"{GREEK}|sin|cos|tan|cot|sec|csc|log|exp|arc|sqrt|infinity|choose|mod|and|with"
_THINGS_AT_END = re.compile(
    rf"(?:(?<=[0-9}}])|(?<=\\pi))\s+(?!(?:{_NO_THINGS})|[^aeiou ]+(?:\s|$))[A-Z]?[a-z]{{4,}}"
    r"(?:\s+(?:[a-z]{2,}|a)){0,3}\s*$"
)
"""Plain words after a number: 10 books, 5 Newtons, 3 eggs per day."""
_CHANGES_THE_NUMBER = re.compile(
    r"\{\s*,|\b(?:or|not|no|if|when|unless|except|but|wrong|incorrect|at most|at least|minus|plus|squared|cubed"
    r"|than|less|fewer|below|negative|over|raised|divided|multiplied"
    r"|factorial|half|halves|thirds?|(?:four|fif|six|seven|eigh|nin|ten|twelf|hundred|thousand|million)ths?"
    r"|(?:hundred|thousand|[mbtr]{1,2}illion|dozen)s?)\b"
)
"""Words after a number that are not its unit: 5 or more, 5 million, 5 squared."""
_CURRENCY = re.compile(
    r"^(-?)\s*(?:[€£¥₹₩]|US\s*(?=\d)|(?:USD|EUR|GBP|Rs\.?|INR)\s*(?=[\d.])|\\(?:euro|pounds|yen)(?![A-Za-z]))\s*(?=\S)"
)
_PERCENT_WORDS = r"percent(?:age)?|per cent|pct\.?"
_PERCENT = re.compile(rf"\s*(?:\\?%|\\text\{{\s*(?:{_PERCENT_WORDS}|\\?%)\s*\}}|(?<![A-Za-z])(?:{_PERCENT_WORDS}))\s*$")
_ANGLE = re.compile(r"(?:\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])|\\text\{cis\}).*\\circ")
_WORDS = re.compile(
    r"[A-Za-z][a-z]{3,}|(?=.*[A-Za-z]{4})[A-Za-z]+(?:[ -][A-Za-z]+)+|[A-Z]{2,}|[Yy]es|YES|[Nn]o|NO|[Oo]dd"
)
_TURNED = re.compile(r"(?<=[)\]])\s*\^\s*\{?\s*(?:T|\\top|\\intercal)\s*\}?$")
_ROW_BREAK = "\\\\"
_PLUS_MINUS = re.compile(r"\\(?:pm|mp)(?![A-Za-z])")


@dataclass(frozen=True)
class Form:
    r"""Structure of an answer.

    Args:
        parts: Its members; the answer itself if it is a single thing.
        kind: "one", "list" (1,2 or \{1,2\}), "tuple" ((1,2), or an interval), "union" or "matrix".
        brackets: Brackets of a tuple, such as "(]"; "{}" for a set; rows x columns of a matrix; else "".
    """

    parts: tuple[str, ...]
    kind: str = "one"
    brackets: str = ""


def depth(text: str) -> int:
    """Return how deep the brackets of `text` are nested."""
    return max((level for _, _, level in _brackets(text)), default=0)


def without_units(text: str) -> tuple[str, bool]:
    """Return `text` without the currency, unit, degree or percent sign around it, and whether it was a percentage."""
    share = _PERCENT.sub("", text)
    if share != text and share:
        return share.strip(), True
    if _ANGLE.search(text):
        return text, False
    amount = _CURRENCY.sub(r"\1", text)
    unit = _UNIT_AT_END.search(amount) or _THINGS_AT_END.search(amount)
    if unit is None or _CHANGES_THE_NUMBER.search(unit[0]):
        return amount.strip() or text, False
    return amount[: unit.start()].strip() or text, False


def words(text: str) -> str | None:
    r"""Return the words of an answer, in lower case: a whole \text{...}, or a word of letters; None for others."""
    text = unwrapped(text).strip()
    match = re.fullmatch(r"((?:\\text\{[^{}]*\}\s*)+)", text)
    inner = re.sub(r"\\text\{([^{}]*)\}", r"\1", text) if match else text
    if not match and not _WORDS.fullmatch(text):
        return None
    found = " ".join(inner.split()).strip(" .,").lower()
    return re.sub(r"(?<=[ap])\.(?=m\b)|(?<=[ap]\.m)\.", "", found)


def unwrapped(text: str) -> str:
    r"""Return the inside of braces around all of `text`, and of a \text{...} with a number or a list of letters."""
    while True:
        text = text.strip()
        match = re.fullmatch(r"\\text\{\s*([^{}]*[^{}\s])\s*\}(_\{[^{}]*\})?", text)
        if match and re.fullmatch(r"[-+]?\.?\d.*|[A-F]?\d+|[A-Z](?:\s*,\s*[A-Z])+", match[1]):
            return match[1] + (match[2] or "")
        enclosed = _enclosed(text)
        if enclosed is None or enclosed[0] != "{" or not enclosed[1].strip():
            return text
        inner = enclosed[1].rstrip(" .,;")
        text = rf"\{{{inner}\}}" if len(split(inner)) > 1 and not _THOUSANDS.fullmatch(inner) else inner


def form(text: str) -> Form:
    """Return the structure of an answer. 58,500 is a number; a list of two is 58, 500."""
    return _form(_THOUSANDS.sub(lambda match: match.group().replace(",", ""), unwrapped(text)))


def _form(text: str) -> Form:
    parts = split(text)
    if len(parts) > 1:
        return Form(tuple(each for part in parts for each in _signs(part)), "list")
    matrix = _MATRIX.fullmatch(text)
    if matrix:
        return _matrix(matrix)
    text = _TURNED.sub("", text)
    enclosed = _enclosed(text)
    if enclosed is not None:
        return _bracketed(text, *enclosed)
    if "\\cup" in text:
        return Form(tuple(part.strip() for part in text.split("\\cup")), "union")
    signs = _signs(text)
    return Form(signs, "list") if len(signs) > 1 else Form((text,))


def _matrix(found: re.Match[str]) -> Form:
    """Return the cells of a matrix, row by row; a factor before it multiplies each cell, and ^T transposes it."""
    rows = [[cell.strip() for cell in row.split("&")] for row in found["rows"].split(_ROW_BREAK) if row.strip()]
    if found["turned"] and len({len(row) for row in rows}) == 1:
        rows = [list(column) for column in zip(*rows, strict=True)]
    factor = found["factor"].strip().removesuffix("\\cdot").strip()
    factor = "-1" if factor == "-" else factor
    cells = tuple(f"({factor})({cell})" if factor else cell for row in rows for cell in row)
    other = (
        "|"
        if found["kind"][0] in "vV" or found["opening"] == "|"
        else found["kind"]
        if "matrix" not in found["kind"]
        else ""
    )
    return Form(cells, "matrix", other.replace("array", "") + "x".join(str(len(row)) for row in rows))


def _bracketed(text: str, opening: str, inner: str, closing: str) -> Form:
    parts = split(inner)
    if opening == "\\{":
        return Form(tuple(each for part in parts for each in _signs(part)), "list", "{}")
    if opening == "\\langle":
        return Form(parts, "tuple", "()") if len(parts) > 1 else Form((text,))
    if len(parts) > 1 and opening in "([" and closing in ")]":
        return Form(parts, "tuple", opening + closing)
    if opening == "(" and closing == ")":
        return _form(inner.strip())
    return Form((text,))


def _signs(text: str) -> tuple[str, ...]:
    r"""Return both values of a \pm."""
    if len(_PLUS_MINUS.findall(text)) != 1:
        return (text,)
    upper, lower = _PLUS_MINUS.sub("+", text), _PLUS_MINUS.sub("-", text)
    return re.sub(r"(^|[=(])\s*\+", r"\1", upper.strip()).strip(), lower


def split(text: str) -> tuple[str, ...]:
    """Return `text` split at the commas (or semicolons) outside all brackets."""
    parts, start = [], 0
    for position, token, level in _brackets(text):
        if level == 0 and token in ",;":
            parts.append(text[start:position])
            start = position + 1
    parts.append(text[start:])
    return tuple(part.strip() for part in parts if part.strip())


def level_zero(text: str) -> str:
    """Return `text` with everything inside brackets or bars replaced by spaces, so that positions stay the same."""
    kept, level, previous = [], 0, 0
    for position, token, after in _brackets(text):
        kept.append(text[previous:position] if level == 0 else " " * (position - previous))
        kept.append(" " * len(token) if token not in ",;" or level else token)
        previous, level = position + len(token), max(after, 0)
    kept.append(text[previous:] if level == 0 else " " * (len(text) - previous))
    return "".join(kept)


def _enclosed(text: str) -> tuple[str, str, str] | None:
    """Return the opening, the inside and the closing of brackets around all of `text`."""
    if not text.startswith(_OPENING):
        return None
    tokens = [each for each in _brackets(text) if each[1] not in ",;"]
    if not tokens or tokens[0][0] != 0 or tokens[0][1] not in _OPENING:
        return None
    closed = next(((position, token) for position, token, level in tokens[1:] if level == 0), None)
    if closed is None or closed[0] + len(closed[1]) != len(text):
        return None
    return tokens[0][1], text[len(tokens[0][1]) : closed[0]].strip(), closed[1]


def _brackets(text: str) -> Iterator[tuple[int, str, int]]:
    """Yield each bracket, comma and semicolon: its position, the token, and its depth (after a closing one)."""
    level = 0
    for match in _TOKEN.finditer(text):
        token = match.group()
        if token.startswith(("\\begin", "\\end")):
            level += 2 if token.startswith("\\begin") else 0  # the brace of its name, and what is inside
            continue
        level += (token in _OPENING) - (token in _CLOSING)
        yield match.start(), token, level
