r"""Normalization of mathematical answers: Unicode and LaTeX layout become plain LaTeX with one spelling.

`\dfrac43`, `\frac 4 3` and `{4 \over 3}` become `\frac{4}{3}`; `$`, `\left` and `\!` disappear; `½`, `x²`, `−` and
`０` become LaTeX; `1 000 000` and `10{,}000` become plain digits; `0.\overline{3}` becomes a fraction.
"""

import re
from collections.abc import Callable
from fractions import Fraction

from gvpo.rewards.math.python_numbers import GREEK
from gvpo.rewards.math.unicode_signs import as_ascii

_REMOVED = re.compile(
    r"\\(?:left|right|middle|[bB]igg?[lrm]?)(?![A-Za-z])\.?"
    r"|\\(?:displaystyle|textstyle|scriptstyle|limits|quad|qquad|nonumber|noindent|bf|rm|it|sf|tt|em|tiny|small|normalsize|[lL]arge|LARGE|[hH]uge)(?![A-Za-z])"
    r"|\\(?:[hv]space\*?|tag|label|color)\s*\{[^{}]*\}|\\h?phantom\s*(?:\{[^{}]*\}|.)"
    r"|\\[!;:>\[\]@/]|\\\(|\\\)|\$|~"
)
_WRAPPER = re.compile(
    r"\\(?:mathbf|boldsymbol|bm|mathsf|mathtt|mathnormal|mathit|underline|boxed|fbox|framebox|emph|ensuremath"
    r"|textcolor\s*\{[^{}]*\})\s*(?=\{)"
)
_LETTER = re.compile(r"\\(?:mathrm|text|operatorname)\s*\{\s*([eid])\s*\}")
_FOR_ALL = re.compile(r"(?:,|\\text\{\s*,?|\s)*\s*(?:for (?:all|every|any)\b|\\forall(?![A-Za-z])|only\s*\}?$).*$")
_ENVIRONMENT = re.compile(r"\\begin\s*\{")
_ANSWER_IS = re.compile(r"^\\text\{[^{}]*answer[^{}]*\}\s*:?\s*(?=\S)", re.IGNORECASE)
_LINES = re.compile(
    r"(?P<brace>\\left\s*\\\{\s*)?\\begin\s*\{(?:(?P<kind>(?:align(?:ed)?|gather(?:ed)?|equation|split|eqnarray)\*?)|(?P<system>cases|array))\}"
    r"\s*(?:\{[lcr\s]*\})?(?P<rows>(?:(?!\\begin).)*?)\\end\s*\{(?:(?P=kind)|(?P=system))\}(?(brace)\s*\\right\s*\.)"
)
_EQUATION = re.compile(r"[^&=]*(?:&\s*=|=\s*&?)[^&=]*")
_CONTINUED = re.compile(r"=|<|>|\\(?:le|ge|approx)")
_ROW_SPACE = re.compile(r"^\s*\[\s*-?[\d.]+\s*(?:pt|em|ex|mm|cm)\s*\]")
_POWERS = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_MULTIPLES = "|".join([*_POWERS, "dozen"])


def _multiplied(match: re.Match[str]) -> str:
    r"""Write 5 million as 5 \cdot 10^{6}; the unit after it is kept."""
    factor = f"10^{{{_POWERS[match[1]]}}}" if match[1] in _POWERS else "12"
    return rf" \cdot {factor}" + (rf"\text{{{match[2]}}}" if match[2].strip() else "")


