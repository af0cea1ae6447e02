"""Features from a server with OpenAI's embeddings protocol: a company's API, vLLM, llama.cpp, TEI, ...

POST <url>/embeddings  {"model", "input": [texts]}  ──▶  {"data": [{"index", "embedding"}]}
"""

import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import httpx2
import numpy as np

from gvpo.errors import ConfigError, DataError
from gvpo.probe.store import Array
from gvpo.retries import AGAIN, FIRST_WAIT, LONGEST_WAIT, asked_wait, quoted
from gvpo.types import Prompt


class EndpointFeatures:
    """Implementation of `embed` with an embeddings endpoint. Prompt and completion are one text, on separate lines.

    Args:
        url: URL of the API, such as `https://api.openai.com/v1`; `/embeddings` is appended.
        model: Name of the model on the server.
        dimensions: Number of dimensions, for models that can shorten their vectors.
        key_variable: Environment variable with the key, which is sent as a bearer token and never stored; a local
            server needs no key.
        batch: Number of texts per request.
        concurrency: Maximum number of concurrent requests.
        timeout: Timeout of one attempt, in seconds.
        deadline: Deadline of a request with all its retries, in seconds.

    Raises:
        ConfigError: If `url` is not a URL.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        dimensions: int | None = None,
        key_variable: str = "OPENAI_API_KEY",
        batch: int = 64,
        concurrency: int = 4,
        timeout: float = 60.0,
        deadline: float = 300.0,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"the endpoint {url!r} is not a URL; give one such as https://api.openai.com/v1")
        self._url, self._model, self._dimensions = f"{url.rstrip('/')}/embeddings", model, dimensions
        self._batch, self._concurrency = batch, concurrency
        self._timeout, self._deadline = timeout, deadline
        self._key = os.environ.get(key_variable, "").strip()
        self.name = f"endpoint/{self._url}/{model}/{dimensions or 'all'}"
        """Name of these features in a store."""

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[str], /) -> Array:
        """Return [n, D] float32 features.

        Raises:
            DataError: If the server rejects the request, misses the deadline, or returns something else.
        """
        texts = [f"{_plain(prompt)}\n{text}" for prompt, text in zip(prompts, completions, strict=True)]
        parts = [texts[start : start + self._batch] for start in range(0, len(texts), self._batch)]
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        with httpx2.Client(headers=headers) as client, ThreadPoolExecutor(self._concurrency) as pool:
            return np.concatenate(list(pool.map(partial(self._embed, client), parts)))

    def _embed(self, client: httpx2.Client, texts: Sequence[str]) -> Array:
        body: dict[str, Any] = {"model": self._model, "input": list(texts), "encoding_format": "float"}
        if self._dimensions is not None:
            body["dimensions"] = self._dimensions
        answer = self._post(client, body)
        try:
            rows = sorted(answer.json()["data"], key=lambda row: int(row["index"]))
            found = np.array([row["embedding"] for row in rows], dtype=np.float32)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{self._url} did not answer with embeddings ({self._short(answer.text)})") from error
        if found.ndim != 2 or len(found) != len(texts):
            raise DataError(f"{self._url} gave {len(found)} embeddings for {len(texts)} texts; ask for smaller batches")
        return found

    def _post(self, client: httpx2.Client, body: Mapping[str, Any]) -> httpx2.Response:
        """Return the response, after as many attempts as the deadline allows."""
        until, wait = time.monotonic() + self._deadline, FIRST_WAIT
        while True:
            answer, failure, asked = self._try(client, body, until - time.monotonic())
            if answer is not None:
                return answer
            pause = max(wait, asked)
            if time.monotonic() + pause > until:
                raise DataError(f"{self._url} gave no embeddings in {self._deadline:g} s: {failure}; try again later")
            time.sleep(pause)
            wait = min(2 * wait, LONGEST_WAIT)

    def _try(
        self, client: httpx2.Client, body: Mapping[str, Any], left: float
    ) -> tuple[httpx2.Response | None, str, float]:
        """Return (the response or None, the reason of a failure, the seconds that the server asks to wait)."""
        try:
            answer = client.post(self._url, json=body, timeout=min(self._timeout, max(left, 1e-3)))
        except httpx2.TransportError as error:
            return None, f"{type(error).__name__}: {error}", 0.0
        if answer.is_success:
            return answer, "", 0.0
        failure = f"status {answer.status_code}: {self._short(answer.text)}"
        if answer.status_code not in AGAIN:
            raise DataError(f"{self._url} rejects the request: {failure}")
        return None, failure, asked_wait(answer)

    def _short(self, text: str) -> str:
        """Return the beginning of a response, without the key."""
        return quoted(text, self._key)


def _plain(prompt: Prompt) -> str:
    """Return a prompt as text; messages become lines of role and content."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message.get('role')}: {message.get('content')}" for message in prompt)
