"""Environments in worker processes with deadlines: the policy's texts in, answers out, whatever environments do.

This is the contract; for now environments run in the trainer's process.
"""

import asyncio
import inspect
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gvpo.environments.base import Environment, EnvironmentSpec, Say, as_turn
from gvpo.errors import one_line
from gvpo.types import TurnOutcome


@dataclass(frozen=True)
class Start:
    """The beginning of an episode.

    Args:
        id: Identifies the episode in the pool; unique among live ones.
        seed: Random seed, the same for all episodes of a group.
        columns: Columns of the problem.
    """

    id: str
    seed: int
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """An environment's answer to a reset or a step, or the failure of that call.

    Args:
        say: What the policy hears next; after a reset, what is added to the prompt.
        reward: Reward of the turn; None if it has none.
        done: Whether the episode has ended.
        outcome: What came of the call; see `gvpo.types.TurnOutcome`. After "lost", the episode has ended.
        detail: Error in one line; "" without one.
        seconds: Duration of the call.
        metrics: Further numbers of the environment, by name.
    """

    say: Say = ""
    reward: float | None = None
    done: bool = False
    outcome: TurnOutcome = "ok"
    detail: str = ""
    seconds: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)


class EnvironmentPool:
    """Runs the episodes of an environment.

    Args:
        spec: The environment.
        workers: Maximum number of processes; they start when first needed and stay.
        timeout: Maximum seconds per reset or step.
        log: File that the environments' prints are appended to; None discards them.
        memory_limit: Bytes that a worker may allocate; None for no limit.

    Threads may call its methods at the same time.

    Raises:
        EpisodeError: If the environment cannot be sent to a worker.
    """

    def __init__(
        self,
        spec: EnvironmentSpec,
        *,
        workers: int = 2,
        timeout: float = 10.0,
        log: str | Path | None = None,
        memory_limit: int | None = 4 << 30,
    ) -> None:
        self.spec = spec
        self._live: dict[str, Environment] = {}

    def reset(self, starts: Sequence[Start]) -> list[Answer]:
        """Begin episodes.

        Returns:
            One answer per episode, in order. An episode whose reset failed has the outcome "lost" and never began.

        Raises:
            EpisodeError: If no environment can be loaded in a worker.
        """
        return [self._called(self._begin, start) for start in starts]

    def step(self, texts: Mapping[str, str]) -> dict[str, Answer]:
        """Give each of some episodes, by ID, the policy's text.

        Returns:
            One answer per episode. Episodes that are done or lost have left the pool.
        """
        return {name: self._called(self._live[name].step, text) for name, text in texts.items()}

    def forget(self, episodes: Iterable[str]) -> None:
        """Leave episodes that the policy does not continue; those that the pool does not have are ignored."""
        for name in episodes:
            self._live.pop(name, None)

    def close(self) -> None:
        """End the workers and their descendants. A later `reset` starts new ones."""
        self._live.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _begin(self, start: Start) -> str:
        self._live[start.id] = self.spec.make()
        opening = _awaited(self._live[start.id].reset(seed=start.seed, **start.columns))
        return opening or ""

    def _called(self, call: Any, argument: Any) -> Answer:
        began = time.perf_counter()
        try:
            turn = as_turn(_awaited(call(argument)))
        except Exception as error:
            text = f"{type(error).__name__}: {one_line(error, 200)}"
            return Answer(text, outcome="error", detail=text, seconds=time.perf_counter() - began)
        seconds = time.perf_counter() - began
        outcome: TurnOutcome = "error" if turn.error else "ok"
        return Answer(turn.say, turn.reward, turn.done, outcome, turn.error, seconds, turn.metrics)


def _awaited(value: Any) -> Any:
    if not inspect.isawaitable(value):
        return value

    async def wait() -> Any:
        return await value

    return asyncio.run(wait())
