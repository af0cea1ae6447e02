"""What a task is: where its problems come from, the reward that judges them, and worked answers if it has some."""

import functools
import hashlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast, get_args

from gvpo.errors import ConfigError
from gvpo.nearest import did_you_mean
from gvpo.types import Problem

Split = Literal["train", "eval"]
"""Which problems: those to train on, or held-out ones. No problem is in both, whatever the seeds."""

EVAL_SHARE = 10
"""One problem in this many is held out, where problems are made on the spot."""
PATIENCE = 2000
"""Draws in a row that bring no new problem before it is taken that there are no more."""


@dataclass(frozen=True)
class Task:
    """A task.

    Args:
        name: its key in `TASKS`.
        reward: name of the reward that judges it, in `gvpo.rewards.REWARDS`.
        problems: `problems(split, count, seed, **options)` gives at most `count` different problems of a split.
        demonstrations: `demonstrations(count, seed, **options)` gives training problems, each with the text of an
            answer, for supervised training; None where there are none.
        read: `read(rows, split, **options)` makes problems of rows in the task's own form, from wherever they come;
            None where the problems are made on the spot.

    The same arguments give the same lists.
    """

    name: str
    reward: str
    problems: Callable[..., list[Problem]]
    demonstrations: Callable[..., list[tuple[Problem, str]]] | None = None
    read: Callable[..., list[Problem]] | None = None


def check_split(task: str, split: str) -> None:
    """Refuse a split that no task has.

    Raises:
        ConfigError: it is neither "train" nor "eval".
    """
    if split not in get_args(Split):
        raise ConfigError(f"the task {task!r} has the splits train and eval, not {split!r}")


def split_of(name: str) -> Split:
    """Where what has this name belongs: a function of the name alone, so that no seed moves it into training."""
    held_out = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") % EVAL_SHARE == 0
    return "eval" if held_out else "train"


def different(draws: Iterator[Problem], count: int) -> list[Problem]:
    """The first `count` problems of different ids; fewer where `PATIENCE` draws in a row bring none that is new."""
    found: dict[str, Problem] = {}
    misses = 0
    for problem in draws:
        if len(found) >= count or misses >= PATIENCE:
            break
        misses = misses + 1 if problem.id in found else 0
        found.setdefault(problem.id, problem)
    return list(found.values())


T = TypeVar("T")


def chosen(task: str, option: str, given: Sequence[T] | None, known: Sequence[T]) -> list[T]:
    """What an option chooses of the known things, without repetitions; None is all of them.

    Raises:
        ConfigError: it is no list, empty, or names something else.
    """
    every = ", ".join(map(str, known))
    if given is None:
        return list(known)
    if not isinstance(given, list | tuple) or not given:
        raise ConfigError(f"the task {task!r} needs {option} as a list of {every}; it is {given!r}")
    for each in given:
        if isinstance(each, bool) or each not in known:
            raise ConfigError(f"the task {task!r} has no {each!r} among its {option}; choose from {every}")
    return list(dict.fromkeys(given))


F = TypeVar("F", bound=Callable[..., Any])


def checked_options(task: str) -> Callable[[F], F]:
    """Decorate a task's function so that an option it does not have is an error that names the nearest it has."""

    def decorate(function: F) -> F:
        known = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]

        @functools.wraps(function)
        def checked(*args: Any, **options: Any) -> Any:
            for name in set(options) - set(inspect.signature(function).parameters):
                hint = did_you_mean(name, known, f"it has {', '.join(known) or 'none'}")
                raise ConfigError(f"the task {task!r} has no option {name!r}{hint}")
            return function(*args, **options)

        return cast(F, checked)

    return decorate
