"""What a reward is: TRL's signature, the batch it sees, and which of the arguments it asked for."""

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gvpo.errors import DataError
from gvpo.types import Message, Prompt

RewardFunc = Callable[..., Sequence[float | None] | Awaitable[Sequence[float | None]]]
"""`f(prompts, completions, completion_ids, **columns) -> list[float | None]`, or the same with `async def`.

Every argument is a keyword and a list with one value a row, the data set's columns too. A function gets what its
signature names, and everything if it takes `**kwargs`. None abstains: the row is judged by the other functions alone.
Reference: the reward functions of TRL's `GRPOTrainer`.
"""

Answer = str | Sequence[Message]
"""A completion as rewards see it: text, or `[{"role": "assistant", "content": text}]` where the prompt was messages."""

STANDARD = ("prompts", "completions", "completion_ids")
"""The arguments that every group has; all others are columns of the data set."""


@dataclass(frozen=True)
class RewardBatch:
    """One group, as the rewards see it.

    Args:
        prompt: the prompt as the user wrote it.
        completions: k completions, as text or as messages.
        columns: the problem's columns; each is repeated k times.
        completion_ids: k lists of token ids; [] where there are none.

    Raises:
        DataError: completion_ids is given and not as long as completions.
    """

    prompt: Prompt
    completions: Sequence[Answer]
    columns: Mapping[str, Any] = field(default_factory=dict)
    completion_ids: Sequence[Sequence[int]] = ()

    def __post_init__(self) -> None:
        if self.completion_ids and len(self.completion_ids) != len(self.completions):
            raise DataError(
                f"RewardBatch has {len(self.completion_ids)} completion_ids for {len(self.completions)} completions; "
                "give one list of token ids a completion"
            )

    def __len__(self) -> int:
        return len(self.completions)

    @property
    def names(self) -> frozenset[str]:
        """The arguments that this batch can give."""
        return frozenset(STANDARD if self.completion_ids else STANDARD[:2]) | frozenset(self.columns)

    def only(self, rows: Sequence[int]) -> "RewardBatch":
        """Return the batch of some rows."""
        ids = [self.completion_ids[row] for row in rows] if self.completion_ids else ()
        return RewardBatch(self.prompt, [self.completions[row] for row in rows], self.columns, ids)

    def written(self, text: str) -> "RewardBatch":
        """Return the batch of one row whose completion is `text`, without token ids."""
        messages = bool(self.completions) and not isinstance(self.completions[0], str)
        completion: Answer = [{"role": "assistant", "content": text}] if messages else text
        return RewardBatch(self.prompt, [completion], self.columns, [[]] if self.completion_ids else ())

    def argument(self, name: str) -> list[Any]:
        """One value a row for the argument `name`, which is one of `names`."""
        if name == "prompts":
            return [self.prompt] * len(self)
        if name == "completions":
            return list(self.completions)
        if name == "completion_ids":
            return [list(ids) for ids in self.completion_ids]
        return [self.columns[name]] * len(self)


@dataclass(frozen=True)
class RewardSignature:
    """The arguments that a function asks for.

    Args:
        named: those that its signature names.
        required: those of them without a default, and the columns that an attribute `required_columns` names.
        everything: it takes `**kwargs`.
    """

    named: frozenset[str] = frozenset()
    required: frozenset[str] = frozenset()
    everything: bool = True

    @classmethod
    def by(cls, function: RewardFunc) -> "RewardSignature":
        """Read a function's signature; one that has none (some built-ins) gets everything."""
        columns = frozenset(getattr(function, "required_columns", ()))
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):
            return cls(required=columns)
        by_name = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        return cls(
            frozenset(p.name for p in by_name) | columns,
            frozenset(p.name for p in by_name if p.default is p.empty) | columns,
            any(p.kind is p.VAR_KEYWORD for p in parameters),
        )

    def missing(self, batch: RewardBatch) -> list[str]:
        """The arguments that the function cannot do without and the batch does not have."""
        return sorted(self.required - batch.names)

    def arguments(self, batch: RewardBatch) -> dict[str, list[Any]]:
        """The keyword arguments of the call."""
        return {name: batch.argument(name) for name in sorted(batch.names) if self.everything or name in self.named}


def blames_text(reward: RewardFunc, worst: float = 0.0, control: str = "") -> RewardFunc:
    """Declare that a reward judges text that nobody trusts, and what it pays for a row that it cannot finish.

    A call on one row that times out, ends the worker, runs out of memory or raises is then the completion's doing, and
    the row gets `worst`. Before that, the same row is called with the completion `control`: if that fails too, the
    data or the machine is to blame, and the row has no reward. So is an error of gvpo's own (`GvpoError`).

    Args:
        reward: the reward; its attributes `worst` and `control` are set.
        worst: its lowest value.
        control: an ordinary completion that makes it read the row's columns.

    Returns:
        The reward.
    """
    reward.worst, reward.control = worst, control  # type: ignore[attr-defined]
    return reward


def check_ready(functions: Iterable[RewardFunc]) -> None:
    """Let functions say what they lack before anything is scored: those that have an attribute `check_ready`, called.

    Raises:
        RewardError: one of them cannot work here; the message says how to mend it.
    """
    for function in functions:
        getattr(function, "check_ready", _nothing)()


def _nothing() -> None:
    """What a function without `check_ready` lacks."""


def completion_text(completion: Answer) -> str:
    """The text of a completion: itself, or the content of its last message."""
    if isinstance(completion, str):
        return completion
    return str(completion[-1]["content"]) if completion else ""
