"""Environments in worker processes with deadlines: the policy's texts in, answers out, whatever environments do.

texts ─▶ one message per worker with the steps of the episodes that it has ─▶ answers
              ▲                          │
              └── the episodes of a worker that is gone: replayed in another one, without the text that ended it
"""

import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import cloudpickle

from gvpo.environments.base import EnvironmentSpec
from gvpo.environments.calls import Answer, Book, Calls, Episode, Start
from gvpo.environments.serving import Episodes
from gvpo.errors import EpisodeError
from gvpo.workers.calls import Purpose
from gvpo.workers.dispatch import Dispatcher

__all__ = ["Answer", "EnvironmentPool", "Start"]

PURPOSE = Purpose(EpisodeError, "an environment worker", "environment", "the environment")
"""Words for the pool's workers in messages."""


class EnvironmentPool:
    """Runs the episodes of an environment in worker processes, and survives what environments do there.

    An episode stays in the worker that began it. If that worker is gone, the episode is replayed in another one from
    its seed, columns and texts, so an environment must depend on nothing else. What comes of a step is the answer's
    `outcome`:

    - `ok`: the environment answered. Lone surrogates in what it says are replaced by question marks.
    - `error`: the step raised, and says `ValueError: message` in one line of at most 200 characters; or it returned
      something that cannot be used, such as a reward that is not a finite number, which is then None. The episode
      continues, and the text is part of its replays.
    - `timeout`: there was no answer in time, which it says. The worker was killed with all processes that it started.
    - `died`: the worker ended, or the memory limit was reached, twice: the step is first repeated in another worker,
      since other episodes may have been the reason. What it says is how the process ended.
    - `lost`: the episode has ended without an answer, because its reset failed, because its step raised `EpisodeLost`,
      because this is the second turn without one, or because there was none and the environment is not replayable.
    - `gone`: the episode has ended because its worker ended during another one, and it could not be replayed: the
      environment is not replayable, or answered its replay differently.

    After `timeout` and `died`, the episode continues as if the policy had not spoken: the text is left out of replays.

    Args:
        spec: The environment.
        workers: Maximum number of processes; they start when first needed and stay. While calls are late, up to as
            many more start to replace those that will be killed.
        timeout: Maximum seconds per reset or step.
        log: File that the environments' prints are appended to, with the tracebacks of their errors; None discards
            them.
        memory_limit: Bytes that a worker may allocate (RLIMIT_DATA, if the system has it); None for no limit. All
            episodes of a worker share it.

    Threads may call its methods at the same time; they take turns.

    Raises:
        EpisodeError: If the environment cannot be sent to a worker, or a limit is not positive.
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
        _check_limits(workers, timeout)
        self.spec, self._workers = spec, workers
        self._turn, self._book = threading.Lock(), Book()
        setup = {"service": Episodes(spec.name, _pickled(spec)), "timeout": timeout, "memory_limit": memory_limit}
        self._dispatcher = Dispatcher(
            setup,
            PURPOSE,
            workers=workers,
            timeout=timeout,
            log=None if log is None else Path(log),
            spares=workers,
            moves=spec.replayable,
        )

    def reset(self, starts: Sequence[Start]) -> list[Answer]:
        """Begin episodes.

        Returns:
            One answer per episode, in order. An episode whose reset failed has the outcome "lost" and never began.

        Raises:
            EpisodeError: If no environment can be loaded in a worker, a column cannot be sent to one, or an ID is that
                of a live episode.
        """
        with self._turn:
            self._add(starts)
            try:
                answers = self._run({start.id: None for start in starts})
            except BaseException:
                for start in starts:
                    self._book.leave(start.id)
                raise
        return [answers[start.id] for start in starts]

    def step(self, texts: Mapping[str, str]) -> dict[str, Answer]:
        """Give each of some episodes, by ID, the policy's text.

        Returns:
            One answer per episode. Episodes that are done, lost or gone have left the pool.

        Raises:
            EpisodeError: If an episode is not live, or workers do not start.
        """
        with self._turn:
            for name in texts:
                if name not in self._book.live:
                    raise EpisodeError(f"there is no live episode {name!r}; it has ended, or never began")
            return self._run(texts)

    def forget(self, episodes: Iterable[str]) -> None:
        """Leave episodes that the policy does not continue; those that the pool does not have are ignored."""
        with self._turn:
            for name in episodes:
                self._book.leave(name)

    def close(self) -> None:
        """End the workers and their descendants; calls of other threads raise EpisodeError.

        A later `reset` starts new workers.
        """
        self._dispatcher.interrupt()
        with self._turn:
            self._dispatcher.close()
            self._book = Book()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _add(self, starts: Sequence[Start]) -> None:
        new: dict[str, Episode] = {}
        for start in starts:
            if start.id in self._book.live or start.id in new:
                raise EpisodeError(f"there is a live episode {start.id!r} already; give each episode its own ID")
            if "seed" in start.columns:
                raise EpisodeError("the data has a column 'seed', the name of the episodes' seed; rename the column")
            new[start.id] = Episode(start)
        self._book.live.update(new)

    def _run(self, asked: Mapping[str, str | None]) -> dict[str, Answer]:
        calls = Calls(self.spec, self._book, asked, self._workers)
        self._dispatcher.run(calls)
        return {name: calls.answers[name] for name in asked}


def _check_limits(workers: int, timeout: float) -> None:
    if workers < 1:
        raise EpisodeError(f"environments need at least one worker, not {workers}")
    if not timeout > 0 or math.isinf(timeout):
        raise EpisodeError(f"the timeout of environments must be a number of seconds above 0, not {timeout}")


def _pickled(spec: EnvironmentSpec) -> bytes:
    try:
        return bytes(cloudpickle.dumps(spec.make))
    except Exception as error:
        raise EpisodeError(
            f"environment {spec.name!r} cannot be sent to a worker process ({type(error).__name__}: {error}); create "
            "its locks, open files and clients in reset"
        ) from error
