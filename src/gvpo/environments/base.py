"""The protocol of environments: what a user writes, and what the trainer knows of it.

reset(seed, columns) ──▶ opening        step(the policy's text) ──▶ what it says, a reward, whether it is done
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from gvpo.errors import EpisodeError, type_of
from gvpo.types import Message

Say = str | Sequence[Message]
"""Text of an environment, or messages with the role `tool` or `user`."""

Blame = Literal["text", "environment"]
"""Culprit of a step that gives no answer: the text of the policy, or the environment."""


@dataclass(frozen=True)
class Turn:
    """Result of an environment's step.

    Args:
        say: What the policy hears before its next turn; "" if the episode is done.
        reward: Reward of the policy's turn; None if it has none.
        done: Whether the episode has ended.
        metrics: Further numbers about the turn, by name.
        error: Mistake of the policy that `say` tells it, such as a tool call that cannot be read; "" without one. The
            turn then has the outcome "error", as if `step` had raised it.
    """

    say: Say = ""
    reward: float | None = None
    done: bool = False
    metrics: Mapping[str, float] = field(default_factory=dict)
    error: str = ""


StepResult = Turn | str | tuple[Any, ...]
"""Return value of `step`: a `Turn`, text of the environment, or `(say, reward, done)`."""


class Environment(Protocol):
    """A partner of the policy; an instance has one episode at a time.

    An episode must be a function of the seed, the columns and the policy's texts: an environment that is lost with its
    process is replayed. All episodes of a group have the same seed and columns.

    A class may have attributes with the names of `EnvironmentSpec`: `worst`, `pays`, `blames`, `replayable`, `tools`.
    """

    def reset(self, *, seed: int, **columns: Any) -> str | Awaitable[str | None] | None:
        """Begin an episode; return what it adds to the prompt, or None.

        Args:
            seed: Random seed of the episode, the same for all episodes of a group.
            columns: Columns of the problem.
        """
        ...

    def step(self, text: str) -> StepResult | Awaitable[StepResult]:
        """Answer a turn of the policy.

        Args:
            text: Text of the turn, without its end token.
        """
        ...


@dataclass(frozen=True)
class EnvironmentSpec:
    """An environment as the trainer knows it.

    Args:
        name: Name in messages and logs.
        make: Function without arguments that returns an environment. It is sent to worker processes.
        worst: Lowest reward of an episode: that of an episode that got no reward, or whose last turn made the
            environment fail.
        pays: Whether turns have rewards. If not, the reward functions decide alone.
        blames: Who is to blame for a step that gives no answer: the policy's `text`, so that the episode gets the worst
            reward, or the `environment`, so that it gets none.
        replayable: Whether an episode can be repeated from its seed, columns and texts.
        tools: Functions that the chat template describes to the policy.
    """

    name: str
    make: Callable[[], Environment]
    worst: float = 0.0
    pays: bool = True
    blames: Blame = "text"
    replayable: bool = True
    tools: tuple[Callable[..., Any], ...] = ()


def as_turn(returned: Any) -> Turn:
    """Return the result of a step as a turn.

    Raises:
        EpisodeError: If it is none of the allowed forms.
    """
    if isinstance(returned, Turn):
        return returned
    if isinstance(returned, str):
        return Turn(returned)
    if isinstance(returned, tuple) and len(returned) == 3:
        say, reward, done = returned
        return Turn("" if say is None else say, reward, done)
    raise EpisodeError(f"step returned {type_of(returned)}; return text, (say, reward, done) or gvpo.environments.Turn")
