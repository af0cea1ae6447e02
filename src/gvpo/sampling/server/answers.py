"""Reading of a server's answer to one row: complete, of the right weights, or not used.

answer ──▶ Completion
├─▶ Unreadable   it is not an answer to this row, or part of it is missing: sent again
├─▶ Stale        other weights than those of the run sampled it: the server gets the weights, sent again
└─▶ Aborted      the engine gave it up: sent again
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gvpo.retries import Again
from gvpo.sampling.base import Request
from gvpo.sampling.vllm.request import RequestFormat
from gvpo.types import Completion

UNKNOWN = -9999.0
"""Log-prob that vLLM writes instead of nan and -inf."""


class Unreadable(Again):
    """An answer is not an answer to the row, or part of it is missing."""


class Stale(Again):
    """An answer comes from other weights than those of the run."""


class Aborted(Again):
    """The engine has given up a row.

    Args:
        reason: Description.
        row: The fragment.
    """

    def __init__(self, reason: str, row: Completion) -> None:
        super().__init__(reason)
        self.row = row


class Weights(Protocol):
    """The weights that a row is sampled from."""

    def versions(self, answer: Mapping[str, Any], choice: Mapping[str, Any], count: int) -> Sequence[int] | None:
        """Return the version of each token, or None if the weights have no versions.

        Raises:
            Stale: If a token comes from other weights, or older ones.
        """
        ...


@dataclass(frozen=True)
class Ask:
    """One row of a request.

    Args:
        request: The prompt.
        row: Number of the row in its group.
        parameters: Parameters of vLLM, as `RequestFormat.parameters` returns them.
    """

    request: Request
    row: int
    parameters: Mapping[str, Any]

    def body(self, name: str, model: str | None) -> dict[str, Any]:
        """Return the body of the HTTP request.

        Args:
            name: Name of the attempt, which the answer repeats.
            model: Name of an adapter; None is the base model.
        """
        body = {"request_id": name, "token_ids": list(self.request.prompt), "sampling_params": dict(self.parameters)}
        return body if model is None else {**body, "model": model}


def read(answer: Any, ask: Ask, name: str, form: RequestFormat, weights: Weights) -> Completion:
    """Return the completion in an answer.

    Args:
        answer: JSON of the answer.
        ask: The row.
        name: Name of the attempt.
        form: Format of requests and results.
        weights: The weights that the row was sent to.

    Raises:
        Unreadable: If the answer is not an answer to the row, or part of it is missing.
        Stale: If it comes from other weights.
        Aborted: If the engine has given up the row.
        ModelError: If the log-probs are not finite.
    """
    try:
        choice = _only_choice(answer, name)
        tokens, logprobs = _tokens(choice), _logprobs(choice)
        reason = choice["finish_reason"]
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise Unreadable(f"an answer has another form ({type(error).__name__}: {error})") from None
    _check_tokens(tokens, logprobs, form.vocabulary)
    versions = weights.versions(answer, choice, len(tokens))
    _check_end(tokens, reason, ask)
    row = _stamped(form.completion(ask.request, tokens, logprobs, reason), versions)
    if row.finish_reason == "abort":
        raise Aborted(f"the engine gave up a row of {ask.request.id!r} after {len(tokens)} tokens", row)
    return row


def _stamped(row: Completion, versions: Sequence[int] | None) -> Completion:
    """Return a row with its versions; a version per token only if they differ."""
    if not versions:
        return row
    several = list(versions) if len(set(versions)) > 1 else None
    return dataclasses.replace(row, version=min(versions), versions=several)


def _only_choice(answer: Any, name: str) -> Mapping[str, Any]:
    (choice,) = answer["choices"]
    if not str(answer.get("request_id", name)).endswith(name):
        raise ValueError("it answers another request")
    found: Mapping[str, Any] = choice
    return found


def _tokens(choice: Mapping[str, Any]) -> list[int]:
    tokens = choice["token_ids"]
    if not all(type(token) is int for token in tokens):
        raise TypeError("a token id is not an integer")
    return list(tokens)


def _logprobs(choice: Mapping[str, Any]) -> list[float]:
    """Return the log-prob of each token, nan for one that vLLM does not know, which it writes as -9999."""
    content = choice["logprobs"]["content"] or []
    if [entry["token_id"] for entry in content] != list(choice["token_ids"]):
        raise ValueError(f"it has {len(content)} log-probs for {len(choice['token_ids'])} tokens, or of other tokens")
    values = [math.nan if entry["logprob"] is None else float(entry["logprob"]) for entry in content]
    return [value if value > UNKNOWN else math.nan for value in values]


def _check_tokens(tokens: Sequence[int], logprobs: Sequence[float], vocabulary: int) -> None:
    outside = next((token for token in tokens if not 0 <= token < vocabulary), None)
    if outside is not None:
        raise Unreadable(
            f"an answer contains the token {outside}, and the model's vocabulary is {vocabulary}; serve the same model"
        )
    if not all(map(math.isfinite, logprobs)):
        raise Unreadable("an answer contains a log-prob that is not finite; the weights may have diverged")


def _check_end(tokens: Sequence[int], reason: str | None, ask: Ask) -> None:
    """Raise an error unless a finished row ends as it says."""
    stops, limit = ask.parameters["stop_token_ids"], ask.parameters["max_tokens"]
    if reason == "abort":
        return
    whole = {"stop": bool(tokens) and tokens[-1] in stops, "length": len(tokens) == limit}
    inside = any(token in stops for token in tokens[:-1])
    if not whole.get(str(reason), False) or len(tokens) > limit or inside:
        raise Unreadable(f"an answer is partial: {len(tokens)} of at most {limit} tokens, with the reason {reason!r}")
