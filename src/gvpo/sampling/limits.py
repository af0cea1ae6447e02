"""Checks of requests, and the maximum number of tokens that the context leaves for each completion."""

import sys
from collections.abc import Sequence

from gvpo.errors import DataError, ModelError
from gvpo.sampling.base import Request


def token_limits(requests: Sequence[Request], max_tokens: int, *, context: int | None, vocabulary: int) -> list[int]:
    """Return the maximum number of tokens per completion of each request, limited by the room in the context.

    Args:
        requests: Prompts.
        max_tokens: Maximum number of tokens per completion.
        context: Maximum number of tokens of prompt and completion together; None has no limit.
        vocabulary: Number of token ids of the model.

    Raises:
        DataError: If a prompt is empty or leaves no room in the context, or if ids are not distinct.
        ModelError: If a prompt has tokens outside the vocabulary.
    """
    if len({request.id for request in requests}) < len(requests):
        raise DataError("two requests have the same id, so they would get the same noise; give each prompt its own id")
    for request in requests:
        _check_prompt(request, context, vocabulary)
    room = sys.maxsize if context is None else context
    return [min(most_tokens(each, max_tokens), room - len(each.prompt)) for each in requests]


def most_tokens(request: Request, max_tokens: int) -> int:
    """Return the maximum number of tokens of a request's completions if there were no limit of the context."""
    return max_tokens if request.max_tokens is None else min(max_tokens, request.max_tokens)


def _check_prompt(request: Request, context: int | None, vocabulary: int) -> None:
    length = len(request.prompt)
    if length == 0:
        raise DataError(f"the prompt of {request.id!r} is empty; a completion needs at least one token before it")
    if context is not None and length >= context:
        raise DataError(
            f"the prompt of {request.id!r} has {length} tokens and the model's context is {context}, which leaves no "
            "room for a completion; shorten or drop it"
        )
    if max(request.prompt) >= vocabulary:
        raise ModelError(
            f"the prompt of {request.id!r} has token {max(request.prompt)} and the model's vocabulary is {vocabulary}; "
            "use the tokenizer that belongs to the model"
        )
