r"""Normalized spelling of problems, so that the same problem has the same words in any notation.

    "Find  $\dfrac{1}{2}$ of 1,000."   and   "find $\frac12$ of 1000"   are both   find \frac 1 2 of 1000

Words, numbers, operators and brackets are kept, because they determine the question: 2+3 is not 2-3. Case, white space,
$, braces, quotes, LaTeX's spacing and fonts, and punctuation that is not between digits are dropped.
"""

import re
import unicodedata

from gvpo.rewards.math import spelling

_JOIN, _JOINED = re.compile(r"(?<![\\A-Za-z])(and|or)(?![A-Za-z])"), re.compile(r"\\(and|or)(?![A-Za-z])")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_DROPPED = re.compile(
    r"\\(?:text|textstyle|emph)(?![a-z])|\\[^a-z]|[${}\"`“”‘’~]|'(?!\()"  # noqa: RUF001
    r"|(?<!\d)[.,;:?]|[.,;:?](?!\s*\d)"
)
_ALONE = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"  # scripts without spaces: each sign is a word
_WORD = re.compile(rf"[{_ALONE}]|\\?[^\W\d_{_ALONE}]+|\d+|\S")


def words(text: str) -> tuple[str, ...]:
    """Return the normalized words of a text: words, LaTeX commands, numbers and single symbols."""
    joined = _JOIN.sub(r"\\\1", text)  # in an answer "1 and 2" is a list, "1, 2"; in a problem the word decides
    plain = unicodedata.normalize("NFKC", _JOINED.sub(r"\1", spelling.spelled_problem(joined))).lower()
    return tuple(_WORD.findall(_DROPPED.sub(" ", _THOUSANDS.sub("", plain))))
