"""Definition of a task: a source of problems, the reward that scores them, and optional demonstrations."""

import functools
import hashlib
import inspect
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast, get_args

from gvpo.errors import ConfigError
from gvpo.nearest import did_you_mean
from gvpo.types import Problem

Split = Literal["train", "eval"]
"""Split of the problems: for training, or held out. No problem is in both, regardless of the seeds."""

EVAL_SHARE = 10
"""One of this many generated problems is held out."""
PATIENCE = 2000
"""Number of consecutive draws without a new problem after which the problems count as exhausted."""


Written = str | Sequence[str]
"""A written answer: its text, or the turns of a dialogue and what is heard after each, which is not trained on."""


@dataclass(frozen=True)
class Task:
    """A task.

    Args:
        name: Its key in `TASKS`.
        reward: Name of the reward that scores it, in `gvpo.rewards.REWARDS`; "" if only an environment can.
        problems: `problems(split, count, seed, **options)` returns at most `count` different problems of a split.
        demonstrations: `demonstrations(count, seed, **options)` returns training problems, each with a written answer,
            for supervised training; None if the task has no demonstrations.
        read: `read(rows, split, **options)` converts rows in the task's form, from any source, into problems; None if
            the problems are generated.
        summary: Short description.

    The functions are deterministic: the same arguments give the same lists.
    """

    name: str
    reward: str
    problems: Callable[..., list[Problem]]
    demonstrations: Callable[..., Sequence[tuple[Problem, Written]]] | None = None
    read: Callable[..., list[Problem]] | None = None
    summary: str = ""


def check_split(task: str, split: str) -> None:
    """Check the name of a split.

    Raises:
        ConfigError: If the split is neither "train" nor "eval".
    """
    if split not in get_args(Split):
        raise ConfigError(f"the task {task!r} has the splits train and eval, not {split!r}")


def split_of(name: str) -> Split:
    """Return the split of a problem, which depends only on its name, so that no seed moves it into training."""
    held_out = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") % EVAL_SHARE == 0
    return "eval" if held_out else "train"


def different(draws: Iterator[Problem], count: int) -> list[Problem]:
    """Return the first `count` problems with different IDs, or fewer if `PATIENCE` draws in a row bring no new one."""
    found: dict[str, Problem] = {}
    misses = 0
    for problem in draws:
        if len(found) >= count or misses >= PATIENCE:
            break
        misses = misses + 1 if problem.id in found else 0
        found.setdefault(problem.id, problem)
    return list(found.values())


T = TypeVar("T")


def shuffled(items: Iterable[T], name: str) -> list[T]:
    """Return the items in a random order that depends only on `name`."""
    found = list(items)
    random.Random(name).shuffle(found)
    return found


def chosen(task: str, option: str, given: Sequence[T] | None, known: Sequence[T]) -> list[T]:
    """Return the known values that an option chooses, without repetitions; None chooses all.

    Raises:
        ConfigError: If the option is not a list, is empty, or contains an unknown value.
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
    """Decorate a task's function so that an unknown option raises an error that suggests the nearest option."""

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