_FIRST = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\\$", ""),
        (
            r"(?<=\d)(?:\{\s*,\s*\}|,\s*\\!|\\[, ](?!\s)|')(?:\\ |\s)*(?=\d{3}(?!\d))",
            "",
        ),  # thousands: 10{,}000, 10,\!000, 10\,000
        (r"(?<=[0-9])\{\.\}(?=[0-9])", "."),
        (r"(?<=\d)_(?=\d{3}(?:_|\b))(?<![0-9]{4}_)", ""),
    )
]
_RULES: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(?<![\d.,_^{])(\d{1,3})((?: +\d{3})+)(?![\d.]*\d|/)", lambda m: m[1] + m[2].replace(" ", "")),  # 1 000 000
        (r"(?<![\d.])\d{1,3}(?:\.\d{3}){2,}(?![\d.])", lambda m: m[0].replace(".", "")),
        (r"\\(?:[dtc]|s)?frac(?![A-Za-z])", r"\\frac"),
        (r"\\[dt]?binom(?![A-Za-z])", r"\\binom"),
        (r"\\(?:l|c)?dots[bcimo]?(?![A-Za-z])|\.\.\.+", r"\\ldots "),
        (r"\\(?:geq|geqslant|geqq)(?![A-Za-z])|>=", r"\\ge "),
        (r"\\(?:leq|leqslant|leqq)(?![A-Za-z])|<=", r"\\le "),
        (r"\\(?:neq|not\s*=)(?![A-Za-z])|!=", r"\\ne "),
        (r"\\lt(?![A-Za-z])", "<"),
        (r"\\gt(?![A-Za-z])", ">"),
        (r"\\(?:simeq|cong|doteq)(?![A-Za-z])|\\approxeq(?![A-Za-z])", r"\\approx "),
        (r"\\lbrack(?![A-Za-z])", "["),
        (r"\\rbrack(?![A-Za-z])", "]"),
        (r"\\(?:lbrace(?![A-Za-z])|\{)", r"\\{"),
        (r"\\(?:rbrace(?![A-Za-z])|\})", r"\\}"),
        (r"\\[lr]?vert(?![A-Za-z])", "|"),
        (r"\\[lr]?Vert(?![A-Za-z])|\\\|", r"\\|"),
        (
            r"\\(?:mbox|hbox|textrm|textbf|textit|textsf|texttt|textnormal|textup|mathrm|operatorname\*?|rm)\s*\{",
            r"\\text{",
        ),
        (r"\\text\s+\{", r"\\text{"),
        (
            r"\\text\{(?:\\ |[\s,])*(?:and|or)(?:\\ |[\s,])*\}|\s,?(?:and|or)\s|\\(?:lor|vee|land|wedge)(?![A-Za-z])"
            r"|\\text\{\s*,\s*\}",
            ", ",
        ),
        (
            r"\\(?:var|empty)?nothing(?![A-Za-z])|\\emptyset(?![A-Za-z])|\\\{\s*\\\}|\\text\{\s*empty set\s*\}",
            r"\\emptyset ",
        ),
        (r"\\(?:setminus|backslash|smallsetminus)(?![A-Za-z])", r"\\setminus "),
        (
            r"\\(?:Bbb|mathbf)\s*\{?\s*R\s*\}?|\\(?:R|Reals|reals|real)(?![A-Za-z])|\\mathbb\s*\{?\s*R\s*\}?",
            r"\\mathbb{R}",
        ),
        (
            r"^(?:\\text\{)?\s*[Aa]ll real(?: number)?s?(?: x)?,? except(?: for)?\s*\}?\s*(?:x *= *)?([^{}\\]+)$",
            r"\\mathbb{R} \\setminus \\{\1\\}",
        ),
        (r"(?<=[)\]}])\s*U\s*(?=[(\[]|\\\{)", r"\\cup "),
        (r"\\colon(?![A-Za-z])", ":"),
        (rf"(?<!\\text\{{)(?<![A-Za-z\\])({GREEK})(?![A-Za-z])", r"\\\1 "),
        (
            r"(?<!\\text\{)(?<![A-Za-z\\.])((?:arc|a)?(?:sin|cos|tan|cot|sec|csc)h?|ln|exp|log(?!\s*\())"
            r"(?=\s*[\\(^_0-9]|\s+[A-Za-z](?![A-Za-z]))",
            r"\\\1 ",
        ),
        (rf"(?<=[0-9}}])\s*\\text\{{\s*({_MULTIPLES})s?(?![A-Za-z])([^{{}}]*)\}}", _multiplied),
        (rf"(?<=[0-9}}])\s*({_MULTIPLES})s?(?![A-Za-z])()", _multiplied),
        (r"(?<![A-Za-z\\])(?:inf|infinity|oo)(?![A-Za-z])", r"\\infty "),
        (r"(?<![A-Za-z\\.])pi(?![A-Za-z])", r"\\pi "),
        (r"(?<![A-Za-z\\.])sqrt(?=\s*[({0-9])", r"\\sqrt "),
        (r"\\var(?=(?:phi|epsilon|theta|rho|sigma|pi)(?![A-Za-z]))", r"\\"),
        (
            r"\\(?:degrees?|degree|textdegree)(?![A-Za-z])|\^?\s*\{\s*\}\s*\^\s*\\circ|\^\s*\{\s*\\circ\s*\}",
            r"^\\circ ",
        ),
        (r"\^\s*\\prime(?![A-Za-z])|\^\s*\{\s*\\prime\s*\}", "'"),
        (r"\^\s*\{\s*\\prime\s*\\prime\s*\}", "''"),
        (r"([_^])\s*\{\s*([0-9A-Za-z])\s*\}", r"\1{\2}"),
        (r"\^\s*([0-9]+\.[0-9]+)", r"^{\1}"),
        (r"([_^])\s*([0-9]+|[A-Za-z])", r"\1{\2}"),
        (r"\\(?:,| |hfill(?![A-Za-z]))|\s+", " "),
    )
]
_OVER = re.compile(r"\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\\over(?![A-Za-z])([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}")
_CHOOSE = re.compile(r"\{([^{}]*)\\choose(?![A-Za-z])([^{}]*)\}")
_COMMAND = re.compile(r"\\(frac|binom|sqrt)(?![A-Za-z])\s*(\[[^\[\]]*\])?")
_ARGUMENT = re.compile(r"\s*(\\[A-Za-z]+|[0-9A-Za-z])")
_REPEATING = re.compile(
    r"(?<![0-9.])([0-9]*)\.([0-9]*)(?:\\(?:overline|bar|overset\{\.\})\s*(?:\{\s*([0-9]+)\s*\}|([0-9]))"
    r"|\(([0-9]+)\)|((?:\\dot\s*\{[0-9]\}[0-9]*)+)|\s*\\ldots)(?:\s*\\ldots)?"
)
_REVERSED = re.compile(r"\s*([\[\]()])([^\[\]]*[,;][^\[\]]*)([\[\]()])\s*")


