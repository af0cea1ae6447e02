"""An OpenAI-compatible chat endpoint over HTTP: many requests at once, each with retries and a deadline.

requests ──semaphore──▶ POST /chat/completions ──429, 5xx, no connection──▶ wait, again ──▶ text, or why not
"""

import asyncio
import json
import os
import random
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx2

from gvpo.errors import RewardError
from gvpo.retries import AGAIN, FIRST_WAIT, LONGEST_WAIT, asked_wait, quoted

T = TypeVar("T")

GIVE_UP_AFTER = 8
"""Where this many requests have failed and none has succeeded, the others of the call are not made."""
MAX_REPLY = 4 << 20
"""Maximum number of bytes of a reply. Judges write a few hundred tokens."""


@dataclass(frozen=True)
class Endpoint:
    """Where and how to ask.

    Args:
        url: the base, `https://host/v1`; `/chat/completions` is put behind it.
        api_key_env: the environment variable that holds the key; "" sends none. The key is read when it is needed and
            kept nowhere.
        deadline: seconds for a request, all its attempts and waits together.
        attempts: how often it is made at most.
        concurrency: requests at once.

    Raises:
        RewardError: a value that cannot be, or the variable is not set.
    """

    url: str
    api_key_env: str = ""
    deadline: float = 60.0
    attempts: int = 5
    concurrency: int = 16

    def __post_init__(self) -> None:
        if urlsplit(self.url).scheme not in ("http", "https"):
            raise RewardError(f"the judge's url is {self.url!r}; give a base such as http://localhost:8000/v1")
        for name in ("deadline", "attempts", "concurrency"):
            if not getattr(self, name) > 0:
                raise RewardError(f"the judge's {name} is {getattr(self, name)}; give a number above 0")
        self.headers()

    def headers(self) -> dict[str, str]:
        """What tells the server who asks."""
        if not self.api_key_env:
            return {}
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise RewardError(f"the judge's key is looked for in ${self.api_key_env}, which is not set; export it")
        return {"Authorization": f"Bearer {key}"}

    def without_key(self, text: str) -> str:
        """A server's words without the key, which some repeat; on one line."""
        key = os.environ.get(self.api_key_env, "").strip() if self.api_key_env else ""
        return quoted(text, key)


@dataclass(frozen=True)
class ChatAnswer:
    """What came of a request: the model's words, or why there are none.

    Args:
        text: the words; None if there are none.
        reason: "KIND: ..."; "" where there are words.
    """

    text: str | None = None
    reason: str = ""


def ask_all(
    endpoint: Endpoint,
    bodies: Sequence[Mapping[str, Any]],
    *,
    is_usable: Callable[[str], bool],
    answered: Callable[[int, str], None],
) -> list[ChatAnswer]:
    """Make all requests, some at once.

    Args:
        endpoint: where.
        bodies: of the requests.
        is_usable: whether a text is an answer; if not, the request is made again.
        answered: told the number of a request and its text, as soon as it is there.

    Returns:
        An answer a request, in order.
    """
    return _run(_ask_all(endpoint, bodies, is_usable, answered)) if bodies else []


async def _ask_all(
    endpoint: Endpoint,
    bodies: Sequence[Mapping[str, Any]],
    is_usable: Callable[[str], bool],
    answered: Callable[[int, str], None],
) -> list[ChatAnswer]:
    limits = httpx2.Limits(max_connections=endpoint.concurrency, max_keepalive_connections=endpoint.concurrency)
    # the deadline is kept by `_Asking`, for all attempts together
    async with httpx2.AsyncClient(
        headers={"Accept-Encoding": "identity", **endpoint.headers()}, limits=limits, timeout=None
    ) as client:
        asking = _Asking(endpoint, client, is_usable)

        async def ask(index: int) -> ChatAnswer:
            answer = await asking.ask(bodies[index])
            if answer.text is not None:
                answered(index, answer.text)
            return answer

        return list(await asyncio.gather(*map(ask, range(len(bodies)))))


class _Again(Exception):
    """An attempt failed and another one may not; `wait` seconds are what the server asks for."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class _Refused(Exception):
    """The server will not answer this request."""


class _Asking:
    """The requests of one call."""

    def __init__(self, endpoint: Endpoint, client: httpx2.AsyncClient, is_usable: Callable[[str], bool]) -> None:
        self._endpoint, self._client, self._is_usable = endpoint, client, is_usable
        self._free = asyncio.Semaphore(endpoint.concurrency)
        self._failed, self._succeeded = 0, False

    async def ask(self, body: Mapping[str, Any]) -> ChatAnswer:
        """Wait for a turn, then ask until there is an answer, the attempts are used up, or the deadline is over."""
        async with self._free:
            if self._failed >= GIVE_UP_AFTER and not self._succeeded:
                return ChatAnswer(reason=f"http: failed on {self._failed} rows and was not asked again")
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
                return ChatAnswer(await self._once(body))
            except _Refused as refused:
                return ChatAnswer(reason=str(refused))
            except _Again as failed:
                last[0] = str(failed)
                if attempt + 1 < self._endpoint.attempts:
                    await asyncio.sleep(max(failed.wait, _backoff(attempt)))
        return ChatAnswer(reason=f"{last[0]} ({self._endpoint.attempts} attempts)")

    async def _once(self, body: Mapping[str, Any]) -> str:
        url = f"{self._endpoint.url.rstrip('/')}/chat/completions"
        try:
            async with self._client.stream("POST", url, json=dict(body)) as response:
                said = await _limited(response)
        except httpx2.RequestError as error:
            what = self._endpoint.without_key(f"{type(error).__name__}: {error}")
            raise _Again(f"http: cannot be reached ({what})") from None
        if not response.is_success:
            words = self._endpoint.without_key(said.decode(errors="replace"))
            reason = f"http: answered {response.status_code} ({words})"
            if response.status_code in AGAIN:
                raise _Again(reason, min(asked_wait(response), LONGEST_WAIT))
            raise _Refused(reason)
        text = _content(said)
        if text is None or not self._is_usable(text):
            words = self._endpoint.without_key(said.decode(errors="replace") if text is None else text)
            raise _Again(f"unreadable: gave no score ({words})")
        return text


async def _limited(response: httpx2.Response) -> bytes:
    """Read a reply's bytes as they were sent.

    Raises:
        _Again: they are too many, or compressed, though that was not asked for.
    """
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise _Again("http: answered in a compressed form that was not asked for")
    said = bytearray()
    async for part in response.aiter_raw():
        said += part
        if len(said) > MAX_REPLY:
            raise _Again(f"http: answered with more than {MAX_REPLY >> 20} MiB")
    return bytes(said)


def _content(said: bytes) -> str | None:
    """The words of the first choice; None where the answer has another form."""
    try:
        content = json.loads(said)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return content if isinstance(content, str) else None


def _backoff(attempt: int) -> float:
    """Seconds before the next attempt, spread so that requests that failed together do not come back together."""
    longest: float = min(FIRST_WAIT * 2**attempt, LONGEST_WAIT)
    return longest * random.uniform(0.5, 1.0)


def _run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, in a thread of its own where this one has an event loop already (notebooks)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()
