r"""Instructions that a program can check: the 25 kinds of IFEval, each a function of a text and its record's keywords.

Names, keywords and counting rules are IFEval's, so its records can be used unchanged. The differences: words and
sentences are split by rules of this file (IFEval: nltk), keywords are text (IFEval: regular expressions), letters in
capitals are lower-cased to detect their language, and a text without any language follows no instruction about
language (IFEval: it follows all).

Reference: Zhou et al., Instruction-Following Evaluation for Large Language Models (arXiv:2311.07911), table 1.
"""

import inspect
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gvpo.errors import RewardError
from gvpo.rewards.verifiers.json_format import NOTHING, fenced, read_json

Check = Callable[..., bool]
"""Signature `check(text, **keywords)`: returns whether a text that is not empty follows the instruction."""

_RELATIONS = {"less than": operator.lt, "at least": operator.ge}
_WORD = re.compile(r"\w+")
_SPELLED = re.compile(r"\w+(?:['’.-]\w+)*")  # noqa: RUF001
_SENTENCE_END = re.compile(r"[.!?]+[\"'”’)\]*]*(?=\s|$)|[。！？]+")  # noqa: RUF001
_TITLE = re.compile(r"(?:^|\W)(?:mr|mrs|ms|dr|prof|st|vs|e\.g|i\.e|fig)$", re.IGNORECASE)
_ABBREVIATION = re.compile(r"(?:^|\W)(?:sr|jr|etc|inc|ltd|co|[a-z]\.[a-z])$", re.IGNORECASE)
_LETTER = re.compile(r"(?:^|(\w*)[^\w]+)([^\W\d_])$")
_NEXT = re.compile(r"\W*(\w+)")
_BEFORE_NAMES = re.compile(r"by|and|with|of|from|to|for|is|was")
_STARTERS = re.compile(
    r"an?|the|th[ie]se?|that|those|it|s?he|they|we|you|i|t?here|then|now|next|after|before|wh[a-z]{1,3}|how|if|but|and|so"
    r"|or|for|to|as|in|on|at|my|y?our|his|her|its|their|please|because|although|however|also|go|let|do|no|not|yes",
    re.IGNORECASE,
)
"""Words that begin sentences more often than they are names."""
_ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


def existence(text: str, keywords: Sequence[str]) -> bool:
    """Return whether all keywords occur, ignoring case."""
    return all(_times(keyword, text) > 0 for keyword in keywords)


def frequency(text: str, keyword: str, frequency: int, relation: str) -> bool:
    """Return whether a keyword occurs at least, or fewer than, N times, counting occurrences inside words."""
    return _holds(_times(keyword.strip(), text), relation, frequency)


def forbidden_words(text: str, forbidden_words: Sequence[str]) -> bool:
    """Return whether none of the words occurs as a word."""
    return not any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) for word in forbidden_words)