def spelled(text: str) -> str:
    r"""Return `text` with one spelling for each thing: no $, \left or \!, \frac43 as \frac{4}{3}, \dfrac as \frac."""
    text = as_ascii(text)
    return text if text.isdigit() else _trimmed(_intervals(_respelled(text)))


def spelled_problem(text: str) -> str:
    """Return the text of a problem in the same spelling, with all of its sentences, even "for all x" at the end."""
    return _respelled(as_ascii(text))


def compact(text: str) -> str:
    """Return `text` without white space, except for one space between two letters or two digits."""
    return re.sub(r"(?<![0-9A-Za-z]) +| +(?![0-9A-Za-z])", "", text)


def _respelled(text: str) -> str:
    text = _LINES.sub(_lines, _single_backslashes(text))
    return "\\\\".join(map(_row, text.split("\\\\")))


def _single_backslashes(text: str) -> str:
    r"""Halve doubled backslashes, as in \\frac{1}{2}; keep those that separate the rows of a matrix."""
    if "\\\\" not in text:
        return text
    if re.search(r"\\\\begin\b", text) or not _ENVIRONMENT.search(text):
        return text.replace("\\\\", "\\")
    return text


def _lines(match: re.Match[str]) -> str:
    r"""Write the lines of aligned equations, or of a system, as a list; leave a function in cases unchanged."""
    rows = [row.strip(" ,;") for row in match["rows"].split("\\\\") if row.strip()]
    if match["system"] and not (
        (match["brace"] or match["system"] == "cases") and all(_EQUATION.fullmatch(row) for row in rows)
    ):
        return match[0]
    text = ""
    for row in (row.replace("&", " ").strip() for row in rows):
        text += f" {row}" if not text or _CONTINUED.match(row) else f", {row}"
    return text.strip()


