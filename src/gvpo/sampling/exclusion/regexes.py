"""Regular expressions over the text with llguidance (extra `decoding`), byte by byte, so any tokenization works."""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from gvpo.errors import ConfigError
from gvpo.sampling.exclusion.rules import Mask
from gvpo.sampling.exclusion.vocabulary import Vocabulary


class RegexRule:
    """The whole text matches one of the allowed expressions, and no part of it matches a banned one.

    The state is a matcher of llguidance. Expressions match text, so invalid UTF-8 matches no expression.

    Raises:
        ConfigError: If llguidance is not installed or cannot read an expression.
    """

    def __init__(self, vocabulary: Vocabulary, allow: Sequence[str], ban: Sequence[str]) -> None:
        self._textless = np.array([not allow and not data for data in vocabulary.tokens])
        self._written = np.array([bool(data) for data in vocabulary.tokens])
        check_expressions((*allow, *ban))
        library = _library()
        grammar = library.LLMatcher.grammar_from_lark(_grammar(allow, ban))
        self.start = _sound(library.LLMatcher(_tokenizer(vocabulary), grammar))

    def advance(self, state: Any, token: int) -> Any:
        """Advance a copy, because tokens change a matcher in place."""
        if not self._written[token]:
            return state
        after = state.deep_copy()
        after.consume_token(token)
        return _sound(after)

    def allowed(self, state: Any) -> Mask:
        """Return the mask that llguidance computes."""
        mask = state.compute_bitmask()
        _sound(state)  # it may have reached a limit of llguidance
        bits = np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")
        allowed: Mask = bits[: len(self._written)].astype(bool) & self._written | self._textless
        return allowed

    def may_end(self, state: Any) -> bool:
        """Return whether the text matches."""
        return bool(state.is_accepting())


def check_expressions(patterns: Sequence[str]) -> None:
    """Raise a ConfigError for the first expression that llguidance cannot read, or if llguidance is not installed."""
    library = _library()
    for pattern in patterns:
        problem = library.LLMatcher.validate_grammar(library.LLMatcher.grammar_from_regex(pattern))
        if problem:
            raise ConfigError(f"the regular expression {pattern!r} cannot be used: {_first_line(problem)}")


class _Tokens:
    """A vocabulary in llguidance's format. Its end token has an additional id, after all others."""

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.tokens = [*(data or b"" for data in vocabulary.tokens), b"<end>"]
        self.eos_token_id = vocabulary.size
        self.special_token_ids = [vocabulary.size]

    def __call__(self, text: bytes | str) -> list[int]:
        """Raise NotImplementedError. Only grammars of kinds that are not used here need to encode text."""
        raise NotImplementedError


@lru_cache(maxsize=4)
def _tokenizer(vocabulary: Vocabulary) -> Any:
    """Convert a vocabulary to llguidance's format, which takes seconds for a large one."""
    library = _library()
    return library.LLTokenizer(library.TokenizerWrapper(_Tokens(vocabulary)))


def _grammar(allow: Sequence[str], ban: Sequence[str]) -> str:
    """Return a grammar of one terminal. The first expression restricts the matches of `~` to valid UTF-8.

    Without `no_forcing`, llguidance would allow only the tokenizer's own tokens wherever the text has a single
    continuation.
    """
    whole = "|".join(f"(?:{_escaped(pattern)})" for pattern in allow) or "(?s:.*)"
    part = "|".join(f"(?:{_escaped(pattern)})" for pattern in ban)
    without = f" & ~/(?s:.*)(?:{part})(?s:.*)/" if ban else ""
    return f'%llguidance {{"no_forcing": true}}\nstart: TEXT\nTEXT: /{whole}/{without}\n'


def _escaped(pattern: str) -> str:
    """Escape an expression so that it can be written between slashes on one line."""
    return re.sub(r"(\\.)|/", lambda found: found[1] or r"\/", pattern, flags=re.DOTALL).replace("\n", r"\n")


def _sound(matcher: Any) -> Any:
    """Return a matcher unless it is in its error state, which is final."""
    if matcher.is_error():
        raise ConfigError(f"the regular expressions cannot be applied: {_first_line(matcher.get_error())}")
    return matcher


def _library() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise ConfigError("regular expressions need llguidance; pip install 'gvpo[decoding]'") from error
    return llguidance


def _first_line(problem: str) -> str:
    """Return the line of llguidance's message that contains the reason."""
    lines = [line.strip() for line in problem.splitlines() if line.strip()]
    reasons = [line for line in lines if line.startswith("error:")]
    return (reasons or lines)[0].removeprefix("error: ")
