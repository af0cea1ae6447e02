"""Checks of the arguments of a reward pool: columns, weights, limits, functions that cannot be sent to a worker."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import cloudpickle

from gvpo.errors import RewardError, type_of
from gvpo.rewards.base import TURNS, RewardBatch, RewardFunc, RewardSignature
from gvpo.workers.calls import Purpose
from gvpo.workers.functions import Functions
from gvpo.workers.state import keeps_state

PURPOSE = Purpose(RewardError, "a reward worker", "reward", "the reward functions")
"""Words for the pool's workers in messages."""

NOT_PASSED = ("trainer_state", "log_extra", "log_metric", "environments")
"""Arguments that TRL passes to rewards in addition to the columns."""


def require_columns(names: Sequence[str], wanted: Sequence[RewardSignature], batches: Sequence[RewardBatch]) -> None:
    """Raise RewardError if a function needs a column that no group has. A column that only some groups lack is allowed.

    Raises:
        RewardError: The message names the function and the column.
    """
    for name, arguments in zip(names, wanted, strict=True):
        lacking = [arguments.missing(batch) for batch in batches]
        if lacking and all(lacking):
            if lacking[0][0] in NOT_PASSED:
                raise RewardError(
                    f"reward {name!r} needs {lacking[0][0]!r}, which gvpo does not pass; give the argument a default"
                )
            if lacking[0][0] == TURNS:
                raise RewardError(
                    f"reward {name!r} needs the turns of episodes, which only completions with an environment have; "
                    "set environment.name, or give the argument a default"
                )
            has = ", ".join(sorted(batches[0].columns)) or "none"
            raise RewardError(
                f"reward {name!r} needs a column {lacking[0][0]!r} that the data does not have (columns: {has}); "
                "rename a column, or give the argument a default"
            )


def checked_weights(names: Sequence[str], weights: Mapping[str, float] | None) -> list[float]:
    """Return each function's weight, in order; 1 each if `weights` is None.

    Raises:
        RewardError: If there are no functions, or the weights do not fit them.
    """
    if not names:
        raise RewardError("there are no reward functions; give at least one")
    given = dict.fromkeys(names, 1.0) if weights is None else dict(weights)
    for name in names:
        if name not in given:
            raise RewardError(
                f"there is no weight for the reward {name!r}; give every reward a weight, or give no weights"
            )
    for name, weight in given.items():
        if name not in names:
            raise RewardError(f"there is a weight for {name!r}, which is not one of the rewards: {', '.join(names)}")
        if not math.isfinite(weight):
            raise RewardError(f"the weight of the reward {name!r} is {weight}; give a finite number")
    if not any(given.values()):
        raise RewardError("the weight of every reward is 0; give at least one of them another")
    return [float(given[name]) for name in names]


def check_limits(workers: int, timeout: float) -> None:
    """Raise RewardError unless the number of workers and the timeout are positive.

    Raises:
        RewardError: The message names the wrong one.
    """
    if workers < 1:
        raise RewardError(f"the reward pool needs at least one worker, not {workers}")
    if not timeout > 0 or math.isinf(timeout):
        raise RewardError(f"the reward timeout must be a number of seconds above 0, not {timeout}")


def pickled(name: str, function: RewardFunc) -> bytes:
    """Return a function as the bytes that are sent to a worker.

    Raises:
        RewardError: If it cannot be sent to a worker.
    """
    if not callable(function):
        raise RewardError(f"reward {name!r} is {type_of(function)}; give a function")
    try:
        return bytes(cloudpickle.dumps(function))
    except Exception as error:
        raise RewardError(
            f"reward {name!r} cannot be sent to a worker process ({type(error).__name__}: {error}); "
            "create its locks, open files and clients inside the function, or on its first call"
        ) from error


def worker_setup(functions: Mapping[str, RewardFunc], *, timeout: float, memory_limit: int | None) -> Mapping[str, Any]:
    """Return the setup that a worker of some functions reads first.

    Raises:
        RewardError: If a function cannot be sent to a worker.
    """
    return {
        "service": Functions(
            {name: pickled(name, function) for name, function in functions.items()},
            [name for name, function in functions.items() if keeps_state(function)],
        ),
        "timeout": timeout,
        "memory_limit": memory_limit,
    }


def cannot_send(name: str, arguments: Mapping[str, Any], error: Exception) -> RewardError:
    """Return the error for arguments that cannot be sent to a worker; it names the column."""
    for column, values in arguments.items():
        try:
            cloudpickle.dumps(values)
        except Exception:
            return RewardError(
                f"column {column!r} cannot be sent to the reward {name!r} ({type(error).__name__}: {error}); "
                "drop the column or keep plain values in it"
            )
    return RewardError(f"the data cannot be sent to the reward {name!r}: {error}; keep plain values in its columns")
