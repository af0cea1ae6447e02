"""An OpenAI-compatible endpoint over HTTP: concurrent requests, each with retries and a deadline.

requests ──semaphore──▶ POST /chat/completions, or /completions for a request without messages
                                                ──429, 5xx, no connection──▶ wait, retry ──▶ text, or a reason
"""

import asyncio
import json
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx2

from gvpo.errors import RewardError
from gvpo.retries import AGAIN, LONGEST_WAIT, Again, Refused, address, asked_wait, backoff, quoted, read_limited, secret

T = TypeVar("T")

GIVE_UP_AFTER = 8
"""If this many requests have failed and none has succeeded, the remaining requests of the call are skipped."""
MAX_REPLY = 4 << 20
"""Maximum number of bytes of a reply. Judges write a few hundred tokens."""


@dataclass(frozen=True)
class Endpoint:
    """Address of an endpoint, and limits of the requests to it.

    Args:
        url: Base URL, `https://host/v1`; `/chat/completions` or `/completions` is appended.
        api_key_env: Environment variable with the key; "" sends none. The key is read when it is needed and is never
            stored.
        deadline: Seconds per request, including all its attempts and waits.
        attempts: Maximum number of attempts per request.
        concurrency: Maximum number of concurrent requests.
        owner: Name of the model in messages.
        wanted: Name in messages of what a usable answer contains.

    Raises:
        RewardError: If a value is invalid, or the variable is not set.
    """

    url: str
    api_key_env: str = ""
    deadline: float = 60.0
    attempts: int = 5
    concurrency: int = 16
    owner: str = "judge"
    wanted: str = "score"

    def __post_init__(self) -> None:
        if not address(self.url).scheme:
            raise RewardError(f"the {self.owner}'s url is {self.url!r}; give a base such as http://localhost:8000/v1")
        for name in ("deadline", "attempts", "concurrency"):
            if not getattr(self, name) > 0:
                raise RewardError(f"the {self.owner}'s {name} is {getattr(self, name)}; give a number above 0")
        self.headers()

    def headers(self) -> dict[str, str]:
        """HTTP headers that authenticate the client."""
        if not self.api_key_env:
            return {}
        key = secret(self.api_key_env)
        if not key:
            raise RewardError(f"the {self.owner}'s key is read from ${self.api_key_env}, which is not set; export it")
        return {"Authorization": f"Bearer {key}"}

    def without_key(self, text: str) -> str:
        """Return a server's message on one line, without the key, which some servers repeat."""
        return quoted(text, secret(self.api_key_env))


@dataclass(frozen=True)
class ChatAnswer:
    """Result of a request: the model's text, or why there is none.

    Args:
        text: Text of the answer; None if there is none.
        reason: "KIND: ..."; "" if there is a text.
        finish_reason: Reason for its end according to the endpoint; "" if it gives none.
    """

    text: str | None = None
    reason: str = ""
    finish_reason: str = ""


def ask_all(
    endpoint: Endpoint,
    bodies: Sequence[Mapping[str, Any]],
    *,
    is_usable: Callable[[str], bool],
    answered: Callable[[int, ChatAnswer], None],
) -> list[ChatAnswer]:
    """Make all requests, some of them concurrently.

    Args:
        endpoint: The endpoint.
        bodies: Bodies of the requests.
        is_usable: Function that returns whether a text is an answer; if not, the request is repeated.
        answered: Function that is called with the number and the answer of each request as soon as there is a text.

    Returns:
        One answer per request, in order.
    """
    return _run(_ask_all(endpoint, bodies, is_usable, answered)) if bodies else []


