"""HTTP calls to one vLLM server: deadlines, and what each failure means.

    Again       the call may succeed later, here or on another server
     ├─ Busy    the server asks to wait
     └─ Lost    the server cannot be reached, or its engine has failed
         └─ Failed   it was reached, and answered with an error of its own
    Refused     the call will never succeed
     └─ Missing      the server does not have what it names

The message of a refusal says what to change.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx2

from gvpo.config.engine_rules import address_errors
from gvpo.errors import ConfigError
from gvpo.retries import AGAIN, LONGEST_WAIT, Again, Refused, asked_wait, quoted, read_limited, secret
from gvpo.sampling.engines import EngineOptions

GENERATE = "/inference/v1/generate"
"""Path that takes and returns token ids."""
MAX_REPLY = 256 << 20
"""Maximum number of bytes of a reply; a token with its log-prob takes about 150."""
NOT_IMPLEMENTED = 501
BUSY = frozenset({408, 409, 425, 429, 503, 529})
"""HTTP statuses of a server that works and asks to wait."""

_REMEDIES = (
    (GENERATE, 403, "start it with --enable-scale-out"),
    ("", 401, "set sampling.server_api_key_env to the variable with its key"),
    ("", 403, "set sampling.server_api_key_env to the variable with its key"),
    (GENERATE, 404, "it is not a vLLM server of at least 0.32, or it does not serve this model; check the url"),
    ("/v1/models", 404, "it is not a vLLM server; check the url, which ends with the port"),
    (
        "/v1/load_lora_adapter",
        404,
        "start it with --enable-lora and "
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, and set sampling.transfer_dir to a directory that it can read",
    ),
    ("", 404, "it does not accept new weights; start it with VLLM_SERVER_DEV_MODE=1"),
    (GENERATE, 400, "check that it serves the model with this tokenizer and at least this context"),
    ("", 405, "it is not a vLLM server; check the url"),
)
"""Beginning of a path, HTTP status, and what to do; the first that fits."""


class Busy(Again):
    """The server works, and asks to wait."""


class Lost(Again):
    """The server cannot be reached, or its engine has failed."""


class Failed(Lost):
    """The server was reached, and answered with an error of its own."""


class Missing(Refused):
    """The server does not have what the call names: a path, or an adapter."""


@dataclass(frozen=True)
class Servers:
    """Addresses of servers, and limits of the requests to them.

    Args:
        urls: Base URLs such as http://localhost:8000, without /v1.
        api_key_env: Environment variable with the API key of all servers; None sends none.
        deadline: Seconds per completion, including all its attempts.
        concurrency: Maximum number of concurrent completions per server.

    Raises:
        ConfigError: If there is no URL, a URL cannot work, or the variable is not set.
    """

    urls: Sequence[str]
    api_key_env: str | None = None
    deadline: float = 600.0
    concurrency: int = 256

    @classmethod
    def of(cls, options: EngineOptions) -> "Servers":
        """Return the servers of an engine's options.

        Raises:
            ConfigError: If they cannot work.
        """
        o = options
        return cls(o.server_urls, o.server_api_key_env, o.server_deadline, o.server_concurrency)

    def __post_init__(self) -> None:
        object.__setattr__(self, "urls", tuple(checked_url(url) for url in self.urls))
        if not self.urls:
            raise ConfigError("the engine server needs servers; set sampling.server_urls = ['http://localhost:8000']")
        twice = next((url for url in self.urls if self.urls.count(url) > 1), None)
        if twice is not None:
            raise ConfigError(f"sampling.server_urls contains {twice} twice; list each server once")
        if self.api_key_env and not secret(self.api_key_env):
            raise ConfigError(f"sampling.server_api_key_env names ${self.api_key_env}, which is not set; export it")


def checked_url(url: str) -> str:
    """Return a server's base URL without a final slash or /v1.

    Raises:
        ConfigError: If it is not a URL, or contains a password.
    """
    for broken, message in address_errors(url, "sampling.server_urls", "sampling.server_api_key_env"):
        if broken:
            raise ConfigError(message)
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


class Client:
    """Calls one server.

    Args:
        url: Base URL.
        http: Connections to all servers.
        key: API key, or "".
    """

    def __init__(self, url: str, http: httpx2.AsyncClient, key: str) -> None:
        self.url, self._http, self._key = url, http, key

    async def get(self, path: str, seconds: float) -> Any:
        """Return the JSON that a path contains; see `post`."""
        return await self._call("GET", path, None, seconds)

    async def post(self, path: str, body: Mapping[str, Any] | None, seconds: float) -> Any:
        """Send JSON, and return the JSON of the answer, or None if it is not JSON.

        Args:
            path: Path with its query.
            body: The JSON object, or None.
            seconds: Deadline.

        Raises:
            Again: If the call may succeed later; `Busy` and `Lost` say why.
            Refused: If it cannot succeed. The message says what to change.
        """
        return await self._call("POST", path, body, seconds)

    async def _call(self, method: str, path: str, body: Mapping[str, Any] | None, seconds: float) -> Any:
        headers = {"Accept-Encoding": "identity", **({"Authorization": f"Bearer {self._key}"} if self._key else {})}
        try:
            async with (
                asyncio.timeout(seconds),
                self._http.stream(method, self.url + path, json=body, headers=headers) as response,
            ):
                said = await read_limited(response, MAX_REPLY)
        except TimeoutError:
            raise Lost(f"{self.url} gave no answer to {path} in {seconds:g} s") from None
        except httpx2.RequestError as error:
            raise Lost(f"{self.url} cannot be reached ({self._short(f'{type(error).__name__}: {error}')})") from None
        except httpx2.InvalidURL as error:
            raise Refused(f"{self.url} is not a URL ({error}); check sampling.server_urls") from None
        if not response.is_success:
            self._fail(path, response, said)
        try:
            return json.loads(said)
        except (ValueError, RecursionError):
            return None

    def _fail(self, path: str, response: httpx2.Response, said: bytes) -> None:
        """Raise the error of a status that is not a success."""
        status = response.status_code
        reason = f"{self.url} answered {status} to {path} ({self._short(said.decode(errors='replace'))})"
        if status in BUSY:
            raise Busy(reason, min(asked_wait(response), LONGEST_WAIT))
        if status in AGAIN or (status >= 500 and status != NOT_IMPLEMENTED):
            raise Failed(reason)
        remedy = next((text for start, code, text in _REMEDIES if path.startswith(start) and code == status), "")
        kind = Missing if status == 404 else Refused
        raise kind(f"{reason}; {remedy or 'check sampling.server_urls, and the log of the server'}")

    def _short(self, text: str) -> str:
        return quoted(text, self._key)
