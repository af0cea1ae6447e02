"""Environment classes of TRL's `environment_factory`: public methods are tools, and a reward is in the instance."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import FunctionType, MethodType
from typing import Any

from gvpo.environments.adapters.tools import Tool, Toolbox, check_tools
from gvpo.environments.base import EnvironmentSpec, Turn
from gvpo.errors import EpisodeError

REWARD, GET_REWARD = "reward", "get_reward"


class MethodEnvironment(Toolbox):
    """Lets the policy call the public methods of an object, as TRL does.

    `reset` gets the columns that it accepts; the seed too, if its signature names it. An exception of a method is told
    to the policy, which then speaks again; a turn without a call ends the episode.

    The reward is what `get_reward()` returns, or the attribute `reward`. TRL reads it after the episode. Here each turn
    is paid the change since the previous turn, so that the sum over the turns is the same value.

    Args:
        make: Class or function that returns the object.
        options: Its arguments.
        tools: Further functions that the policy may call.
    """

    def __init__(self, make: Callable[..., Any], options: Mapping[str, Any], tools: Sequence[Tool]) -> None:
        self._object = make(**options)
        super().__init__([*(getattr(self._object, name) for name in method_names(type(self._object))), *tools])
        self._paid = 0.0

    async def reset(self, *, seed: int, **columns: Any) -> str | None:
        """Begin an episode."""
        accepted = inspect.signature(self._object.reset).parameters
        given = {**columns, **({"seed": seed} if "seed" in accepted else {})}
        if not any(each.kind is each.VAR_KEYWORD for each in accepted.values()):
            given = {name: value for name, value in given.items() if name in accepted}
        returned = self._object.reset(**given)
        opening: str | None = await returned if inspect.isawaitable(returned) else returned
        self._paid = 0.0
        return opening

    async def step(self, text: str) -> Turn:
        """Call the methods that the text names; pay the change of the reward."""
        turn = await super().step(text)
        reward = await self._reward()
        if reward is None:
            return turn
        change, self._paid = float(reward) - self._paid, float(reward)
        return Turn(turn.say, change, turn.done, turn.metrics, turn.error)

    async def _reward(self) -> float | None:
        get = getattr(self._object, GET_REWARD, None)
        reward = get() if callable(get) else getattr(self._object, REWARD, None)
        return await reward if inspect.isawaitable(reward) else reward


def trl_spec(
    name: str, kind: type, make: Callable[..., Any], options: Mapping[str, Any], tools: Sequence[Tool]
) -> EnvironmentSpec:
    """Return the environment of TRL's kind.

    Args:
        name: Name of the environment.
        kind: Class of the instances.
        make: The class, or the function that returns instances.
        options: Arguments of `make`.
        tools: Further functions that the policy may call.

    Raises:
        EpisodeError: If there is no method to call, or one has no docstring.
    """
    methods = [_described(kind, each) for each in method_names(kind)]
    if not methods and not tools:
        raise EpisodeError(
            f"the environment {name!r} has neither a method `step` nor a public method that the policy could call; "
            "write step(self, text)"
        )
    check_tools([*methods, *tools])
    make_one = partial(MethodEnvironment, make, dict(options), tuple(tools))
    return EnvironmentSpec(name, make_one, pays=_has_reward(kind), tools=(*methods, *tools))


def method_names(kind: type) -> list[str]:
    """Return the names of the public methods of a class, except `reset` and `get_reward`, in alphabetical order."""
    functions = inspect.getmembers(kind, predicate=inspect.isfunction)
    return [name for name, _ in functions if not name.startswith("_") and name not in ("reset", GET_REWARD)]


def _described(kind: type, name: str) -> Tool:
    """Return a method as chat templates describe it: without `self`."""
    found = inspect.getattr_static(kind, name)
    return MethodType(found, kind) if isinstance(found, FunctionType) else getattr(kind, name)


def _has_reward(kind: type) -> bool:
    """Return whether a class has a reward: a method, an attribute, or one that a method sets."""
    if hasattr(kind, REWARD) or hasattr(kind, GET_REWARD):
        return True
    return any(REWARD in function.__code__.co_names for function in _own_functions(kind))


def _own_functions(kind: type) -> Iterator[FunctionType]:
    for owner in kind.__mro__:
        yield from (each for each in vars(owner).values() if isinstance(each, FunctionType))
