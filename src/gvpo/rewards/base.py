"""The signature of a reward function (TRL's), the batch that it scores, and the arguments that it needs."""

import functools
import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

from gvpo.errors import DataError
from gvpo.types import EpisodeTurn, Message, Prompt
from gvpo.workers.state import STATEFUL

RewardFunc = Callable[..., Sequence[float | None] | Awaitable[Sequence[float | None]]]
"""`f(prompts, completions, completion_ids, **columns) -> list[float | None]`, or the same with `async def`.

Every argument is a keyword and a list with one value per row, including the columns of the dataset. A function receives
the arguments that its signature names, or all of them if it accepts `**kwargs`. None abstains: the row's reward then
comes from the other functions. Reference: the reward functions of TRL's `GRPOTrainer`.
"""

Answer = str | Sequence[Message]
"""A completion as a reward receives it: text, or `[{"role": "assistant", "content": text}]` for prompts of messages."""

BATCH = "gvpo_batch"
"""Attribute of rewards that are called once per step with the rows of all groups."""

STANDARD = ("prompts", "completions", "completion_ids")
"""The arguments that every group has; all others are columns of the dataset, except `turns`."""

TURNS = "turns"
"""The argument that groups of episodes have: the turns of each row, `gvpo.types.EpisodeTurn`."""


@dataclass(frozen=True)
class RewardBatch:
    """One group of completions to score.

    Args:
        prompt: The prompt as the user wrote it.
        completions: k completions, as text or as messages.
        columns: The problem's columns; each is repeated k times.
        completion_ids: k lists of token ids; [] if there are none.
        turns: k lists of the turns of episodes; () if the completions are not episodes.

    Raises:
        DataError: If completion_ids is not empty and its length differs from that of completions.
    """

    prompt: Prompt
    completions: Sequence[Answer]
    columns: Mapping[str, Any] = field(default_factory=dict)
    completion_ids: Sequence[Sequence[int]] = ()
    turns: Sequence[Sequence[EpisodeTurn]] = ()

    def __post_init__(self) -> None:
        if self.completion_ids and len(self.completion_ids) != len(self.completions):
            raise DataError(
                f"RewardBatch has {len(self.completion_ids)} completion_ids for {len(self.completions)} completions; "
                "give one list of token ids per completion"
            )

    def __len__(self) -> int:
        return len(self.completions)

    @property
    def names(self) -> frozenset[str]:
        """Names of the arguments that this batch can provide."""
        standard = {*(STANDARD if self.completion_ids else STANDARD[:2]), *((TURNS,) if self.turns else ())}
        return frozenset(standard) | frozenset(self.columns)

    def only(self, rows: Sequence[int]) -> "RewardBatch":
        """Return a batch of only some rows."""
        ids = [self.completion_ids[row] for row in rows] if self.completion_ids else ()
        turns = [self.turns[row] for row in rows] if self.turns else ()
        return RewardBatch(self.prompt, [self.completions[row] for row in rows], self.columns, ids, turns)

    def written(self, text: str) -> "RewardBatch":
        """Return a batch of one row whose completion is `text`, without token ids."""
        messages = bool(self.completions) and not isinstance(self.completions[0], str)
        completion: Answer = [{"role": "assistant", "content": text}] if messages else text
        ids: Sequence[Sequence[int]] = [[]] if self.completion_ids else ()
        return RewardBatch(self.prompt, [completion], self.columns, ids, [()] if self.turns else ())

    def argument(self, name: str) -> list[Any]:
        """Return one value per row for the argument `name`, which is one of `names`."""
        if name == "prompts":
            return [self.prompt] * len(self)
        if name == "completions":
            return list(self.completions)
        if name == "completion_ids":
            return [list(ids) for ids in self.completion_ids]
        if name == TURNS and self.turns:
            return list(self.turns)
        return [self.columns[name]] * len(self)


@dataclass(frozen=True)
class RewardSignature:
    """The arguments that a function accepts and needs.

    Args:
        named: The arguments that its signature names.
        required: Those of them without a default, and the columns that an attribute `required_columns` names.
        everything: True if it accepts `**kwargs`.
    """

    named: frozenset[str] = frozenset()
    required: frozenset[str] = frozenset()
    everything: bool = True

    @classmethod
    def by(cls, function: RewardFunc) -> "RewardSignature":
        """Read a function's signature; a function without one (some built-ins) receives everything."""
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
        """Return the arguments that the function requires and the batch does not have."""
        return sorted(self.required - batch.names)

    def arguments(self, batch: RewardBatch) -> dict[str, list[Any]]:
        """Return the keyword arguments of the call."""
        return {name: batch.argument(name) for name in sorted(batch.names) if self.everything or name in self.named}


def blames_text(reward: RewardFunc, worst: float = 0.0, control: str = "") -> RewardFunc:
    """Declare that a reward reads untrusted text, and the value of a row that it cannot finish.

    If a call on one row then times out, ends the worker, runs out of memory or raises, the completion is blamed and the
    row gets `worst`. Before that, the same row is called with the completion `control`: if that fails too, the data or
    the machine is to blame, and the row has no reward. The same holds for an error of gvpo itself (`GvpoError`).

    Args:
        reward: The reward; its attributes `worst` and `control` are set.
        worst: The lowest value of the reward.
        control: An ordinary completion that makes it read the row's columns.

    Returns:
        The reward.
    """
    reward.worst, reward.control = worst, control  # type: ignore[attr-defined]
    return reward


def reward(
    function: Callable[..., Any] | None = None, /, *, batch: bool = False, stateful: bool = False
) -> Callable[..., Any]:
    """Declare how a reward is called: a decorator of a function or of a class whose instances are rewards.

    Args:
        function: Function, object or class; None returns the decorator.
        batch: Whether it is called once per step with the rows of all groups, instead of once per group.
        stateful: Whether one worker keeps it between its calls, which are made in the order of the groups. If it has
            `state_dict` and `load_state_dict`, its state is stored in checkpoints, and resumed runs are exact.

    Returns:
        The function, object or class, or a wrapper of a method.

    >>> @reward(batch=True)
    ... def above_the_mean(completions, **columns):
    ...     lengths = [len(text) for text in completions]
    ...     return [float(length > sum(lengths) / len(lengths)) for length in lengths]
    """
    if function is None:
        return functools.partial(reward, batch=batch, stateful=stateful)
    declared = functools.partial(function) if isinstance(function, MethodType) else function
    for name, value in ((BATCH, batch), (STATEFUL, stateful)):
        setattr(declared, name, value)
    return declared


def check_ready(functions: Iterable[RewardFunc]) -> None:
    """Call the attribute `check_ready` of the functions that have it, so that they report problems before scoring.

    Raises:
        RewardError: If one of them cannot work here; the message states how to fix it.
    """
    for function in functions:
        getattr(function, "check_ready", lambda: None)()


def grade(
    completions: Sequence[Answer], answer: Sequence[Any], is_right: Callable[[str, Any], bool]
) -> list[float | None]:
    """Return 1.0 or 0.0 for each completion, as `is_right(text, gold)` decides; None where the answer is None."""
    return [
        None if gold is None else float(is_right(completion_text(completion), gold))
        for completion, gold in zip(completions, answer, strict=True)
    ]


def completion_text(completion: Answer) -> str:
    """Return the text of a completion: the completion itself, or the content of its last message."""
    if isinstance(completion, str):
        return completion
    return str(completion[-1]["content"]) if completion else ""
