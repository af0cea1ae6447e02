"""The reward of the recipe: a short sentence with a word, which neither an empty nor a one-phrase answer is."""

import re
from typing import Any

SHORTEST, LONGEST = 5, 9
"""Numbers of words of a sentence that the reward accepts."""

ARTICLES = {"a", "an", "the"}
TO_BE = {"am", "are", "be", "been", "being", "is", "was", "were", "here's", "it's", "that's", "there's"}
"""Words without which a sentence cannot be the definition that this model likes best: "A river is a ..."."""

EXAMPLE = {"above", "hills", "moon", "quiet", "rise", "watched"}
"""Words of the example in the prompt, which is not to be copied."""


def is_short_sentence(text: str, word: str) -> bool:
    """Return whether a text is one sentence of five to nine words that contains `word`.

    It must not repeat a word except articles, define the word with a form of "to be", or copy the example.
    """
    words = re.findall(r"[a-z]+(?:['-][a-z]+)*", text.lower())
    others = [each.removesuffix("'s") for each in words if each not in ARTICLES]
    one_sentence = re.fullmatch(r"[A-Z][^.!?\n]*[.!?]", text.strip()) is not None
    fits = one_sentence and SHORTEST <= len(words) <= LONGEST and word in words
    return fits and len(set(others)) == len(others) and not set(words) & (TO_BE | EXAMPLE)


def short_sentence(completions: list[list[dict[str, str]]], word: list[str], **columns: Any) -> list[float]:
    """Return 1 for each completion that `is_short_sentence` accepts, and 0 for others.

    Args:
        completions: One list with a chat message per completion, because the prompts are chat messages.
        word: Column `word` of the data, one value per completion.
        columns: The other columns.
    """
    texts = [messages[-1]["content"] for messages in completions]
    return [float(is_short_sentence(text, wanted)) for text, wanted in zip(texts, word, strict=True)]
