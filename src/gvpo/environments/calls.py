"""The calls of one reset or step of the pool: who gets which episode, and what follows from a failure.

an episode's worker ──▶ the step                    another worker ──▶ reset and earlier texts again, then the step
       │
       └─ ended ──▶ the step again elsewhere ──ended again──▶ the policy hears so; the second time, the episode is lost
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gvpo.environments.base import EnvironmentSpec, Say
from gvpo.errors import EpisodeError
from gvpo.types import ENDINGS, TurnOutcome
from gvpo.workers.process import WorkerProcess
from gvpo.workers.replies import Reply
from gvpo.workers.wire import packed

GIVE_UP_AFTER = 8
"""If the resets of this many seeds got no answer and none did, no other is tried in the same call."""
MOST_FAILURES = 2
"""Number of turns without an answer after which an episode is lost."""


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
        outcome: What came of the call; see `gvpo.types.TurnOutcome`. After "lost" and "gone", the episode has ended.
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


@dataclass
class Episode:
    """A live episode: what is needed to replay it, and the worker that has it.

    Args:
        start: Its beginning.
        opening: Digest of the reset's answer; None before it.
        texts: Texts that the environment answered, with the digests of its answers.
        holder: Worker that has it; it may have ended.
        failures: Number of turns without an answer.
        seconds: Seconds that a replay will take.
    """

    start: Start
    opening: str | None = None
    texts: list[tuple[str, str]] = field(default_factory=list)
    holder: WorkerProcess | None = None
    failures: int = 0
    seconds: float = 0.0

    @property
    def is_homeless(self) -> bool:
        """True if no worker has it."""
        return self.holder is None or self.holder.ended


@dataclass(frozen=True)
class Action:
    """A reset or a step of an episode.

    Args:
        name: ID of the episode.
        text: Text of the policy; None for a reset.
        replays: Digest of the answer that is known already; None if the answer is wanted.
        cost: Seconds that a replay of the episode will take.
    """

    name: str
    text: str | None
    replays: str | None = None
    cost: float = 0.0

    @property
    def function(self) -> int:
        """Return 0 for a reset and 1 for a step."""
        return int(self.text is not None)


@dataclass(frozen=True)
class Actions:
    """The message to a worker: actions in order, and episodes that it should leave before."""

    actions: Sequence[Action]
    forgotten: Sequence[str]
    function: int = 1

    def parts(self) -> Sequence[Action]:
        """Return the actions, each of which has a deadline of its own."""
        return self.actions


class Book:
    """The live episodes of a pool, and those that workers should leave."""

    def __init__(self) -> None:
        self.live: dict[str, Episode] = {}
        self._forgotten: dict[WorkerProcess, list[str]] = {}

    def leave(self, name: str) -> None:
        """Remove an episode; those that are unknown are ignored."""
        episode = self.live.pop(name, None)
        if episode is not None:
            self.detach(name, episode)

    def detach(self, name: str, episode: Episode) -> None:
        """Take an episode from its worker."""
        if episode.holder is not None and not episode.holder.ended:
            self._forgotten.setdefault(episode.holder, []).append(name)
        episode.holder = None

    def forgotten(self, worker: WorkerProcess) -> list[str]:
        """Remove and return the episodes that a worker should leave."""
        self._forgotten = {each: names for each, names in self._forgotten.items() if not each.ended}
        return self._forgotten.pop(worker, [])


class Calls:
    """The dispatcher's queue for one reset or step of some episodes.

    Args:
        spec: The environment.
        book: The live episodes.
        asked: Texts of the policy by episode; None for a reset.
        workers: Number of workers that share the episodes.

    Attributes:
        answers: Answers by episode.
    """

    def __init__(self, spec: EnvironmentSpec, book: Book, asked: Mapping[str, str | None], workers: int) -> None:
        self._spec, self._book, self._asked, self._workers = spec, book, asked, workers
        self.answers: dict[str, Answer] = {}
        self._waiting = dict.fromkeys(asked)
        self._repeated: set[str] = set()
        self._silent: set[int] = set()  # seeds of resets without an answer
        self._has_begun = False  # whether a reset has had an answer

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self, worker: WorkerProcess, new: int) -> Actions | None:
        """Return the actions of the episodes that a worker has, and of a share of those that no worker has."""
        homeless = [name for name in list(self._waiting) if self._is_homeless(name)]
        own = [name for name in self._waiting if self._book.live[name].holder is worker]
        chosen = own + homeless[: self._share(worker, len(homeless), new)]
        if not chosen:
            return None
        actions = [action for name in chosen for action in self._actions(name, worker)]
        for name in chosen:
            del self._waiting[name]
        return Actions(actions, self._book.forgotten(worker))

    def payload(self, message: Actions) -> bytes:
        """Return the message to a worker.

        Raises:
            EpisodeError: If a column cannot be sent.
        """
        actions = [(action.name, action.text, self._start(action)) for action in message.actions]
        try:
            return packed((message.forgotten, actions))
        except Exception as error:
            raise self._cannot_send(actions, error) from error

    def done(self, action: Action, reply: Reply) -> None:
        """Record the answer to an action, or handle its failure."""
        if action.name in self.answers:
            return  # a replay failed, so that the episode has ended
        if reply.failed is None:
            self._hear(action, reply)
        elif reply.spent and action.name not in self._repeated and self._can_repeat(action.name):
            self._repeated.add(action.name)
            self.put_back([action])
        else:
            self._fail(action, reply)

    def put_back(self, parts: Sequence[Action]) -> None:
        """Take back the episodes of actions whose replies were lost, or that should move to another worker."""
        names = dict.fromkeys(action.name for action in parts if action.name not in self.answers)
        for name in names:
            self._book.detach(name, self._book.live[name])
        self._waiting = {**names, **self._waiting}

    def _can_repeat(self, name: str) -> bool:
        """Return whether an episode can be replayed, or has not begun."""
        return self._spec.replayable or self._book.live[name].opening is None

    def _is_homeless(self, name: str) -> bool:
        """Return whether an episode waits for any worker; end it if it has lost its own and cannot be replayed."""
        episode = self._book.live[name]
        if episode.is_homeless and not self._can_repeat(name):
            self._end(name, Answer(outcome="gone", detail="its process ended, and the episode cannot be replayed"))
            return False
        return episode.is_homeless

    def _share(self, worker: WorkerProcess, homeless: int, new: int) -> int:
        """Return the maximum number of further episodes for a worker."""
        live = self._book.live.values()
        room = -(-len(live) // self._workers) - sum(episode.holder is worker for episode in live)
        if room > 0:
            return room
        return 0 if new else -(-homeless // self._workers)

    def _actions(self, name: str, worker: WorkerProcess) -> list[Action]:
        """Return the actions that lead to an episode's answer, and let the worker have the episode."""
        episode, text = self._book.live[name], self._asked[name]
        if episode.holder is worker:
            return [Action(name, text, cost=episode.seconds)]
        self._book.detach(name, episode)
        episode.holder = worker
        if text is None:
            return [Action(name, None)]
        actions = [(None, episode.opening), *episode.texts, (text, None)]
        return [Action(name, said, digest, episode.seconds) for said, digest in actions]

    def _start(self, action: Action) -> tuple[int, Mapping[str, Any]] | None:
        start = self._book.live[action.name].start
        return (start.seed, start.columns) if action.text is None else None

    def _hear(self, action: Action, reply: Reply) -> None:
        answer = reply.answer or {}
        raised, digest = answer.get("raised"), str(answer.get("digest", "raised"))
        episode = self._book.live[action.name]
        if action.replays is not None:
            if digest != action.replays:
                self._end(action.name, Answer(outcome="gone", detail=_differs(self._spec.name, raised)))
        elif action.text is None:
            self._has_begun = True
            episode.opening, episode.seconds = digest, reply.seconds
            self._begin(action.name, _answer(answer, reply.seconds))
        else:
            episode.texts.append((action.text, digest))
            episode.seconds += reply.seconds
            self._end(action.name, _answer(answer, reply.seconds))

    def _begin(self, name: str, answer: Answer) -> None:
        lost = Answer(outcome="lost", detail=answer.detail, seconds=answer.seconds)
        self._end(name, lost if answer.outcome == "error" else answer)

    def _fail(self, action: Action, reply: Reply) -> None:
        """Let the policy hear that there was no answer; the episode is lost if that happens again or cannot be."""
        kind, detail = reply.failed or ("", "")
        outcome: TurnOutcome = "timeout" if kind == "timeout" else "died"
        detail = detail.removeprefix("gave ").removeprefix("raised ")
        detail = f"the environment {detail}" if kind == "died" else detail
        episode, is_reset = self._book.live[action.name], self._asked[action.name] is None
        episode.failures += 1
        self._book.detach(action.name, episode)
        if is_reset or episode.failures >= MOST_FAILURES or not self._spec.replayable:
            self._end(action.name, Answer(outcome="lost", detail=detail, seconds=reply.seconds))
        else:
            self._end(action.name, Answer(detail, outcome=outcome, detail=detail, seconds=reply.seconds))
        if is_reset:
            self._silent.add(episode.start.seed)
            self._despair(detail)

    def _despair(self, detail: str) -> None:
        """Put off resets that are like those without an answer; give all up if that is all that was seen."""
        if self._has_begun:
            return
        self._waiting = dict.fromkeys(sorted(self._waiting, key=self._is_silent))
        if len(self._silent) < GIVE_UP_AFTER:
            return
        detail = f"{detail}, {GIVE_UP_AFTER} times out of {GIVE_UP_AFTER}; it was not called again"
        for name in list(self._waiting):
            self._end(name, Answer(outcome="lost", detail=detail))

    def _is_silent(self, name: str) -> bool:
        return self._book.live[name].start.seed in self._silent

    def _end(self, name: str, answer: Answer) -> None:
        """Record the answer of an episode; leave the episode if it has ended."""
        self.answers[name] = answer
        self._waiting.pop(name, None)
        if answer.done or answer.outcome in ENDINGS:
            self._book.leave(name)

    def _cannot_send(self, actions: Iterable[tuple[str, str | None, Any]], error: Exception) -> EpisodeError:
        for _, _, start in actions:
            for column, value in (start[1] if start else {}).items():
                try:
                    packed(value)
                except Exception as reason:
                    return EpisodeError(
                        f"column {column!r} cannot be sent to the environment {self._spec.name!r} "
                        f"({type(reason).__name__}: {reason}); drop the column or keep plain values in it"
                    )
        return EpisodeError(f"the episodes cannot be sent to the environment {self._spec.name!r}: {error}")


def _answer(found: Mapping[str, Any], seconds: float) -> Answer:
    """Return a worker's answer; an error is what the policy hears."""
    if found.get("lost"):
        return Answer(outcome="lost", detail=found["raised"], seconds=seconds)
    if found.get("raised"):
        return Answer(found["raised"], outcome="error", detail=found["raised"], seconds=seconds)
    wrong = found.get("wrong", "")
    return Answer(
        found["say"],
        found.get("reward"),
        found.get("done", False),
        "error" if wrong else "ok",
        wrong,
        seconds,
        found.get("metrics", {}),
    )


def _differs(name: str, raised: str | None) -> str:
    what = f"failed ({raised})" if raised else "answered differently"
    return (
        f"{name} {what} when the episode was replayed in another process; let it depend on nothing but seed, columns "
        "and texts, or set replayable=False"
    )
