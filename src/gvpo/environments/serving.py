"""Environments in a worker: episodes that live there, and replies with what they answer as JSON.

Does not know about turns of the policy, failures of workers or replays; the pool decides what is called.
"""

import contextlib
import hashlib
import inspect
import json
import os
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from gvpo.environments.base import Environment, as_turn
from gvpo.errors import EpisodeError, EpisodeLost, type_of
from gvpo.messages import content_text, well_formed
from gvpo.workers.awaiting import Awaiting
from gvpo.workers.functions import problem, value_of
from gvpo.workers.replies import traceback_of

MAX_DETAIL = 200
"""Maximum number of characters of an error."""
MAX_SAY = 1 << 22
"""Maximum number of characters of an observation."""
MAX_LOGGED = 100
"""Maximum number of different errors whose tracebacks a worker prints."""
ROLES = ("tool", "user")


class Episodes:
    """Episodes of an environment in a worker (`gvpo.workers.worker.Service`).

    Args:
        name: Name of the environment.
        pickled: Pickled function that returns an environment.
    """

    def __init__(self, name: str, pickled: bytes) -> None:
        self._name, self._pickled = name, pickled
        self._make: Callable[[], Environment] | None = None
        self._live: dict[str, Environment] = {}
        self._awaiting = Awaiting()
        self._logged: set[str] = set()

    def load(self) -> dict[str, Any] | None:
        """Load the function that makes environments; return the problem if that fails."""
        try:
            self._make = pickle.loads(self._pickled)
            getattr(self._make, "prepare", lambda: None)()
        except BaseException as error:
            return problem(self._name, error)
        return None

    def parts(self, message: Any) -> Iterator[Callable[[], Mapping[str, Any]]]:
        """Leave some episodes, and return the resets and steps of others."""
        forgotten, actions = message
        for name in forgotten:
            self._live.pop(name, None)
        return (partial(self._answer, *action) for action in actions)

    def _answer(self, name: str, text: str | None, start: tuple[int, Mapping[str, Any]] | None) -> dict[str, Any]:
        """Return the reply to a step, or to a reset, which has a start and no text."""
        try:
            answer = self._reset(name, *start) if start is not None else self._step(name, text or "")
        except MemoryError:
            raise  # other episodes may have filled the memory; the worker is replaced
        except BaseException as error:
            answer = {"raised": self._told(error)}
            if isinstance(error, EpisodeLost):
                self._live.pop(name, None)
                answer["lost"] = True
        return {"answer": answer}

    def _reset(self, name: str, seed: int, columns: Mapping[str, Any]) -> dict[str, Any]:
        assert self._make is not None
        environment = self._make()
        arguments = _accepted(environment.reset, {**columns, "seed": seed})
        opening = self._awaiting.result(environment.reset(**arguments))
        say = "" if opening is None else checked_say(opening, "reset")
        self._live[name] = environment
        return {"say": say, "digest": _digest(say)}

    def _step(self, name: str, text: str) -> dict[str, Any]:
        answer = checked_turn(self._awaiting.result(self._live[name].step(text)))
        if answer["done"]:
            del self._live[name]
        return answer

    def _told(self, error: BaseException) -> str:
        """Return an error in one line; print its traceback if the error is new."""
        text = str(error)[:MAX_DETAIL] if isinstance(error, EpisodeError) else _named(error)
        if text not in self._logged and len(self._logged) < MAX_LOGGED:
            self._logged.add(text)
            with contextlib.suppress(OSError):
                os.write(2, well_formed(traceback_of(error)).encode())
        return text


def checked_turn(returned: Any) -> dict[str, Any]:
    """Return what a step returned as plain values.

    Args:
        returned: Anything; valid are the forms of `StepResult`.

    Returns:
        `say`, `reward`, `done`, `metrics`, a `digest` of say and done, and `wrong`: the turn's own error, or why
        something of it cannot be used, or "". A wrong reward is None, wrong metrics are left out, and a wrong `say`
        becomes the reason.

    Raises:
        EpisodeError: If it has another form.
    """
    turn = as_turn(returned)
    done, wrong = bool(turn.done), well_formed(" ".join(str(turn.error).split()))
    reward, why = value_of(turn.reward)
    if why and not wrong:
        wrong = f"step {why[1]} as its reward"
    metrics, problem = _checked_metrics(turn.metrics)
    try:
        say = checked_say(turn.say)
    except EpisodeError as error:
        say = problem = str(error)
    return {
        "say": say,
        "reward": reward,
        "done": done,
        "metrics": metrics,
        "digest": _digest([say, done]),
        "wrong": (wrong or problem)[:MAX_DETAIL],
    }


def checked_say(say: Any, method: str = "step") -> str | list[dict[str, str]]:
    """Return what an environment says, with a question mark in place of each lone surrogate.

    Raises:
        EpisodeError: If it is neither text nor messages of a tool or a user, or is too long.
    """
    if isinstance(say, str):
        checked: str | list[dict[str, str]] = well_formed(say)
        length = len(say)
    elif isinstance(say, Sequence) and not isinstance(say, bytes | bytearray):
        checked = [_message(message, method) for message in say]
        length = sum(len(text) for message in checked for text in message.values())
    else:
        raise EpisodeError(f"{method} said {type_of(say)}; say text, or messages with the role tool or user")
    if length > MAX_SAY:
        raise EpisodeError(f"{method} said {length} characters; say at most {MAX_SAY}")
    return checked


def _message(message: Any, method: str) -> dict[str, str]:
    if not isinstance(message, Mapping) or message.get("role") not in ROLES:
        raise EpisodeError(f'{method} said {type_of(message)} in a list; say messages as {{"role": "tool", ...}}')
    content = message.get("content")
    text = content if isinstance(content, str) else content_text(content)
    others = {str(key): value for key, value in message.items() if isinstance(value, str)}
    return {key: well_formed(value) for key, value in {**others, "content": text}.items()}


def _checked_metrics(metrics: Any) -> tuple[dict[str, float], str]:
    """Return the metrics that are finite numbers, and why others are not."""
    if not isinstance(metrics, Mapping):
        return {}, f"step returned {type_of(metrics)} as its metrics; return numbers by name"
    values = {well_formed(str(name)): value_of(value) for name, value in metrics.items()}
    wrong = [f"step {why[1]} as its metric {name!r}" for name, (_, why) in values.items() if why]
    return {name: value for name, (value, _) in values.items() if value is not None}, wrong[0] if wrong else ""


def _accepted(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the arguments that a function has parameters for; all of them if that is unknown."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return arguments
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return arguments
    names = {parameter.name for parameter in parameters}
    return {name: value for name, value in arguments.items() if name in names}


def _named(error: BaseException) -> str:
    """Return `ValueError: message` on one line, however badly the exception behaves."""
    name = type(error).__name__
    try:
        message = " ".join(str(error).split())
    except BaseException:
        message = ""
    return well_formed(f"{name}: {message}" if message else name)[:MAX_DETAIL]


def _digest(value: Any) -> str:
    """Return what identifies an answer, to compare it with that of a replay."""
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=8).hexdigest()
