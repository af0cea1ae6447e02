"""Environments on a server of OpenEnv (`pip install 'gvpo[openenv]'`).

An episode is a session: a WebSocket connection to `/ws` of the server, to which each connection is an environment of
its own.

    {"type": "reset", "data": {"seed": 0, "episode_id": "...", ...}}      {"type": "step", "data": {"message": "..."}}
        ──▶ {"type": "observation", "data": {"observation": {...}, "reward": 1.0, "done": false}}
        ──▶ {"type": "error", "data": {"message": "...", "code": "EXECUTION_ERROR"}}

Plain HTTP cannot be used: `POST /reset` and `POST /step` make a new environment per request. Not supported are the
tools of MCP environments, and `timeout_s`, which servers ignore in sessions; `environment.timeout` is the deadline.
"""

import contextlib
import json
import uuid
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from gvpo.environments.base import EnvironmentSpec, Turn
from gvpo.errors import EpisodeError, EpisodeLost, one_line

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

MAX_MESSAGE = 100 << 20
"""Maximum number of bytes of a server's message, as in OpenEnv's client."""
CLOSING = 1.0
"""Maximum seconds until the server has closed a session."""
ACTION, FAILURE = "VALIDATION_ERROR", "EXECUTION_ERROR"
"""Codes of errors after which a session continues: the action does not fit, or the environment raised."""

MISNAMED = ("missing", "extra_forbidden")
"""Types of validation errors that no text can cause."""


class Session:
    """An episode on a server. The session is closed when the episode is done or the object is gone.

    Args:
        url: Address of the server's sessions, ws://.../ws.
        action: Field of the action that gets the policy's text.
        observation: Field of the observation that the policy hears; "" for its only text, or else all of it as JSON.
    """

    def __init__(self, url: str, action: str, observation: str) -> None:
        self._url, self._action, self._observation = url, action, observation

    def reset(self, *, seed: int, **columns: Any) -> str:
        """Open a session; return the first observation."""
        opened = contextlib.ExitStack()
        self._connection = _connect(self._url, opened)
        self._close = weakref.finalize(self, opened.close)
        data = {**columns, "seed": seed, "episode_id": uuid.uuid4().hex}
        return self._said(self._ask("reset", data))

    def step(self, text: str) -> Turn:
        """Send the text as an action."""
        data = self._ask("step", {self._action: text})
        reward, done = data.get("reward"), bool(data.get("done"))
        if done:
            self._close()
        return Turn(self._said(data), None if reward is None else float(reward), done)

    def _ask(self, kind: str, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the data of an observation.

        Raises:
            EpisodeError: If the server refuses the action, or its environment raised.
            EpisodeLost: If the session is over.
        """
        from websockets.exceptions import ConnectionClosed

        try:
            with contextlib.suppress(ConnectionClosed):  # it may have said why
                self._connection.send(json.dumps({"type": kind, "data": data}, default=str))
            answer = json.loads(self._connection.recv())
            found: Mapping[str, Any] = answer["data"]
        except (ConnectionClosed, OSError) as error:
            raise EpisodeLost(f"the OpenEnv server closed the session: {one_line(error, 100)}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise EpisodeLost(f"the OpenEnv server sent no message of a session: {one_line(error, 100)}") from error
        if answer.get("type") == "error":
            raise _error(found)
        return found

    def _said(self, data: Mapping[str, Any]) -> str:
        observation = data.get("observation") or {}
        if not self._observation:
            texts = [value for value in observation.values() if isinstance(value, str)]
            return texts[0] if len(texts) == 1 else _written(observation)
        if self._observation not in observation:
            raise EpisodeLost(
                f"the observation has no field {self._observation!r}; set the option observation to one of "
                f"{', '.join(observation)}"
            )
        return _written(observation[self._observation])


@dataclass(frozen=True)
class Sessions:
    """Makes episodes on a server; see `Session`."""

    url: str
    action: str
    observation: str

    def __call__(self) -> Session:
        """Return an episode, which connects when it is reset."""
        return Session(self.url, self.action, self.observation)

    def prepare(self) -> None:
        """Check that the server answers."""
        with contextlib.ExitStack() as opened:
            _connect(self.url, opened)


def openenv(url: str, action: str = "message", observation: str = "") -> EnvironmentSpec:
    """Return an environment on a server of OpenEnv.

    Args:
        url: Address of the server, such as "http://localhost:8000".
        action: Name of the action's text field.
        observation: Name of the observation's field that the policy hears; "" for its only text, or else all of it as
            JSON.

    Raises:
        EpisodeError: If the package websockets is not installed, or the address cannot be one of a server.
    """
    if find_spec("websockets") is None:
        raise EpisodeError("the environment 'openenv' needs the package websockets; run pip install 'gvpo[openenv]'")
    scheme, colon, place = url.rstrip("/").partition("://")
    sockets = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}
    if not colon or scheme not in sockets or not place:
        raise EpisodeError(f"the url {url!r} is not the address of a server; write http://HOST:PORT")
    sessions = Sessions(f"{sockets[scheme]}://{place}/ws", action, observation)
    return EnvironmentSpec("openenv", sessions, blames="environment", replayable=False)


def _connect(url: str, opened: contextlib.ExitStack) -> "ClientConnection":
    """Open a session, which ends with the stack."""
    from websockets.exceptions import WebSocketException
    from websockets.sync.client import connect

    try:
        connection = opened.enter_context(connect(url, max_size=MAX_MESSAGE, close_timeout=CLOSING))
    except (OSError, WebSocketException) as error:
        reason = one_line(error, 100)
        raise EpisodeError(f"no OpenEnv server answers at {url} ({reason}); start it, or correct url") from error
    opened.callback(_leave, connection)
    return connection


def _leave(connection: "ClientConnection") -> None:
    """Leave a session, and wait until the server has ended it, so that another one has its place."""
    from websockets.exceptions import ConnectionClosed

    with contextlib.suppress(ConnectionClosed, OSError):
        connection.send(json.dumps({"type": "close"}))
        connection.recv(timeout=CLOSING)


def _error(data: Mapping[str, Any]) -> EpisodeError:
    code, message = data.get("code"), str(data.get("message"))
    if code == ACTION:
        return _refused(data.get("errors") or (), message)
    if code == FAILURE:
        return EpisodeError(message)
    if code == "CAPACITY_REACHED":
        return EpisodeLost(f"{message}; start the server with a larger max_concurrent_envs")
    return EpisodeLost(f"the OpenEnv server ended the session: {message} ({code})")


def _refused(errors: Sequence[Mapping[str, Any]], message: str) -> EpisodeError:
    """Return the error of an action that does not fit: the fault of its text, or of the name of its field."""
    fields = "; ".join(f"{'.'.join(map(str, each.get('loc', ())))}: {each.get('msg')}" for each in errors)
    if any(each.get("type") in MISNAMED for each in errors):
        return EpisodeLost(f"the action has other fields ({fields}); set the option action")
    return EpisodeError(f"the action was refused: {fields or message}")


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
