"""Truncation of written answers after their first end token; later tokens, such as padding, are not trained on.

In a dialogue, that is the first end token after everything that the policy hears.
"""

import dataclasses
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from gvpo import notices
from gvpo.types import Completion, FinishReason, FloatSequence

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def ended(
    tokenizer: "PreTrainedTokenizerBase", groups: Sequence[Sequence[Completion]], stops: Collection[int]
) -> list[list[Completion]]:
    """Return the completions of each row of a dataset up to their first end token, including it.

    Args:
        tokenizer: Tokenizer that decodes the truncated completions.
        groups: Completions of each row.
        stops: End tokens.

    Warns:
        GvpoWarning: If some were longer; the message counts them and names the first row, counted from 1.
    """
    found = [[_ended(tokenizer, row, stops) for row in rows] for rows in groups]
    longer = [
        number
        for number, (before, after) in enumerate(zip(groups, found, strict=True), start=1)
        for row, kept in zip(before, after, strict=True)
        if kept is not row
    ]
    if longer:
        notices.warn(
            f"{len(longer)} written answers have tokens after their first end token, which are ignored; the first is "
            f"in row {longer[0]}"
        )
    return found


def _ended(tokenizer: "PreTrainedTokenizerBase", row: Completion, stops: Collection[int]) -> Completion:
    places = range(_last_heard(row), len(row.tokens))
    length = next((place + 1 for place in places if row.tokens[place] in stops), len(row.tokens))
    return row if length == len(row.tokens) else first_tokens(tokenizer, row, length, "stop")


def _last_heard(row: Completion) -> int:
    """Return the place after the last token that is heard before a turn; end tokens before it do not end the row."""
    if row.mask is None:
        return 0
    scored = [place for place in range(len(row.mask)) if row.mask[place] != 0]
    return next((place for place in range(max(scored, default=0), 0, -1) if row.mask[place - 1] == 0), 0)


def first_tokens(
    tokenizer: "PreTrainedTokenizerBase", row: Completion, length: int, finish_reason: FinishReason
) -> Completion:
    """Return the first `length` tokens of a written answer as an answer, with their mask and log-probs."""
    tokens = list(row.tokens[:length])
    return dataclasses.replace(
        row,
        tokens=tokens,
        text=str(tokenizer.decode(tokens, skip_special_tokens=True)),
        mask=_first(row.mask, length),
        sampler_logprobs=_first(row.sampler_logprobs, length),
        versions=None if row.versions is None else row.versions[:length],
        turns=(),
        finish_reason=finish_reason,
    )


def _first(values: FloatSequence | None, length: int) -> list[float] | None:
    return None if values is None else [values[place] for place in range(length)]