def letter_frequency(text: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    """Return whether a letter (or another character) occurs at least, or fewer than, N times, ignoring case."""
    return _holds(text.lower().count(letter.lower()), let_relation, let_frequency)


def response_language(text: str, language: str) -> bool:
    """Return whether the text is in a language, which is given by its two-letter code."""
    return language_of(text) == language


def number_sentences(text: str, num_sentences: int, relation: str) -> bool:
    """Return whether there are at least, or fewer than, N sentences."""
    return _holds(count_sentences(text), relation, num_sentences)


def number_paragraphs(text: str, num_paragraphs: int) -> bool:
    """Return whether there are N paragraphs separated by ***, none of them empty."""
    return _count_parts(text, r"\s?\*\*\*\s?") == num_paragraphs


def number_words(text: str, num_words: int, relation: str) -> bool:
    """Return whether there are at least, or fewer than, N words."""
    return _holds(len(_WORD.findall(text)), relation, num_words)


def nth_paragraph_first_word(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Return whether there are N paragraphs separated by empty lines, and the given one begins with a word."""
    paragraphs = [part.strip() for part in text.split("\n\n") if part.strip()]
    if len(paragraphs) != num_paragraphs or not 1 <= nth_paragraph <= num_paragraphs:
        return False
    first = paragraphs[nth_paragraph - 1].split()[0].lstrip("'\"")
    return re.split(r"[.,?!'\"]", first)[0].lower() == first_word.lower()


def number_placeholders(text: str, num_placeholders: int) -> bool:
    """Return whether there are at least N placeholders in square brackets."""
    return len(re.findall(r"\[.*?\]", text)) >= num_placeholders


def postscript(text: str, postscript_marker: str) -> bool:
    """Return whether a postscript begins with a marker such as P.S. or P.P.S; its dots count, its case does not."""
    marker = re.escape(postscript_marker.strip().lower()).replace(r"\.", r"\.\s?")
    marker = marker.removesuffix(r"\s?") if marker.endswith(r"\s?") else rf"{marker}(?!\w)"
    return re.search(rf"(?<!\w){marker}\W*\w", text.lower()) is not None


def number_bullet_lists(text: str, num_bullets: int) -> bool:
    """Return whether N lines begin with * or -."""
    return len(re.findall(r"^[ \t]*(?:\*[^*\n]|-).*$", text, re.MULTILINE)) == num_bullets


def constrained_response(text: str) -> bool:
    """Return whether the text contains "My answer is yes.", "... no." or "... maybe."."""
    return any(answer in text for answer in _ANSWERS)


def number_highlighted_sections(text: str, num_highlights: int) -> bool:
    """Return whether there are at least N highlights, *like this*, **like this** or ***like this***."""
    found = re.findall(r"\*\*([^\n*]+)\*\*|(?<!\*)\*(?!\*)([^\n*]+)\*(?!\*)", text)
    return sum(bool("".join(pair).strip()) for pair in found) >= num_highlights


def multiple_sections(text: str, section_spliter: str, num_sections: int) -> bool:
    """Return whether there are at least N sections that begin with a word and a number, such as "Section 1"."""
    return len(re.findall(rf"{re.escape(section_spliter.strip())}\s?\d+", text)) >= num_sections


def json_format(text: str) -> bool:
    """Return whether the whole text is JSON, with or without a fence."""
    return read_json(fenced(text).strip()) is not NOTHING


def title(text: str) -> bool:
    """Return whether there is a title in double angle brackets."""
    return any(found.strip("<> ") for found in re.findall(r"<<([^\n]+)>>", text))


def two_responses(text: str) -> bool:
    """Return whether there are two different responses, separated by six asterisks."""
    parts = [part.strip() for part in text.split("******")]
    return _count_parts(text, r"\*{6}") == 2 and len({part for part in parts if part}) == 2


def repeat_prompt(text: str, prompt_to_repeat: str) -> bool:
    """Return whether the text begins with the request, word for word, ignoring case."""
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def end_checker(text: str, end_phrase: str) -> bool:
    """Return whether the text ends with a phrase, ignoring case."""
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def quotation(text: str) -> bool:
    """Return whether the whole text is in double quotation marks."""
    bare = text.strip()
    return len(bare) > 1 and bare[0] == bare[-1] == '"'


def capital_word_frequency(text: str, capital_frequency: int, capital_relation: str) -> bool:
    """Return whether there are at least, or fewer than, N words in capitals."""
    return _holds(sum(word.isupper() for word in _SPELLED.findall(text)), capital_relation, capital_frequency)


def english_capital(text: str) -> bool:
    """Return whether the whole text is English in capitals."""
    return text.isupper() and language_of(text) == "en"


def english_lowercase(text: str) -> bool:
    """Return whether the whole text is English without capitals."""
    return text.islower() and language_of(text) == "en"


def no_comma(text: str) -> bool:
    """Return whether there is no comma."""
    return "," not in text


CHECKS: dict[str, Check] = {
    "keywords:existence": existence,
    "keywords:frequency": frequency,
    "keywords:forbidden_words": forbidden_words,
    "keywords:letter_frequency": letter_frequency,
    "language:response_language": response_language,
    "length_constraints:number_sentences": number_sentences,
    "length_constraints:number_paragraphs": number_paragraphs,
    "length_constraints:number_words": number_words,
    "length_constraints:nth_paragraph_first_word": nth_paragraph_first_word,
    "detectable_content:number_placeholders": number_placeholders,
    "detectable_content:postscript": postscript,
    "detectable_format:number_bullet_lists": number_bullet_lists,
    "detectable_format:constrained_response": constrained_response,
    "detectable_format:number_highlighted_sections": number_highlighted_sections,
    "detectable_format:multiple_sections": multiple_sections,
    "detectable_format:json_format": json_format,
    "detectable_format:title": title,
    "combination:two_responses": two_responses,
    "combination:repeat_prompt": repeat_prompt,
    "startend:end_checker": end_checker,
    "startend:quotation": quotation,
    "change_case:capital_word_frequency": capital_word_frequency,
    "change_case:english_capital": english_capital,
    "change_case:english_lowercase": english_lowercase,
    "punctuation:no_comma": no_comma,
}
"""The checks by their names in IFEval's `instruction_id_list`."""


def follows(text: str, instruction: str, keywords: Mapping[str, Any] | None) -> bool:
    """Return whether a text follows an instruction; an empty text follows none.

    Args:
        text: A completion.
        instruction: A key of `CHECKS`.
        keywords: Keywords of the record; those that are None or belong to another instruction are ignored.

    Raises:
        RewardError: If the instruction is unknown, or lacks a keyword.
    """
    check = CHECKS.get(instruction)
    if check is None:
        raise RewardError(
            f"there is no instruction {instruction!r}; use one of IFEval's 25, such as {next(iter(CHECKS))}"
        )
    wanted = list(inspect.signature(check).parameters)[1:]
    given = {name: value for name, value in (keywords or {}).items() if name in wanted and value is not None}
    lacking = [name for name in wanted if name not in given]
    if lacking:
        raise RewardError(f"the instruction {instruction!r} needs {lacking[0]!r} in its kwargs; correct the data")
    return bool(text.strip()) and check(text, **given)


def count_sentences(text: str) -> int:
    """Return the number of sentences: pieces with a word that end in a full stop, question or exclamation mark."""
    sentences, start = 0, 0
    for end in _SENTENCE_END.finditer(text):
        before = text[start : end.start()]
        if end[0].startswith(".") and _is_abbreviated(before, text[end.end() : end.end() + 80]):
            continue
        sentences += bool(_WORD.search(before))
        start = end.end()
    return sentences + bool(_WORD.search(text[start:]))


def _is_abbreviated(before: str, after: str) -> bool:
    """Return whether a full stop between two texts belongs to a title, an abbreviation or an initial (J. Smith).

    A single letter is an initial only in the position of a name: before a capitalized word that begins no sentence, and
    after another name or a word such as "by". "See plan B. Then go." has two sentences.
    """
    if not after.strip():
        return False
    following = _NEXT.match(after)
    word = following[1] if following else ""
    starts = word[:1].isupper() and _STARTERS.fullmatch(word) is not None
    if _TITLE.search(before) or (_ABBREVIATION.search(before) and not starts):
        return True
    letter = _LETTER.search(before)
    if letter is None or starts:
        return False
    if not word[:1].isupper():
        return True
    previous = letter[1] or ""
    return letter[2].isupper() and (
        not previous or previous[0].isupper() or _BEFORE_NAMES.fullmatch(previous) is not None
    )


def language_of(text: str) -> str | None:
    """Return the main language of a text as a two-letter code; None if it has no language.

    Raises:
        RewardError: If the extra `ifeval` is not installed.
    """
    require_langdetect()
    from langdetect import DetectorFactory, LangDetectException, detect

    DetectorFactory.seed = 0  # the detector samples at random, and a reward must be deterministic
    try:
        return str(detect(text.lower()))
    except LangDetectException:
        return None


def require_langdetect() -> None:
    """Raise RewardError unless the language detector is installed.

    Raises:
        RewardError: If the extra `ifeval` is not installed.
    """
    try:
        import langdetect  # noqa: F401
    except ImportError as error:
        raise RewardError("IFEval's instructions need langdetect; pip install 'gvpo[ifeval]'") from error


def _times(keyword: str, text: str) -> int:
    return len(re.findall(re.escape(keyword), text, re.IGNORECASE))


def _holds(count: int, relation: str, wanted: int) -> bool:
    if relation not in _RELATIONS:
        raise RewardError(f"{relation!r} is not a relation of IFEval; use one of {', '.join(_RELATIONS)}")
    return bool(_RELATIONS[relation](count, wanted))


def _count_parts(text: str, separator: str) -> int | None:
    """Return the number of parts between separators; the first and last may be empty, None if another one is."""
    parts = [part.strip() for part in re.split(separator, text)]
    inner = parts[1:-1]
    return None if "" in inner else sum(map(bool, parts))
