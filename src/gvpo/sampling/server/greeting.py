"""The first calls to servers: whether they are vLLM servers of the same model, with the tokenizer of the trainer."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from gvpo import notices
from gvpo.errors import ConfigError, EngineError
from gvpo.retries import Again, Refused, backoff
from gvpo.sampling.server.client import Client

LONGEST = 60.0
"""Maximum number of seconds that a server may take for its first answer. It loads its model before it listens."""
SENTENCE = "Gvpo asks: 17 + 25 = 42? Ünïcode, <b>tags</b>\n\tand  spaces."
"""Text that different tokenizers encode differently."""


@dataclass(frozen=True)
class Card:
    """Description that a server gives of itself.

    Args:
        url: Base URL.
        model: Name of its model.
        context: Maximum number of tokens of prompt and completion.
        tokens: Token ids of `SENTENCE`; None if it has no tokenizer.
        is_paused: Whether its weights are being updated, or an update was interrupted.
    """

    url: str
    model: str
    context: int | None
    tokens: tuple[int, ...] | None
    is_paused: bool


async def greet(
    clients: Sequence[Client], model: str | None, tokenizer: PreTrainedTokenizerBase, deadline: float
) -> int | None:
    """Check servers before the first request.

    Args:
        clients: Calls of the servers.
        model: Directory or Hub ID of the model that they are to serve; None for training, which gives them weights.
        tokenizer: Tokenizer of the model.
        deadline: Seconds per server.

    Returns:
        The number of tokens of the smallest context; None if no server reports it.

    Raises:
        EngineError: If a server cannot be reached, or is not a vLLM server.
        ConfigError: If servers have different models, or, outside of training, another tokenizer.
    """
    cards = await asyncio.gather(*(_patiently(client, min(deadline, LONGEST)) for client in clients))
    _check_models(cards, model)
    _check_tokenizers(cards, tokenizer, trains=model is None)
    return min((card.context for card in cards if card.context is not None), default=None)


def _check_tokenizers(cards: Sequence[Card], tokenizer: PreTrainedTokenizerBase, *, trains: bool) -> None:
    """Check that the servers read a text as the model's tokenizer does.

    Only token ids are sent, so a server's own tokenizer changes nothing. It shows that another model is served. In
    training that does not matter, because the servers get the policy's weights and are compared with it.
    """
    own = tuple(tokenizer.encode(SENTENCE, add_special_tokens=False))
    wrong = next((card for card in cards if card.tokens not in (None, own)), None)
    if wrong is None:
        return
    what = f"{wrong.url} serves {wrong.model!r} with another tokenizer than the model's"
    if trains:
        notices.warn(f"{what}; only token ids are sent, and sampling.check compares the completions with the policy's")
    else:
        raise ConfigError(
            f"{what}; serve the model that is evaluated, or add --skip-tokenizer-init if only the server's own "
            "tokenizer is wrong"
        )


def _check_models(cards: Sequence[Card], model: str | None) -> None:
    """Raise an error if the servers cannot sample from one model.

    The last parts of names are compared, because a directory may have another path on each machine.
    """
    first = cards[0]
    other = next((card for card in cards if Path(card.model).name != Path(first.model).name), None)
    if other is not None:
        raise ConfigError(
            f"{first.url} serves {first.model!r} and {other.url} serves {other.model!r}; serve the same model"
        )
    paused = next((card for card in cards if card.is_paused), None)
    if model is not None and paused is not None:
        raise EngineError(
            f"{paused.url} is paused, because a program updates its weights, or was killed in an update; wait, or "
            "restart the server"
        )
    if model is not None and Path(model).name != Path(first.model).name:
        notices.warn(
            f"{first.url} serves {first.model!r}, and the model is {model!r}; the results are those of the served model"
        )


async def _patiently(client: Client, deadline: float) -> Card:
    """Return a server's card, after as many attempts as the deadline allows."""
    last = "no answer"
    try:
        async with asyncio.timeout(deadline):
            for attempt in range(1_000_000):
                try:
                    return await _card(client, deadline)
                except Again as failed:
                    last = str(failed)
                    await asyncio.sleep(max(backoff(attempt), failed.wait))
    except TimeoutError:
        pass
    except Refused as refused:
        raise EngineError(str(refused)) from None
    raise EngineError(
        f"{last}, for {deadline:g} s; start the server, or correct sampling.server_urls (see `gvpo docs servers`)"
    )


async def _card(client: Client, deadline: float) -> Card:
    answer = await client.get("/v1/models", deadline)
    try:
        (first, *_) = answer["data"]
        model, context = str(first["id"]), first.get("max_model_len")
        root = first.get("root") or model
    except (LookupError, TypeError, ValueError, AttributeError):
        raise Refused(f"{client.url} does not answer like a vLLM server; check sampling.server_urls") from None
    return Card(
        client.url, str(root), context, await _tokens(client, model, deadline), await _is_paused(client, deadline)
    )


async def _is_paused(client: Client, deadline: float) -> bool:
    """Return whether a server in developer mode is paused."""
    try:
        answer = await client.get("/is_paused", deadline)
    except Refused:
        return False
    return isinstance(answer, Mapping) and answer.get("is_paused") is True


async def _tokens(client: Client, model: str, deadline: float) -> tuple[int, ...] | None:
    """Return the tokens of `SENTENCE`, or None from a server that does not tokenize."""
    body = {"model": model, "prompt": SENTENCE, "add_special_tokens": False}
    try:
        answer: Any = await client.post("/tokenize", body, deadline)
        return tuple(answer["tokens"])
    except (Refused, LookupError, TypeError):
        return None