def _row(text: str) -> str:
    """Normalize a text without row breaks: a row of a matrix, or a whole answer."""
    text = _ROW_SPACE.sub("", text)
    for first, spelling in _FIRST:
        text = first.sub(spelling, text)
    text = _LETTER.sub(r" \1", _WRAPPER.sub("", _REMOVED.sub("", text)))
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    if "\\over" in text or "\\choose" in text:
        text = _CHOOSE.sub(r"\\binom{\1}{\2}", _OVER.sub(r"\\frac{\1}{\2}", text))
    text = _with_braces(text)
    return _REPEATING.sub(_repeated, text) if "." in text else text


def _with_braces(text: str) -> str:
    r"""Put braces around the arguments of \frac, \binom and \sqrt."""
    start = 0
    while match := _COMMAND.search(text, start):
        position, arguments = match.end(), []
        for _ in range(1 if match[1] == "sqrt" else 2):
            argument, position = _argument(text, position)
            if argument is None:
                break
            arguments.append(f"{{{argument}}}")
        head = f"\\{match[1]}{match[2] or ''}"
        text = text[: match.start()] + head + "".join(arguments) + text[position:]
        start = match.start() + len(head)
    return text


def _argument(text: str, start: int) -> tuple[str | None, int]:
    """Return the next argument of a command, without its braces, and where it ends; None if there is none."""
    match = _ARGUMENT.match(text, start)
    if match:
        return match[1], match.end()
    position = start + len(text[start:]) - len(text[start:].lstrip())
    if not text.startswith("{", position):
        return None, start
    depth = 0
    for end in range(position, len(text)):
        if text[end] in "{}" and text[end - 1] != "\\":
            depth += 1 if text[end] == "{" else -1
            if depth == 0:
                return text[position + 1 : end].strip(), end + 1
    return None, start


def _repeated(match: re.Match[str]) -> str:
    r"""Write 0.1\overline{6}, 0.1(6) or 0.1666\ldots as a fraction; a decimal that does not repeat loses its dots."""
    whole, digits = match[1] or "0", match[2]
    period = next((group for group in match.groups()[2:5] if group), "")
    if match[6]:
        period = "".join(re.findall("[0-9]", match[6]))
    if not period:
        digits, period = _period(digits)
    if not period:
        return f"{whole}.{digits}" if digits else match[0]
    value = Fraction(int(whole + digits + period) - int(whole + digits), 10 ** len(digits) * (10 ** len(period) - 1))
    return str(value.numerator) if value.denominator == 1 else rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def _period(digits: str) -> tuple[str, str]:
    """Split the digits of 0.1666... into those before the period and the period; "" if no digits repeat."""
    for size in range(1, len(digits) // 2 + 1):
        period = digits[-size:]
        if digits.endswith(period * 2):
            head = digits
            while head.endswith(period):
                head = head[:-size]
            return head, period
    return digits, ""


def _intervals(text: str) -> str:
    """Write ]0,1[ as (0,1)."""
    if "]" not in text and "[" not in text:
        return text
    return "\\cup".join(_interval(piece) for piece in text.split("\\cup"))


def _interval(piece: str) -> str:
    match = _REVERSED.fullmatch(piece)
    if not match or (match[1] != "]" and match[3] != "["):
        return piece
    return f"{'(' if match[1] == ']' else match[1]}{match[2]}{')' if match[3] == '[' else match[3]}"


def _trimmed(text: str) -> str:
    r"""Remove Markdown's emphasis, and punctuation at the end."""
    text = _ANSWER_IS.sub("", text.strip())
    text = _FOR_ALL.sub("", text) or text
    for mark in ("**", "__", "*", "`", '"'):
        if len(text) > 2 * len(mark) and text.startswith(mark) and text.endswith(mark):
            text = text.removeprefix(mark).removesuffix(mark).strip()
    text = re.sub(r"(?:[.,;:\s]|(?<!\\)\\)+$", "", text)
    text = re.sub(r"^([A-Z])\)$", r"\1", text)
    return text.removeprefix("+").strip()