async def _ask_all(
    endpoint: Endpoint,
    bodies: Sequence[Mapping[str, Any]],
    is_usable: Callable[[str], bool],
    answered: Callable[[int, ChatAnswer], None],
) -> list[ChatAnswer]:
    limits = httpx2.Limits(max_connections=endpoint.concurrency, max_keepalive_connections=endpoint.concurrency)
    # `_Asking` enforces the deadline, for all attempts together
    async with httpx2.AsyncClient(
        headers={"Accept-Encoding": "identity", **endpoint.headers()}, limits=limits, timeout=None
    ) as client:
        asking = _Asking(endpoint, client, is_usable)

        async def ask(index: int) -> ChatAnswer:
            answer = await asking.ask(bodies[index])
            if answer.text is not None:
                answered(index, answer)
            return answer

        return list(await asyncio.gather(*map(ask, range(len(bodies)))))


class _Asking:
    """The requests of one call."""

    def __init__(self, endpoint: Endpoint, client: httpx2.AsyncClient, is_usable: Callable[[str], bool]) -> None:
        self._endpoint, self._client, self._is_usable = endpoint, client, is_usable
        self._free = asyncio.Semaphore(endpoint.concurrency)
        self._failed, self._succeeded = 0, False

    async def ask(self, body: Mapping[str, Any]) -> ChatAnswer:
        """Wait for a turn, then ask until there is an answer, no attempts remain, or the deadline has passed."""
        async with self._free:
            if self._failed >= GIVE_UP_AFTER and not self._succeeded:
                return ChatAnswer(reason=f"http: failed on {self._failed} rows and was not called again")
            answer = await self._in_time(body)
        self._failed += bool(answer.reason)
        self._succeeded |= not answer.reason
        return answer

    async def _in_time(self, body: Mapping[str, Any]) -> ChatAnswer:
        last = [""]
        try:
            async with asyncio.timeout(self._endpoint.deadline):
                return await self._attempts(body, last)
        except TimeoutError:
            after = f"; last: {last[0].partition(': ')[2]}" if last[0] else ""
            return ChatAnswer(reason=f"timeout: gave no answer in {self._endpoint.deadline:g} s{after}")

    async def _attempts(self, body: Mapping[str, Any], last: list[str]) -> ChatAnswer:
        for attempt in range(self._endpoint.attempts):
            try:
                return await self._once(body)
            except Refused as refused:
                return ChatAnswer(reason=str(refused))
            except Again as failed:
                last[0] = str(failed)
                if attempt + 1 < self._endpoint.attempts:
                    await asyncio.sleep(max(failed.wait, backoff(attempt)))
        return ChatAnswer(reason=f"{last[0]} ({self._endpoint.attempts} attempts)")

    async def _once(self, body: Mapping[str, Any]) -> ChatAnswer:
        url = f"{self._endpoint.url.rstrip('/')}/{'chat/' if 'messages' in body else ''}completions"
        try:
            async with self._client.stream("POST", url, json=dict(body)) as response:
                said = await read_limited(response, MAX_REPLY)
        except httpx2.RequestError as error:
            what = self._endpoint.without_key(f"{type(error).__name__}: {error}")
            raise Again(f"http: cannot be reached ({what})") from None
        if not response.is_success:
            words = self._endpoint.without_key(said.decode(errors="replace"))
            reason = f"http: answered {response.status_code} ({words})"
            if response.status_code in AGAIN:
                raise Again(reason, min(asked_wait(response), LONGEST_WAIT))
            raise Refused(reason)
        answer = _content(said)
        if answer.text is None or not self._is_usable(answer.text):
            words = self._endpoint.without_key(said.decode(errors="replace") if answer.text is None else answer.text)
            raise Again(f"unreadable: gave no {self._endpoint.wanted} ({words})")
        return answer


def _content(said: bytes) -> ChatAnswer:
    """Return the first choice; its text is None if the answer has another form."""
    try:
        choice = json.loads(said)["choices"][0]
        content = choice["message"]["content"] if "message" in choice else choice["text"]
        finish_reason = str(choice.get("finish_reason") or "")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return ChatAnswer()
    return ChatAnswer(content if isinstance(content, str) else None, finish_reason=finish_reason)


def _run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, in a separate thread if this thread already has an event loop (notebooks)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()
